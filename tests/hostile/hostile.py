"""Odd inputs to every command, each judged by rule: a table of what was tried and what held.

    python tests/hostile/hostile.py [--only TEXT] [--every N] [--workers 2] [--fresh]

Every case of hostile_inputs.py runs as a process of its own, in a fresh copy of a small drawn data
set with small networks. Processes are forked from one that has imported torch, which takes most of
their time; those with limits of their own start afresh, and with --fresh all do. A case holds where
it

- ends with exit code 0 and no error on stderr, or with 1 and exactly one line, or with 2 and
  argparse's usage and one line; within a minute of computing, by no signal, without a traceback;
- leaves the folder as it was where it failed, but for what is said in ``_may_remain``.

Randomly damaged checkpoints and pictures then go through the readers themselves, which may refuse
them by an ``UserError`` only, and must be silent.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import os
import random
import re
import resource
import runpy
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.hostile.hostile_inputs import USUAL, Case, all_cases  # noqa: E402
from utils.files import UserError  # noqa: E402
from utils.runtime import progress  # noqa: E402

COMPUTING = 60  # s of computing that a process may take
TIMEOUT = 600  # s by the clock: the machine may be busy
MEMORY = 6 << 30  # bytes of address space for every process
CHUNK = 50  # damaged files that one process reads, so that a crash is noticed
# what a slow machine adds: lines of progress
PROGRESS = re.compile(r".*: (step|face|picture|frame|patch|process) [\d,]+")
PR_CAPBSET_DROP, CAPABILITIES = 24, (1, 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
CAPABILITY_VERSION = 0x20080522


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="cases whose description holds this text")
    parser.add_argument("--every", type=int, default=1, help="of the cases, every so manieth")
    parser.add_argument("--template", type=Path, help="keep the small data set here")
    parser.add_argument("--workers", type=int, default=2, help="processes at once")
    parser.add_argument("--fresh", action="store_true", help="fork nothing: takes much longer")
    parser.add_argument("--checkpoints", type=int, default=1500, help="randomly damaged ones")
    parser.add_argument("--pictures", type=int, default=500, help="randomly damaged ones")
    args = parser.parse_args(argv)
    import_everything()
    failures = 0

    with tempfile.TemporaryDirectory(prefix="hostile_") as name:
        root = Path(name)
        template = args.template or root / "template"
        if not template.exists():
            make_template(template, root)

        cases = [case for case in all_cases() if args.only in f"{case.script} {case.what}"]
        cases = cases[:: args.every]

        verdicts = try_all(cases, template, root, fresh=args.fresh, workers=args.workers)
        failures += report(cases, verdicts)

        for what, count, read, files in (
            (
                "checkpoint",
                args.checkpoints,
                _read_checkpoint,
                sorted(template.glob("checkpoints/*/*.pt")),
            ),
            ("picture", args.pictures, _read_picture, sorted(template.glob("picture.*"))),
        ):
            outcomes = read_damaged(count, read, files, root)
            failures += count - outcomes["loaded"] - outcomes["refused"]
            print(f"\n{count} randomly damaged {what}s:", dict(outcomes))

    return 1 if failures else 0


def make_template(folder: Path, root: Path) -> None:
    """Make the folder that every case gets a copy of; all files it needs, and nothing else."""
    folder.mkdir()

    def run(script: str, *argv: str) -> None:
        subprocess.run(
            [sys.executable, ROOT / script, *argv],
            cwd=folder,
            env=_environment(root),
            check=True,
            stdout=subprocess.DEVNULL,
        )

    run("synthetic/createSynthetic.py", "--out", "faces", "--train", "8", "--test", "4")
    run("dataset/createWFLW256.py", "--wflw", "faces", "--out", "faces256")

    small = ("--data", "faces256", "--width", "4", "--batch-size", "4", "--epochs")
    run("trainBaseline.py", *small, "2", "--run", "bn")
    run("trainBaselineSepDyBN.py", *small, "2", "--sets", "2", "--run", "good")
    _stop_run(folder, root, small)
    _make_pictures(folder)

    (folder / "boxes.csv").write_text("file,x0,y0,x1,y1\npicture.jpg,20,20,90,90\n")
    (folder / "yunet.onnx").write_bytes(b"\x08\x07\x12\x04test" * 20)


def _stop_run(folder: Path, root: Path, small: tuple[str, ...]) -> None:
    """Leave checkpoints/half/last.pt, by SIGTERM as soon as the run is saved."""
    argv = ("--run", "half", "--save-every", "0")
    process = subprocess.Popen(
        [sys.executable, ROOT / "trainBaseline.py", *small, "60", *argv],
        cwd=folder,
        env=_environment(root),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    log = folder / "checkpoints/half/log.csv"
    while process.poll() is None:
        if log.exists() and log.read_text().count("\n") > 2:
            process.terminate()
            process.wait()
        time.sleep(0.01)


def _make_pictures(folder: Path) -> None:
    import cv2
    import numpy as np

    noise = np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    picture = cv2.resize(noise, (160, 120), interpolation=cv2.INTER_CUBIC)

    for suffix in ("jpg", "png", "tif", "bmp", "webp", "ppm", "jp2"):
        cv2.imwrite(str(folder / f"picture.{suffix}"), picture)

    video = cv2.VideoWriter(
        str(folder / "clip.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 25, (160, 120)
    )
    for _ in range(3):
        video.write(picture)

    video.release()


def _environment(root: Path) -> dict[str, str]:
    kept = ("PATH", "LANG", "LD_LIBRARY_PATH")
    own = {"OMP_NUM_THREADS": "1", "HOME": str(root), "MPLCONFIGDIR": str(root / "matplotlib")}

    return {name: os.environ[name] for name in kept if name in os.environ} | own


def import_everything() -> None:
    """What the scripts import, before processes are forked; nothing here starts a thread."""
    import matplotlib.figure  # noqa: F401
    import onnxruntime  # noqa: F401
    import torch.onnx

    import evaluation.robustness  # noqa: F401
    import prediction.predictor  # noqa: F401
    import training.loop  # noqa: F401

    torch.set_num_threads(1)


@dataclass
class Trial:
    """A case that runs."""

    number: int
    case: Case
    folder: Path
    before: dict[str, object]
    began: float


def try_all(
    cases: list[Case], template: Path, root: Path, *, fresh: bool, workers: int
) -> list[str]:
    """Run the cases, so many at once; for each, empty where it held, or else what is wrong."""
    verdicts = [""] * len(cases)
    trials: dict[int, Trial] = {}
    waiting = list(enumerate(cases))[::-1]
    bar = progress(desc="odd inputs", total=len(cases), unit="process")

    while waiting or trials:
        while waiting and len(trials) < workers:
            number, case = waiting.pop()
            folder = Path(tempfile.mkdtemp(dir=root))
            shutil.copytree(template, folder, dirs_exist_ok=True)
            case.prepare(folder)
            trial = Trial(number, case, folder, _snapshot(folder), time.monotonic())
            trials[_start(case, folder, root, fresh=fresh)] = trial

        child, status = os.waitpid(-1, os.WNOHANG)
        if child == 0:
            time.sleep(0.02)
            for late, trial in trials.items():
                if time.monotonic() - trial.began > TIMEOUT:
                    os.kill(late, signal.SIGKILL)
            continue

        bar.update()
        trial = trials.pop(child)
        said = verdicts[trial.number] = _judge(trial, os.waitstatus_to_exitcode(status))
        if said:
            print(f"- {trial.case.script}, {trial.case.what!r}: {said}", flush=True)

        subprocess.run(["chmod", "-R", "u+rwX", trial.folder], stderr=subprocess.DEVNULL)
        shutil.rmtree(trial.folder)
        _said(trial.folder).unlink()

    return verdicts


def _said(folder: Path) -> Path:
    """Where a trial's stderr goes: beside its folder."""
    return folder.with_suffix(".stderr")


