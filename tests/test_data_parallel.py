"""Two processes train what one trains: equal to rounding in float64, and not so when statistics are
not shared.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT
from torch import distributed, multiprocessing

from dataset.faces import load_faces
from models.checkpoint import build_model, load_model, read
from training import step as training_step
from training.config import TrainConfig
from training.step import TrainingStep
from utils.files import UserError
from utils.runtime import Processes

STEPS = 20
SEPBN = {"sets": 3, "groups": 2, "temperature": 30.0}


def make_step(data: str, norm: str, processes: Processes) -> TrainingStep:
    """A float64 network that is to learn at rate 1e-3 without warm-up."""
    sepbn = SEPBN if norm == "sepbn" else dict.fromkeys(SEPBN)

    config = TrainConfig(
        norm=norm,
        width=4,
        epochs=200,
        warmup_epochs=0.0,
        batch_size=4,
        lr=1e-3,
        mean_shape_init=True,
        **sepbn,
    )

    torch.manual_seed(0)
    model = build_model({"norm": norm, "width": 4, "num_landmarks": 98, **sepbn}).double()

    return TrainingStep(model, load_faces(data, "train"), config, processes=processes)


def train(data: str, norm: str, processes: Processes) -> dict[str, torch.Tensor]:
    """State of the network after STEPS steps."""
    step = make_step(data, norm, processes)
    done = 0

    for epoch in range(step.config.epochs):
        step.start_epoch(epoch)
        for _ in range(step.iterations):
            step()
            done += 1
            if done == STEPS:
                return {name: value.clone() for name, value in step.model.state_dict().items()}

    raise AssertionError("the run was too short")


def loss_with_and_without_a_break(data: str, processes: Processes) -> tuple[float, float]:
    """The logged loss of an epoch of 3 steps, straight on and resumed after 2 of them from what
    rank 0 saves.
    """
    step, other = (make_step(data, "bn", processes) for _ in range(2))
    step.start_epoch(0)
    step()
    step()
    saved = [step.state()]
    distributed.broadcast_object_list(saved)
    other.model.load_state_dict(step.model.state_dict())
    other.start_epoch(0)
    other.load_state(saved[0])
    step()
    other()

    return step.mean_loss(), other.mean_loss()


def worker(rank: int, folder: str, data: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    processes = Processes(rank, 2, rank)
    for norm in ("bn", "sepbn"):
        torch.save(train(data, norm, processes), f"{folder}/{norm}{rank}.pt")

    torch.save(loss_with_and_without_a_break(data, processes), f"{folder}/losses{rank}.pt")
    training_step.synchronize_statistics = lambda model: model  # the negative control
    torch.save(train(data, "bn", processes), f"{folder}/apart{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def pairs(prepared_set, tmp_path_factory):
    """Folder with the states that two processes ended with."""
    folder = tmp_path_factory.mktemp("pairs")
    multiprocessing.spawn(worker, (str(folder), str(prepared_set)), nprocs=2)

    return folder


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[name].double() - other[name].double()).abs().max().item() for name in one)


@pytest.mark.parametrize("norm", ["bn", "sepbn"])
def test_two_processes_equal_one(pairs, prepared_set, norm):
    alone = train(str(prepared_set), norm, Processes())
    first, second = (torch.load(pairs / f"{norm}{rank}.pt") for rank in (0, 1))
    assert largest_difference(first, second) <= 1e-12
    assert largest_difference(first, alone) <= 1e-10


def test_a_resumed_epoch_has_the_same_loss(pairs):
    for rank in (0, 1):
        straight, resumed = torch.load(pairs / f"losses{rank}.pt")
        assert resumed == pytest.approx(straight, rel=1e-12)


def test_without_shared_statistics_they_differ(pairs, prepared_set):
    alone = train(str(prepared_set), "bn", Processes())
    assert largest_difference(torch.load(pairs / "apart0.pt"), alone) > 1e-4


def test_a_batch_that_cannot_be_shared_equally(prepared_set):
    with pytest.raises(UserError, match="--batch-size 4 cannot be shared equally by 3 processes"):
        train(str(prepared_set), "bn", Processes(0, 3, 0))


def test_the_command_line_under_torchrun(prepared_set, tmp_path):
    script = str(ROOT / "trainBaselineSepDyBN.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", script]
    settings = ["--width", "2", "--epochs", "2", "--batch-size", "4", "--lr", "0.02"]
    done = subprocess.run(
        [*command, "--data", str(prepared_set), *settings],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test NME") == 1 and "(2 processes)" in done.stdout
    assert load_model(tmp_path / "checkpoints/sepbn/final.pt").config["processes"] == 2


def test_torchrun_hands_sigterm_on_and_the_run_is_saved(prepared_set, tmp_path):
    script = str(ROOT / "trainBaseline.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", script]
    settings = ["--width", "2", "--epochs", "100000", "--batch-size", "4"]
    torchrun = subprocess.Popen(
        [*command, "--data", str(prepared_set), *settings],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    log = tmp_path / "checkpoints/baseline/log.csv"
    try:
        patience = time.monotonic() + 120
        while not (log.is_file() and log.read_text().count("\n") > 1):
            assert torchrun.poll() is None and time.monotonic() < patience
            time.sleep(0.1)

        torchrun.send_signal(signal.SIGTERM)
        output, errors = torchrun.communicate(timeout=60)
    finally:
        torchrun.terminate()  # it may have nothing left to end; its processes end with it

    assert torchrun.returncode == 1 and "SignalException" in errors
    assert output.count("stopped at step") == 1
    training = read(log.with_name("last.pt"))["training"]
    assert len(training["log"]) == training["epoch"] >= 1
