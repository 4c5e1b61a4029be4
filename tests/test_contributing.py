"""The recipes of CONTRIBUTING.md, followed in a copy of the repository."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from models.checkpoint import read

# two steps that leave the weights as they are: losses can be compared
TWO_STEPS = "--width 2 --epochs 1 --batch-size 6 --lr 0 --device cpu".split()


@pytest.fixture
def copy(tmp_path) -> Path:
    """The code alone, in a folder of its own."""
    code = ("*.py", "[!.]*/*.py", "dataset/schemes/*.json")
    for source in (path for pattern in code for path in ROOT.glob(pattern)):
        target = tmp_path / source.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)

    return tmp_path


def follow(recipe: str, folder: Path) -> None:
    """Do what the blocks below a bold ``recipe`` say: lines of a file exchanged, or a new file."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    part = re.search(rf"^\*\*{recipe}\*\*.*?(?=^\*\*|\Z)", text, re.DOTALL | re.MULTILINE)
    assert part, f"CONTRIBUTING.md has no recipe {recipe!r}"

    for kind, block in re.findall(r"^```(diff|py)\n(.*?)^```", part[0], re.DOTALL | re.MULTILINE):
        if kind == "py":
            (folder / block.splitlines()[0].removeprefix("# ")).write_text(block)
            continue

        for name, change in re.findall(r"^--- (.*)\n((?:(?!---).*\n)+)", block, re.MULTILINE):
            lines = change.splitlines(keepends=True)
            before = "".join(line[1:] for line in lines if line[0] != "+")
            after = "".join(line[1:] for line in lines if line[0] != "-")
            source = (folder / name).read_text()
            assert source.count(before) == 1, f"{name} has other lines than\n{before}"
            (folder / name).write_text(source.replace(before, after))


def run(folder: Path, *command: object) -> str:
    """A command of the copy -> what it prints."""
    words = [sys.executable, *map(str, command)]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    return done.stdout + done.stderr


def loss_of(run: Path) -> float:
    with open(run / "log.csv") as file:
        return float(next(csv.DictReader(file))["loss"])


def test_change_the_loss(copy, prepared_set, run_script, monkeypatch):
    follow("Change the loss.", copy)
    run(copy, "trainBaseline.py", "--data", prepared_set, *TWO_STEPS, "--run", "smooth")

    monkeypatch.chdir(copy)
    assert run_script("trainBaseline.py", "--data", prepared_set, *TWO_STEPS)[0] == 0
    absolute, smooth = (loss_of(copy / "checkpoints" / name) for name in ("baseline", "smooth"))

    # smooth L1 is the absolute error less beta / 2 = 1, but for errors below beta
    assert 0.9 < absolute - smooth < 1


def test_log_a_number(copy, prepared_set):
    follow("Log a number.", copy)
    printed = run(copy, "trainBaseline.py", "--data", prepared_set, *TWO_STEPS)
    norms = [float(number) for number in re.findall(r"^step 0: gradient norm (.*)", printed, re.M)]
    assert len(norms) == 1 and norms[0] > 0


def test_add_a_norm(copy, prepared_set):
    follow("Add a norm.", copy)
    command = ("trainBaseline.py", "--data", prepared_set, *TWO_STEPS, "--norm", "gn")
    assert "GroupNorm" in run(copy, *command)

    path = copy / "checkpoints" / "gn" / "final.pt"
    state = read(path)["model"]
    assert "bn6.weight" in state and "bn6.running_mean" not in state
    assert "GroupNorm, 2 groups" in run(copy, "test.py", path, "--data", prepared_set)


def test_add_a_network(copy, prepared_set):
    follow("Add a network.", copy)
    options = ("--data", prepared_set, *TWO_STEPS, "--run", "small", "--mean-shape-init")
    run(copy, "trainSmall.py", *options)
    assert "finished already" in run(copy, "trainSmall.py", *options, "--resume")

    state = read(copy / "checkpoints" / "small" / "final.pt")["model"]
    assert state["fc2.weight"].shape == (2 * 98, 8 * 4)
