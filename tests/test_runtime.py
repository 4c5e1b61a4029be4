"""Progress for those who do not watch, devices, and processes that fail while others wait."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT

from training.processes import process_group
from utils import device, progress
from utils.files import UserError


def test_plain_lines_are_far_apart_and_say_how_far(capfd, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.progress(desc="drawing", total=400, unit="face") as bar:
        for _ in range(400):
            now[0] += 0.1
            bar.update()
            bar.refresh()

    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("drawing: face ") for line in lines)
    assert all(" of 400, " in line and line.endswith(" left") for line in lines)


def test_a_bar_that_is_closed_late_prints_nothing_more(capfd, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    bar = progress.progress(desc="drawing", total=400, unit="face")
    now[0] += 60
    bar.close()
    assert capfd.readouterr().err == ""


def test_short_work_prints_nothing(capfd):
    assert list(progress.progress(range(1000), desc="quick", unit="face")) == list(range(1000))
    assert capfd.readouterr().err == ""


def test_cpu_with_an_index_is_the_cpu():
    assert device.select_device("cpu:0") == torch.device("cpu")


def test_a_gpu_that_cannot_run_a_kernel_is_one_line(monkeypatch):
    def no_kernel(*_, **__):
        raise RuntimeError("CUDA error: no kernel image is available\nCompile with ...")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch, "zeros", no_kernel)

    with pytest.raises(UserError, match=r"--device auto cannot be used \(CUDA error: no"):
        device.select_device("auto")


TORCHRUN = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.mark.parametrize("variables", ["2", "x", "0", "2 x 0", "2 2 0", "2 0", "2 0 0"])
def test_variables_of_torchrun_that_lack_or_contradict_are_one_line(monkeypatch, variables):
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    for name, value in zip(TORCHRUN, variables.split(), strict=False):
        monkeypatch.setenv(name, value)

    with pytest.raises(UserError, match="torchrun"), process_group("cpu"):
        pass


FAILING = """
import os, sys, time
from torch import distributed
import torch
from utils import files
from utils.files import UserError
from training.processes import process_group
files.PATIENCE = 0.1
with process_group("cpu") as (processes, device):
    if processes.rank == 1:
        raise UserError("the disk is full")
    distributed.all_reduce(torch.zeros(1))
"""


def test_a_process_that_fails_does_not_wait_for_the_others(tmp_path):
    port = str(20000 + os.getpid() % 20000)
    started = []
    for rank in "01":
        variables = dict(zip(TORCHRUN, ("2", rank, rank, "127.0.0.1", port), strict=True))
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", FAILING],
                cwd=ROOT,
                env=os.environ | variables,
                stderr=subprocess.PIPE,
                text=True,
            )
        )

    _, errors = started[1].communicate(timeout=60)
    assert started[1].returncode == 1
    assert errors.strip().splitlines()[-1] == "error: the disk is full"

    # What waits for the one that failed learns of it, too, and does not wait for minutes.
    began = time.monotonic()
    started[0].communicate(timeout=60)
    assert started[0].returncode != 0 and time.monotonic() - began < 60