def _start(case: Case, folder: Path, root: Path, *, fresh: bool) -> int:
    """Start a case in a forked process, which takes on its arguments, outputs and limits."""
    if child := os.fork():
        return child

    try:
        os.setsid()  # signals to a group are its own
        errors = os.open(_said(folder), os.O_WRONLY | os.O_CREAT)
        nowhere = os.open(os.devnull, os.O_RDWR)
        for number, stream in enumerate((nowhere, nowhere, errors)):
            os.dup2(stream, number)

        os.chdir(folder)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (COMPUTING, COMPUTING))
        os.environ.clear()
        os.environ.update(_environment(root) | case.surroundings)

        if fresh or case.shell or case.surroundings:
            _drop_rights(this_program=False)
            command = [sys.executable, "-B", str(ROOT / case.script), *case.argv]
            os.execvp("bash", ["bash", "-c", f'{case.shell} exec "$0" "$@"', *command])

        _drop_rights(this_program=True)
        _run_script(case)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(99)


def _run_script(case: Case) -> NoReturn:
    sys.argv = [str(ROOT / case.script), *case.argv]
    code: object = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as leaving:
        code = leaving.code
    except BaseException:
        traceback.print_exc()
        code = 1

    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


def _drop_rights(*, this_program: bool) -> None:
    """Root without its right to read and write everything, so that permissions count."""
    if os.geteuid() != 0:
        return

    libc = ctypes.CDLL(None, use_errno=True)
    for capability in CAPABILITIES:
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)

    if this_program:  # of a new program the line above is enough; this one goes on
        header = struct.pack("Ii", CAPABILITY_VERSION, 0)
        sets = ctypes.create_string_buffer(24)
        libc.capget(header, sets)
        words = list(struct.unpack("6I", sets.raw))
        for index in (0, 1):  # effective and permitted
            words[index] &= ~sum(1 << capability for capability in CAPABILITIES)

        libc.capset(header, struct.pack("6I", *words))


