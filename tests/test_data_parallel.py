"""Two processes train what one trains: equal to rounding in float64."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from torch import distributed, multiprocessing, nn

from dataset.augment import draw_epoch
from dataset.faces import load_faces
from models import Baseline, BaselineSepDyBN
from models.checkpoint import load_model, read
from training.processes import Processes
from training.recipe import eager_step

STEPS = 20
BATCH = 4
NETWORKS = {"bn": partial(Baseline, width=4), "sepbn": partial(BaselineSepDyBN, width=4)}


class Double(nn.Module):
    """A network in float64, so that rounding tells nothing."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.double()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images.double())


def train(data: str, norm: str, processes: Processes) -> dict[str, torch.Tensor]:
    """State of a network after STEPS steps at rate 1e-3."""
    torch.manual_seed(0)
    model = Double(NETWORKS[norm]())
    optimizer = torch.optim.SGD(model.parameters(), torch.zeros(()), momentum=0.9, fused=True)
    faces = load_faces(data, "train")
    step = eager_step(processes.network(model), optimizer, faces)
    steps = len(faces) // BATCH

    for done in range(STEPS):
        if done % steps == 0:
            draws = draw_epoch(faces, seed=0, epoch=done // steps)
        step(draws, processes.rows(draws.order, done % steps, BATCH), 1e-3)

    return model.state_dict()


def worker(rank: int, folder: str, data: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    processes = Processes(rank, 2)
    for norm in ("bn", "sepbn"):
        torch.save(train(data, norm, processes), f"{folder}/{norm}{rank}.pt")

    loss = processes.mean(torch.tensor([1.0, 2.0]) * (1 + rank))
    agreed = processes.agree(15 * rank, 1 - rank, device=torch.device("cpu"))
    torch.save((loss, agreed), f"{folder}/agreed{rank}.pt")
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


def test_all_processes_know_the_same(pairs):
    """Mean losses, and whether any of them was told to stop or to save."""
    for rank in (0, 1):
        loss, agreed = torch.load(pairs / f"agreed{rank}.pt")
        assert loss.tolist() == [1.5, 3.0] and agreed == [15, 1]


def start(data: Path, folder: Path, script: str, epochs: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", ROOT / script]
    settings = ["--width", "2", "--epochs", epochs, "--batch-size", "4", "--lr", "0.02"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, "--data", data, *settings], cwd=folder, **pipes)


def test_the_command_line_under_torchrun(prepared_set, tmp_path):
    script = "trainBaselineSepDyBN.py"
    torchrun = start(prepared_set, tmp_path, script, "2")
    output, errors = torchrun.communicate(timeout=120)
    assert torchrun.returncode == 0, errors
    assert output.count("test NME") == 1 and "(2 processes)" in output
    assert load_model(tmp_path / "checkpoints/sepbn/final.pt").config["processes"] == 2


def test_torchrun_hands_sigterm_on_and_the_run_is_saved(prepared_set, tmp_path):
    script = "trainBaseline.py"
    torchrun = start(prepared_set, tmp_path, script, "100000")
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
