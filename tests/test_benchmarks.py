"""Every benchmark runs: small, and for what it prints; its numbers are not looked at."""

from __future__ import annotations

import re
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from conftest import ROOT, load_script

from benchmarks import paired, training
from dataset.faces import load_faces
from models import VanillaCNN


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_contenders_take_turns():
    calls = []
    runs = {name: partial(calls.append, name) for name in "ab"}
    times = paired.take_turns(runs, 2, repeats=2)
    assert "".join(calls) == "bbaa" + "aabb" + "bbaa"  # warm-up, then two pairs
    assert {name: values.shape for name, values in times.items()} == {"a": (2,), "b": (2,)}

    first, second = np.array([1.0, 2.0, 9.0]), np.array([2.0, 2.0, 2.0])
    assert paired.paired_ratio(first, second) == "1.000 (0.500 to 4.500), 3 pairs"


def test_training(run_script, prepared_set):
    options = ("--data", prepared_set, "--pairs", 1, "--width", 8, "--parts", "overhead,augment")
    code, output, errors = run_script("benchmarks/training.py", *options)
    assert code == 0 and output.count("; batch / step ") == 2, errors
    assert "; straightforward / ours " in output

    step = training.straightforward_step(load_faces(prepared_set, "train"), width=2, batch_size=3)
    step()


@pytest.mark.slow  # four processes
def test_training_in_processes(prepared_set, capsys):
    # as a module, which its processes can import
    options = ["--data", str(prepared_set), "--pairs", "1", "--width", "8", "--parts", "speed"]
    assert training.main(options) == 0
    assert capsys.readouterr().out.count("; straightforward / ours ") == 2


def test_prepare(run_script, official_set):
    options = ("--wflw", official_set, "--pairs", 1, "--workers", 1)
    code, output, errors = run_script("benchmarks/prepare.py", *options)
    assert code == 0 and output.count(" faces/s, ") == 2, errors


def test_sepbn(monkeypatch, capsys):
    script = load_script("benchmarks/sepbn.py")
    monkeypatch.setattr(script, "VanillaCNN", lambda norm: VanillaCNN(norm, width=2))
    monkeypatch.setattr(script, "layer_pass", lambda *args, **options: lambda: None)
    assert script.main(["--quick", "--pairs", "1"]) == 0
    assert "| training step, batch 8, K = 8 / K = 1, fp32, NCHW |" in capsys.readouterr().out


def test_converted(run_script):
    code, output, errors = run_script(
        "benchmarks/converted.py", "--networks", "U-Net", "3-D", "--steps", 1
    )
    assert code == 0, errors
    u_net, volume = output.splitlines()[-2:]
    assert u_net.startswith("| U-Net | 2x3x64x64 | 14 |") and volume.startswith("| 3-D |")


def test_kernels(run_script):
    code, output, _ = run_script("benchmarks/kernels.py")
    assert code == 0 and output.count("\n") == 14
    assert "| BatchNorm | float32 | forward | 2 | 3 | 1 |" in output

    code, _, errors = run_script("benchmarks/kernels.py", "--layer-file", "no.py")
    assert code == 1 and errors.startswith("error: no.py: no such file")


def test_inference(run_script, prepared_set):
    networks = [ROOT / "checkpoints" / name for name in ("sepbn16.pt", "bn16.pt")]
    options = ("--data", prepared_set, "--pairs", 1, *networks)
    code, output, errors = run_script("benchmarks/inference.py", *options)
    assert code == 0 and output.count("; least ") == 4, errors


@pytest.mark.slow  # ten processes
def test_scale(monkeypatch, capsys, tmp_path):
    script = load_script("benchmarks/scale.py")
    monkeypatch.setattr(script, "STEPS", 1)
    assert script.main(["--sizes", "12", "--work", str(tmp_path)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(lines) == 9 and not list(tmp_path.iterdir())


@pytest.mark.slow  # a browser
@pytest.mark.skipif(
    not (shutil.which("chromium") or shutil.which("chromium-browser")), reason="needs Chromium"
)
def test_page_answers(run_script):
    pytest.importorskip("gradio")
    checkpoint = ROOT / "checkpoints" / "sepbn16.pt"
    options = ("--checkpoint", checkpoint, "--repeats", 1)
    code, output, errors = run_script("benchmarks/page_answers.py", *options)
    assert code == 0 and re.search(r"another temperature: \d+", output), errors
