"""The examples, as a reader runs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("norm", ["bn", "sepbn"])
def test_digits(norm, tmp_path):
    command = [sys.executable, str(ROOT / "examples/digits.py"), "--norm", norm, "--epochs", "3"]
    run = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert 85 < float(run.stdout.split()[0]) <= 100
    assert len((ROOT / "examples/digits.py").read_text().splitlines()) <= 60
