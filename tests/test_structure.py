"""Imports point one way: scripts -> training -> evaluation -> dataset, models -> utils; prediction
and synthetic beside; research and benchmarks may use everything.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "utils": set(),
    "dataset": {"utils"},
    "synthetic": {"dataset", "utils"},
    "models": {"utils"},
    "evaluation": {"dataset", "models", "utils"},
    "prediction": {"dataset", "models", "utils"},
    "demonstration": {"prediction", "dataset", "models", "utils"},
    "training": {"evaluation", "dataset", "models", "utils"},
}
ROOMS = tuple(MAY_IMPORT)
SCRIPTS = ("dataset/createWFLW256.py", "synthetic/createSynthetic.py")


def imported(path: Path) -> set[str]:
    """Top-level names of all modules that a file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module.split(".")[0])
            assert all(alias.name != "*" for alias in node.names), f"{path}: star import"

    return names


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_lies_below(room):
    files = list((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        used = imported(path) & {*ROOMS, "test", "train", "tests", "benchmarks", "research"}
        assert used <= MAY_IMPORT[room] | {room}, f"{path} imports {used}"


def test_sepbn_needs_torch_alone():
    assert imported(ROOT / "models/sepbn.py") <= {*sys.stdlib_module_names, "torch"}


def test_nothing_imports_a_script():
    scripts = {path.stem for path in ROOT.glob("*.py")}
    for path in [*ROOT.rglob("*.py")]:
        if ".venv" not in str(path):
            assert not imported(path) & scripts, path


def test_scripts_import_nothing_heavy_before_the_arguments_are_parsed():
    for path in [*ROOT.glob("*.py"), *(ROOT / script for script in SCRIPTS)]:
        names = set()
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom):
                names.add(node.module.split(".")[0])
            elif isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}

        assert not names & {"torch", "cv2", "matplotlib", "gradio"}, path
