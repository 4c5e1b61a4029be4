"""The examples, as a reader runs them."""

from __future__ import annotations

import os
import shutil
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


def test_the_page_about_the_layer(tmp_path):
    page = (ROOT / "docs/layer.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    shutil.copy(ROOT / "models/sepbn.py", tmp_path / "sepbn.py")
    check = "assert network[1].temperature == 1 and len(optimizer.param_groups) == 2\n"
    subprocess.run([sys.executable, "-c", code + check], env=environment, check=True)
