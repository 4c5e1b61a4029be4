"""The layer alone: as a package that pip installs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NEEDED = ("pyproject.toml", "LICENSE", "README.md", "models/sepbn.py")


def test_pip_installs_the_layer_alone(tmp_path):
    source, site, empty = (tmp_path / name for name in ("source", "site", "empty"))
    for name in NEEDED:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    empty.mkdir()

    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(site), str(source)], check=True)
    assert {path.name.split("-")[0] for path in site.iterdir()} - {"__pycache__"} == {
        "sepbn.py",
        "sepbn",  # its metadata
    }

    code = (
        "import importlib.metadata, sepbn, torch; print(sepbn.__file__);"
        "new = sepbn.convert_batchnorm(torch.nn.BatchNorm2d(4)); print(type(new).__name__);"
        "new(torch.randn(2, 4, 8, 8, requires_grad=True)).sum().backward();"
        "print(*importlib.metadata.requires('sepbn'))"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    lines = subprocess.run(
        [sys.executable, "-c", code],
        cwd=empty,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    assert lines[:2] == [str(site / "sepbn.py"), "SepBatchNorm2d"]
    assert lines[2].startswith("torch>=")
