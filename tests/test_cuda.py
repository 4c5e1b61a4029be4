"""The captured CUDA graph against eager steps, evaluation between replays, and resume.

Without a CUDA device the same runs on the CPU, with stand-ins for what only CUDA has: what is
copied where, and in which order, is then tested, and the graphs themselves are not.
"""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from test_training import assert_same_ending, signal_at, train  # noqa: F401 (a fixture)

from dataset.augment import draw_epoch
from dataset.faces import FaceSet, load_faces
from evaluation.evaluate import face_errors
from models import Baseline, BaselineSepDyBN, VanillaCNN
from models.sepbn import set_temperature
from training.graph import CapturedStep
from training.processes import Processes
from training.recipe import eager_step

ON_CUDA = torch.cuda.is_available()
BATCH = 4


@pytest.fixture(autouse=True)
def in_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def cuda_or_stand_ins(monkeypatch):
    """Deterministic convolutions, as in a training; on a machine without CUDA streams that do
    nothing, and graphs that run the step again.
    """
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    if ON_CUDA:
        return

    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", lambda _, stream: nullcontext())
    record = CapturedStep._record

    def recorded(self):
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=self._run))
        return record(self)

    monkeypatch.setattr(CapturedStep, "_record", recorded)


@pytest.fixture
def faces(prepared_set) -> FaceSet:
    return load_faces(prepared_set, "train").to("cuda" if ON_CUDA else "cpu")


class Training:
    """A network of one's own and how to train it for an epoch of three steps."""

    def __init__(self, faces: FaceSet, norm: str, *, graph: bool, bf16: bool = False) -> None:
        torch.manual_seed(0)
        self.faces, device = faces, faces.patches.device
        sepbn = norm == "sepbn"
        self.model: VanillaCNN = BaselineSepDyBN(width=2) if sepbn else Baseline(norm, width=2)
        self.model.to(device)
        settings = {"momentum": 0.9, "weight_decay": 5e-4, "fused": True}
        rate = torch.zeros((), device=device)
        optimizer = torch.optim.SGD(self.model.parameters(), rate, **settings)
        for weight in self.model.parameters():
            optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)

        step = eager_step(Processes().network(self.model, bf16=bf16), optimizer, faces)
        self.step = CapturedStep(step, self.model, optimizer) if graph else step

    def epoch(self, number: int, rate: float = 0.02) -> list[float]:
        """Losses of the epoch's steps."""
        set_temperature(self.model, 30.0 - number)
        draws = draw_epoch(self.faces, seed=0, epoch=number)
        rows = [Processes().rows(draws.order, i, BATCH) for i in range(len(self.faces) // BATCH)]

        return [self.step(draws, chosen, rate * (i + 1)).item() for i, chosen in enumerate(rows)]


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("norm", ["none", "bn", "sepbn"])
def test_a_captured_graph_trains_like_eager_steps(faces, norm, bf16):
    eager, captured = (Training(faces, norm, graph=graph, bf16=bf16) for graph in (False, True))
    tolerance = 0.1 if bf16 else 1e-3

    for epoch in range(2):
        assert captured.epoch(epoch) == pytest.approx(eager.epoch(epoch), rel=tolerance)

    expected, replayed = eager.model.state_dict(), captured.model.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(
            value.float(), replayed[name].float(), rtol=tolerance, atol=0.1 * tolerance
        )


def test_a_captured_graph_follows_the_learning_rate(faces):
    training = Training(faces, "sepbn", graph=True)
    moved = []

    for rate in (0.0, 1e-4, 1e-3):
        before = training.model.fc2.weight.detach().clone()
        training.epoch(2, rate)
        moved.append((training.model.fc2.weight - before).abs().sum().item())

    assert moved[0] == 0 and moved[2] > 5 * moved[1] > 0


def test_evaluation_between_replays_changes_nothing(faces):
    plain, tested = (Training(faces, "sepbn", graph=True) for _ in range(2))

    for epoch in range(2):
        plain.epoch(epoch)
        tested.epoch(epoch)
        face_errors(tested.model, faces, device=faces.patches.device)

    for name, value in plain.model.state_dict().items():
        torch.testing.assert_close(value, tested.model.state_dict()[name], msg=name)


@pytest.mark.skipif(not ON_CUDA, reason="needs a CUDA device")
def test_a_stopped_run_resumes(train, monkeypatch):  # noqa: F811
    options = ("--device", "cuda")
    assert train("--run", "straight", *options, script="trainBaselineSepDyBN.py")[0] == 0

    with monkeypatch.context() as patch:
        signal_at(patch, 5)
        train("--run", "stopped", *options, script="trainBaselineSepDyBN.py")

    resume = ("--run", "stopped", "--resume", *options)
    assert train(*resume, script="trainBaselineSepDyBN.py")[0] == 0
    assert_same_ending("straight", "stopped")