def _judge(trial: Trial, code: int) -> str:
    """Empty where the case held, or else what is wrong."""
    case, before, after = trial.case, trial.before, _snapshot(trial.folder)
    text = _said(trial.folder).read_text(errors="backslashreplace")
    lines = [line for line in text.splitlines() if line.strip() and not PROGRESS.match(line)]
    lines = [line for line in lines if not line.startswith(("note: ", "warning: "))]
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
        usage = bool(lines) and lines[0].startswith("usage: ")
        errors = [line for line in lines if ": error: " in line]
        if not usage or len(errors) != 1 or lines[-1] != errors[0]:
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
    marks = {"made": "made/.partial.json", "drawn": "drawn/synthetic.json"}
    folder = path.split("/")[0]

    return marks.get(folder, "") in after


def _snapshot(folder: Path) -> dict[str, object]:
    """Path -> content's digest, link's target, or kind."""
    found: dict[str, object] = {}

    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        if path.is_symlink():
            found[str(path.relative_to(folder))] = os.readlink(path)
        elif path.is_file():
            locked = not mode & 0o400 and os.geteuid() != 0
            content = b"" if locked else path.read_bytes()
            found[str(path.relative_to(folder))] = hashlib.sha1(content).hexdigest()
        else:
            found[str(path.relative_to(folder))] = mode

    return found


def report(cases: list[Case], verdicts: list[str]) -> int:
    """Print tried and held by command; returns how many did not hold."""
    tried = Counter(case.script for case in cases)
    held = Counter(case.script for case, said in zip(cases, verdicts, strict=True) if not said)

    print("\n| command | tried | held |\n|---|---:|---:|")
    for script in USUAL:
        print(f"| {script} | {tried[script]} | {held[script]} |")

    print(f"| all | {tried.total()} | {held.total()} |")

    return tried.total() - held.total()


def damage(data: bytes, noise: random.Random) -> bytes:
    """One of: bits flipped, cut, pieces swapped, a piece overwritten or left out."""
    damaged = bytearray(data)
    size = noise.choice((1, 4, 64, 512, len(data) // 4))
    start, other = (noise.randrange(max(1, len(data) - size)) for _ in range(2))
    first, second = data[start : start + size], data[other : other + size]

    kind = noise.choice(("flip", "cut", "swap", "overwrite", "omit"))
    if kind == "flip":
        for _ in range(noise.choice((1, 3, 30))):
            damaged[noise.randrange(len(damaged))] ^= 1 << noise.randrange(8)
    elif kind == "cut":
        del damaged[noise.randrange(len(damaged)) :]
    elif kind == "swap":
        damaged[start : start + size], damaged[other : other + size] = second, first
    elif kind == "overwrite":
        damaged[start : start + size] = noise.randbytes(size)
    else:
        del damaged[start : start + size]

    return bytes(damaged)


def read_damaged(
    count: int, read: Callable[[Path], object], files: list[Path], root: Path
) -> Counter[str]:
    """Outcomes of reading ``count`` damaged copies: loaded, refused, or what happened instead."""
    outcomes: Counter[str] = Counter()

    starts = range(0, count, CHUNK)
    for start in progress(starts, desc="damaged files", unit="chunk"):
        numbers = range(start, min(start + CHUNK, count))
        noted = root / "outcomes"
        noted.write_text("")
        if child := os.fork():
            status = os.waitpid(child, 0)[1]
        else:
            _read_chunk(numbers, read, files, noted)

        lines = noted.read_text().splitlines()
        outcomes.update(lines)
        if len(lines) < len(numbers):
            outcomes[f"crashed with status {status}"] += len(numbers) - len(lines)

    return outcomes


def _read_chunk(
    numbers: range, read: Callable[[Path], object], files: list[Path], noted: Path
) -> None:
    """In a process of its own, which never returns: a line for every damaged file."""
    path = noted.with_name("damaged")
    said = noted.with_name("said").open("wb", buffering=0)
    os.dup2(said.fileno(), 2)

    with noted.open("a", buffering=1) as outcomes:
        for number in numbers:
            source = files[number % len(files)]
            path.write_bytes(damage(source.read_bytes(), random.Random(number)))
            said.seek(0)
            said.truncate()

            try:
                read(path)
                outcome = "loaded"
            except UserError as error:
                outcome = "refused" if len(str(error).splitlines()) == 1 else "several lines"
            except Exception as error:
                outcome = f"{type(error).__name__} for damage {number} of {source.name}"

            noisy = os.fstat(2).st_size
            outcomes.write(f"{outcome}{' with noise' if noisy else ''}\n")

    os._exit(0)


def _read_checkpoint(path: Path) -> object:
    from models.checkpoint import load_model

    return load_model(path)


def _read_picture(path: Path) -> object:
    from dataset.crop import read_image

    return read_image(path)


if __name__ == "__main__":
    sys.exit(main())
