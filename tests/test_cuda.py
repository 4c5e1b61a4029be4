"""What runs on CUDA only: the captured graph against eager steps, evaluation between replays, and
resume. Without a CUDA device these tests skip.
"""

from __future__ import annotations

import pytest
import torch
from test_training import assert_same_ending, signal_at, train  # noqa: F401 (a fixture)

from dataset.faces import FaceSet, load_faces
from evaluation.evaluate import face_errors
from models.checkpoint import build_model
from training.config import TrainConfig
from training.step import TrainingStep

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SEPBN = {"sets": 3, "groups": 2, "temperature": 30.0}
PLAIN = {"sets": None, "groups": None, "temperature": None}


@pytest.fixture(autouse=True)
def in_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def faces(prepared_set) -> FaceSet:
    return load_faces(prepared_set, "train")


def make_step(faces: FaceSet, norm: str, *, graph: bool, precision: str = "fp32") -> TrainingStep:
    options = SEPBN if norm == "sepbn" else PLAIN
    settings = {"norm": norm, "width": 2, **options}
    torch.manual_seed(0)
    model = build_model({"num_landmarks": 98, **settings}).cuda()
    config = TrainConfig(
        **settings, epochs=4, batch_size=4, lr=0.02, warmup_epochs=1.0, precision=precision
    )

    return TrainingStep(model, faces, config, graph=graph)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("norm", ["none", "bn", "sepbn"])
def test_a_captured_graph_trains_like_eager_steps(faces, norm, precision):
    steps = [make_step(faces, norm, graph=graph, precision=precision) for graph in (False, True)]
    tolerance = 1e-3 if precision == "fp32" else 0.1

    for epoch in range(2):
        for step in steps:
            step.start_epoch(epoch)
            for _ in range(step.iterations):
                step()

        assert abs(steps[0].mean_loss() - steps[1].mean_loss()) < tolerance

    eager, replayed = (step.model.state_dict() for step in steps)

    for name in eager:
        torch.testing.assert_close(
            eager[name].float(), replayed[name].float(), rtol=tolerance, atol=0.1 * tolerance
        )


def test_a_captured_graph_follows_the_learning_rate(faces):
    step = make_step(faces, "sepbn", graph=True)
    moved = []

    for rate in (0.0, 1e-3, 1e-2):
        step.start_epoch(2)
        step.rates.fill_(rate)
        before = step.model.fc2.weight.detach().clone()
        step()
        moved.append((step.model.fc2.weight - before).abs().sum().item())

    assert moved[0] == 0 and moved[2] > 5 * moved[1] > 0


def test_evaluation_between_replays_changes_nothing(faces):
    steps = [make_step(faces, "sepbn", graph=True) for _ in range(2)]

    for epoch in range(2):
        for step in steps:
            step.start_epoch(epoch)
            for _ in range(step.iterations):
                step()

        face_errors(steps[1].model, faces, device="cuda")
        steps[1].model.train()

    for name, value in steps[0].model.state_dict().items():
        torch.testing.assert_close(value, steps[1].model.state_dict()[name], msg=name)


def test_a_stopped_run_resumes(train, monkeypatch):  # noqa: F811
    options = ("--device", "cuda")
    assert train("--run", "straight", *options, script="trainBaselineSepDyBN.py")[0] == 0

    with monkeypatch.context() as patch:
        signal_at(patch, 5)
        train("--run", "stopped", *options, script="trainBaselineSepDyBN.py")

    resume = ("--run", "stopped", "--resume", *options)
    assert train(*resume, script="trainBaselineSepDyBN.py")[0] == 0
    assert_same_ending("straight", "stopped")
