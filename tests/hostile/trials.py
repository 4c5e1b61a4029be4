"""What every odd input goes through: a fresh copy of a small data set with small networks, a
process of its own, and a judge.

Processes are forked from a server that has imported what the scripts import, which would take most
of their time. A trial holds where it

- ends with exit code 0 and no error on stderr, or with 1 and exactly one line, or with 2 and
  argparse's usage and one line; within a minute of computing, by no signal, without a traceback;
- leaves the folder as it was where it failed, but for what is said in ``_may_remain``.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import re
import resource
import runpy
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
COMPUTING = 60  # s of computing that a process may take
TIMEOUT = 600  # s by the clock: the machine may be busy
MEMORY = 6 << 30  # bytes of address space
# what a slow machine adds: lines of progress
PROGRESS = re.compile(r".*: (step|face|picture|frame|patch) [\d,]+")
NO_ERRORS = ("note: ", "warning: ", "libpng ", "Corrupt JPEG data: ")  # the last two: libraries'

SERVER = multiprocessing.get_context("forkserver")
# Nothing among these starts a thread, which a forked process would wait for without end.
SERVER.set_forkserver_preload(
    ["evaluation.robustness", "evaluation.figures", "prediction.predictor", "training.config"]
)

# Around a command; what is said of a full output is said when the work is done.
SURROUNDINGS: dict[str, Callable[[], None]] = {
    "output to a full device": lambda: os.dup2(os.open("/dev/full", os.O_WRONLY), 1) and None,
    "an ASCII terminal": lambda: sys.stdout.reconfigure(encoding="ascii", errors="strict"),
    "files of 8 KiB at most": lambda: _limit(resource.RLIMIT_FSIZE, 8 << 10),
    "20 open files": lambda: _limit(resource.RLIMIT_NOFILE, 20),
}


@dataclass(frozen=True)
class Case:
    """A script, its arguments, and what is done to its folder and surroundings."""

    script: str
    argv: tuple[str, ...]
    path: str = ""  # of a damaged file
    damage: Callable[[Path], object] = field(default=lambda path: None, repr=False)
    what: str = ""  # the damage in words, or one of SURROUNDINGS


def _limit(kind: int, value: int) -> None:
    resource.setrlimit(kind, (value, value))


def _child(script: str, argv: tuple[str, ...], folder: Path, surroundings: str) -> None:
    """What the process does: its exit code and its stderr are all that is known of it."""
    os.setsid()  # signals to a group are its own
    nowhere = os.open(os.devnull, os.O_RDWR)
    errors = os.open(folder.with_suffix(".stderr"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number, stream in enumerate((nowhere, nowhere, errors)):
        os.dup2(stream, number)

    os.chdir(folder)
    os.environ |= {"OMP_NUM_THREADS": "1", "HOME": str(folder.parent)}
    os.environ.pop("SEPBN_SHARED", None)
    _limit(resource.RLIMIT_AS, MEMORY)
    _limit(resource.RLIMIT_CPU, COMPUTING)
    SURROUNDINGS.get(surroundings, lambda: None)()
    sys.argv = [str(ROOT / script), *argv]
    runpy.run_path(sys.argv[0], run_name="__main__")


def start(script: str, argv: tuple[str, ...], folder: Path, surroundings: str = "") -> Any:
    """Start a script in a folder; its stderr goes beside it."""
    process = SERVER.Process(target=_child, args=(script, argv, folder, surroundings))
    process.start()

    return process


def ended(process: Any) -> int:
    """Wait for a process -> its exit code, or minus a signal's number."""
    process.join(TIMEOUT)
    process.kill()
    process.join()

    return process.exitcode


def try_case(case: Case, template: Path, scratch: Path) -> str:
    """Empty where the case held, or else what is wrong."""
    folder = scratch / "trial"
    shutil.copytree(template, folder, symlinks=True)

    try:
        case.damage(folder / case.path)
        before = snapshot(folder)
        code = ended(start(case.script, case.argv, folder, case.what))
        text = folder.with_suffix(".stderr").read_text(errors="backslashreplace")
        return judge(case, code, text, before, snapshot(folder))
    finally:
        for path in (folder, *folder.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o700)
        shutil.rmtree(folder)


def judge(
    case: Case, code: int, text: str, before: dict[str, object], after: dict[str, object]
) -> str:
    """Empty where an end is as it should be, or else what is wrong.

    Args:
        code: exit code, or minus a signal's number.
        text: what was printed to stderr.
        before: the folder's :func:`snapshot`, and ``after``.
    """
    lines = [line for line in text.splitlines() if line.strip() and not PROGRESS.match(line)]
    lines = [line for line in lines if not line.startswith(NO_ERRORS)]
    said = " / ".join(lines)[-300:]

    if "Traceback" in text:
        return f"traceback: {said}"
    if code in (-signal.SIGKILL, -signal.SIGXCPU):
        return "killed, or it would not end"
    if code not in (0, 1, 2):
        return f"exit code {code}: {said}"
    if code == 0:
        return f"exit code 0, yet: {said}" if lines else ""
    if code == 2:
        errors = [line for line in lines if ": error: " in line]
        if not lines or not lines[0].startswith("usage: ") or errors != lines[-1:]:
            return f"exit code 2: {said}"
    elif not _is_one_error(case, lines):
        return f"{len(lines)} lines: {said}"

    changed = [path for path in before | after if before.get(path) != after.get(path)]
    changed = [path for path in changed if not _may_remain(case, path, after)]

    return f"changed {', '.join(changed[:4])} ({said})" if changed else ""


def _is_one_error(case: Case, lines: list[str]) -> bool:
    """One line, but for predict.py, which has one for every picture that it refuses."""
    if case.script == "predict.py" and len(set(lines)) == len(lines) > 0:
        return all(line.startswith("error: ") for line in lines)

    return len(lines) == 1 and lines[0].startswith("error: ")


def _may_remain(case: Case, path: str, after: dict[str, object]) -> bool:
    """What a command that failed may leave behind, as the documentation says."""
    # Patches are decoded once for all later runs; a note says where that is impossible.
    if path.endswith((".patches", ".patches.lock")):
        return True

    # What is computed and whole is not thrown away because the disk, or the output, is full.
    if "output" in case.what or "files of" in case.what:
        return True

    # A report of what was refused, and the other files' results
    if case.script == "predict.py":
        return path == "found" or path.startswith("found/")

    # An unfinished set says so, and the same command carries on.
    marks = {"made": "made/.partial.json", "faces": "faces/synthetic.json"}

    return marks.get(path.split("/")[0], "") in after


def snapshot(folder: Path) -> dict[str, object]:
    """Path -> content's digest, link's target, or kind."""
    found: dict[str, object] = {}

    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        if path.is_symlink():
            content: object = os.readlink(path)
        elif path.is_file():
            readable = mode & 0o400 or os.geteuid() == 0
            content = hashlib.sha1(path.read_bytes()).hexdigest() if readable else mode
        else:
            content = mode
        found[str(path.relative_to(folder))] = content

    return found
