"""The commands where what macOS and Windows lack is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from conftest import ROOT, smooth_noise, write_checkpoint

# Python's documentation says "Availability: Unix" or "not macOS" of these.
MISSING = {
    "macos": ["os.posix_fallocate", "os.sched_getaffinity", "os.sched_setaffinity"],
    "windows": [
        *("os.chown", "os.fchmod", "os.fchown", "os.fork", "os.geteuid", "os.getuid", "os.killpg"),
        *("os.mkfifo", "os.posix_fallocate", "os.pread", "os.pwrite", "os.sched_getaffinity"),
        *("os.sched_setaffinity", "os.setsid", "signal.SIGHUP", "signal.SIGUSR1", "signal.alarm"),
        *("signal.pthread_sigmask", "signal.setitimer"),
    ],
}
LIKE = """
import multiprocessing, os, random, runpy, signal, sys, tempfile
import cv2, filelock, matplotlib.pyplot, torch  # they know all systems by themselves

root, system, missing, commands = sys.argv[1], sys.argv[2], *map(eval, sys.argv[3:])
for name in missing:
    module, function = name.split(".")
    delattr(sys.modules[module], function)

if system == "windows":
    opened = os.open
    sys.modules |= dict.fromkeys(("fcntl", "grp", "pwd", "resource", "termios"))

    def no_folders(path, *arguments, **options):
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    os.open = no_folders

sys.path.insert(0, root)
for command in commands:
    sys.argv = [f"{root}/{command[0]}", *command[1:]]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as leaving:
        assert not leaving.code, command
"""


@pytest.mark.parametrize("system", MISSING)
def test_preparing_training_testing_and_predicting(system, official_set, tmp_path: Path):
    cv2.imwrite(str(tmp_path / "a.png"), smooth_noise())
    write_checkpoint(tmp_path / "sepbn.pt")
    small = ["--width", "4", "--epochs", "1", "--batch-size", "6", "--device", "cpu"]

    commands = [
        ["dataset/createWFLW256.py", "--wflw", str(official_set), "--out", "prepared"],
        ["trainBaseline.py", "--data", "prepared", "--run", "two_steps", *small],
        ["test.py", "--data", "prepared", "--device", "cpu", "--out", "tested"],
        ["predict.py", "a.png", "--whole", "--checkpoint", "sepbn.pt", "--out", "predicted"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", LIKE, str(ROOT), system, str(MISSING[system]), str(commands)],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "USERNAME": "somebody"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr

    assert (tmp_path / "checkpoints/two_steps/final.pt").is_file()
    assert json.loads((tmp_path / "tested/metrics.json").read_text())
    assert json.loads((tmp_path / "predicted/landmarks.json").read_text())["files"][0]["faces"]
