"""Both scripts against a plain loop written here: the same weights, bit for bit, on this machine.

Digests of weights would hold on one kind of processor only, since its kernels round in their own
way; the plain loop runs on whatever runs the scripts.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, load_script, write_official_set
from test_training import signal_at
from torch.nn import functional as F

from dataset.augment import draw_epoch, warp
from dataset.faces import load_faces
from models import Baseline, BaselineSepDyBN
from models.checkpoint import read

EPOCHS, BATCH, RATE, TAU = 4, 4, 0.02, 3.0
SETTINGS = ["--width", 4, "--epochs", EPOCHS, "--batch-size", BATCH, "--lr", RATE]
SCRIPTS = {
    "trainBaseline.py": ["--norm", "bn"],
    "trainBaselineSepDyBN.py": ["--temperature", TAU],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """22 faces: an epoch of five steps leaves two out."""
    folder = tmp_path_factory.mktemp("recipe")
    official = write_official_set(folder / "official", train=22, test=2)
    prepare = load_script("dataset/createWFLW256.py").main
    assert prepare(["--wflw", str(official), "--out", str(folder / "data")]) == 0

    return folder / "data"


@pytest.fixture(autouse=True)
def in_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def plain_loop(data: Path, script: str) -> dict[str, torch.Tensor]:
    """Weights that the recipe leads to, in one function and without any of ``training/``."""
    faces = load_faces(data, "train")
    steps = len(faces) // BATCH
    torch.manual_seed(0)
    sepbn = script == "trainBaselineSepDyBN.py"
    model = BaselineSepDyBN(temperature=TAU, width=4) if sepbn else Baseline("bn", width=4)
    model = model.to(memory_format=torch.channels_last)
    momentum = [torch.zeros_like(weight) for weight in model.parameters()]

    for epoch in range(EPOCHS):
        draws = draw_epoch(faces, seed=0, epoch=epoch)
        for name, buffer in model.named_buffers():
            if name.endswith(".temperature"):
                buffer.fill_(max(1.0, TAU - epoch))

        for i in range(steps):
            chosen = draws.order[BATCH * i : BATCH * (i + 1)]
            crops = warp(faces.patches[chosen], draws.matrices[chosen])
            loss = F.l1_loss(model((crops - 127.5) / 128), draws.targets[chosen].flatten(1))
            model.zero_grad()
            loss.backward()
            step(model, momentum, rate(steps * epoch + i, steps))

    return model.state_dict()


def rate(done: int, steps: int) -> float:
    """Warm-up over 0.4 of the run, then half a cosine, both from and to 1e-10."""
    warm, total = round(0.4 * EPOCHS * steps), EPOCHS * steps
    if done < warm:
        return 1e-10 + (RATE - 1e-10) * done / warm

    return 1e-10 + (RATE - 1e-10) * 0.5 * (1 + math.cos(math.pi * (done - warm) / (total - warm)))


def step(model: torch.nn.Module, momentum: list[torch.Tensor], rate: float) -> None:
    """SGD as torch documents it, in torch's own order of operations."""
    weights = [weight for weight in model.parameters() if weight.grad is not None]
    gradients = [weight.grad for weight in weights]
    torch._fused_sgd_(
        [weight.data for weight in weights],
        gradients,
        momentum,
        weight_decay=5e-4,
        momentum=0.9,
        lr=torch.tensor(rate).item(),
        dampening=0.0,
        nesterov=False,
        maximize=False,
        is_first_step=False,
    )


def assert_equals_the_plain_loop(data: Path, script: str) -> None:
    run = {"trainBaseline.py": "baseline", "trainBaselineSepDyBN.py": "sepbn"}[script]
    found, expected = read(f"checkpoints/{run}/final.pt")["model"], plain_loop(data, script)
    assert found.keys() == expected.keys()
    for name in found:
        assert torch.equal(found[name], expected[name]), name


@pytest.mark.parametrize("script", SCRIPTS)
def test_straight_and_stopped_runs_equal_a_plain_loop(data, run_script, monkeypatch, script):
    settings = ["--data", data, *SETTINGS, *SCRIPTS[script]]
    assert run_script(script, *settings)[0] == 0
    assert_equals_the_plain_loop(data, script)

    with monkeypatch.context() as patch:
        signal_at(patch, 7)
        assert run_script(script, *settings, "--overwrite")[0] == 143

    assert run_script(script, *settings, "--resume")[0] == 0
    assert_equals_the_plain_loop(data, script)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_killed_run_equals_a_plain_loop(data, run_script, script):
    settings = ["--data", data, *SETTINGS, *SCRIPTS[script], "--save-every", 0]
    command = [sys.executable, ROOT / script, *settings]
    last = Path("checkpoints", "baseline" if script == "trainBaseline.py" else "sepbn", "last.pt")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([*map(str, command)], env=environment)
    while not last.exists() and process.poll() is None:
        time.sleep(0.002)

    process.kill()
    assert process.wait() == -signal.SIGKILL
    leftover = last.with_name(".last.pt.abc.tmp")  # as of a kill within a save
    leftover.touch()
    assert run_script(script, *settings, "--resume")[0] == 0
    assert not leftover.exists()
    assert_equals_the_plain_loop(data, script)
