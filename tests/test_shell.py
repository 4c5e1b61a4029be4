"""The shell scripts, with a stand-in for Python: nothing is lost, nothing stops them for ever."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

# Makes an "environment" whose programs succeed; everything else succeeds too.
PYTHON = """#!/usr/bin/env bash
if [ "$1 $2" = "-m venv" ]; then
    mkdir -p "$3/bin"
    for program in python ruff mypy; do
        printf '#!/bin/sh\\nexit 0\\n' > "$3/bin/$program"
        chmod +x "$3/bin/$program"
    done
fi
"""


@pytest.fixture
def run_shell(tmp_path):
    """run_shell(script, **environment) -> the finished process, in a folder of its own."""
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)

    def run(script: str, **environment: str) -> subprocess.CompletedProcess:
        shutil.copy(ROOT / script, tmp_path)
        inherited = {key: value for key, value in os.environ.items() if key != "SEPBN_TEST_ENV"}
        return subprocess.run(
            ["bash", tmp_path / script],
            env=inherited | {"PYTHON": str(python)} | environment,
            capture_output=True,
            text=True,
        )

    return run


def test_the_tests_do_not_remove_a_folder_that_is_not_theirs(run_shell, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("mine")
    (tmp_path / "link").symlink_to(precious)
    (tmp_path / "file").write_text("mine")

    for name in ("precious", "link", "file"):
        done = run_shell("runtests.sh", SEPBN_TEST_ENV=name)
        assert done.returncode == 1 and done.stderr.count("\n") == 1
        assert f"error: {name} was not made by runtests.sh" in done.stderr

    assert (precious / "thesis.txt").read_text() == (tmp_path / "file").read_text() == "mine"
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("name", ["", "own"])
def test_the_tests_make_their_environment_anew(run_shell, tmp_path, name):
    folder = tmp_path / (name or ".venv-test")
    (folder if name else tmp_path).mkdir(exist_ok=True)  # an empty folder is nobody's

    for _ in range(2):
        assert run_shell("runtests.sh", SEPBN_TEST_ENV=name).returncode == 0
        assert (folder / "bin" / "ruff").exists() and not (folder / "old").exists()
        (folder / "old").touch()


def leave_half_made(folder: Path, *, mark: bool) -> None:
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").write_text("#!/bin/sh\nexit 1\n")
    (folder / "bin" / "python").chmod(0o755)
    (folder / "lib").touch()
    if mark:
        (folder / ".unfinished").touch()


@pytest.mark.parametrize("mark", [True, False])
def test_a_half_made_environment_does_not_stop_the_quickstart(run_shell, tmp_path, mark):
    leave_half_made(tmp_path / ".venv", mark=mark)
    done = run_shell("quickstart.sh")
    assert done.returncode == 0, done.stderr
    # made anew where the script itself was interrupted; completed where it is the user's own
    assert (tmp_path / ".venv" / "lib").exists() != mark
    assert not (tmp_path / ".venv" / ".unfinished").exists()
    (tmp_path / ".venv" / "lib").touch()
    assert run_shell("quickstart.sh").returncode == 0 and (tmp_path / ".venv" / "lib").exists()
