"""Odd inputs by rule, for tests/hostile/hostile.py: which option gets which value, which file which
damage.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

HUGE = "1" + "0" * 400
WHOLE = ("", "x", "-1", "0", "1.5", "nan", str(2**63), HUGE)
REAL = ("", "x", "-1", "nan", "inf", "1e300", "1e-320", HUGE)
NAMES = {
    "of 300 characters": "n" * 300,
    "with blanks and quotes": 'it\'s a "name" $HOME',
    "with a line break": "two\nlines",
    "not UTF-8": os.fsdecode(b"latin\xff1"),
    "empty": "",
    "below a file": "picture.jpg/below",
    "absent": "absent/absent",
    "the root": "/",
    "a full device": "/dev/full",
    "an endless device": "/dev/zero",
    "of the kernel": "/proc/self/mem",
}


@dataclass(frozen=True)
class Case:
    """One process: a script, its arguments, and what is done to its folder and surroundings."""

    script: str
    what: str
    argv: tuple[str, ...]
    prepare: Callable[[Path], None] = lambda folder: None
    surroundings: dict[str, str] = field(default_factory=dict)
    shell: str = ""  # limits set before, or what is done with the outputs


def _replace(data: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(data(path.read_bytes())) and None


def _instead(make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Something else in the place of the file or folder."""

    def damage(path: Path) -> None:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        make(path)

    return damage


def _flipped(data: bytes) -> bytes:
    noise = random.Random(0)
    damaged = bytearray(data)
    for _ in range(8):
        damaged[noise.randrange(len(damaged))] ^= 1 << noise.randrange(8)

    return bytes(damaged)


def _bind_socket(path: Path) -> None:
    before = os.getcwd()
    os.chdir(path.parent)  # a socket's path may have 107 characters only
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(before)


INSTEAD = {
    "missing": _instead(lambda path: None),
    "a loop of links": _instead(lambda path: path.symlink_to(path.name)),
    "a link to nothing": _instead(lambda path: path.symlink_to("nothing")),
    "a link to /dev/null": _instead(lambda path: path.symlink_to(os.devnull)),
    "a link to /dev/zero": _instead(lambda path: path.symlink_to("/dev/zero")),
    "a socket": _instead(_bind_socket),
    "not allowed": lambda path: path.chmod(0),
}

DAMAGES = INSTEAD | {
    "a folder": _instead(Path.mkdir),
    "empty": _replace(lambda data: b""),
    "binary": _replace(lambda data: random.Random(1).randbytes(4096)),
    "cut in half": _replace(lambda data: data[: len(data) // 2]),
    "flipped bits": _replace(_flipped),
    "zeros": _replace(lambda data: bytes(len(data))),
    "not UTF-8": _replace(lambda data: data[:20] + b"\xff\xfe" + data[20:]),
    "line breaks": _replace(lambda data: b"\n\n\n"),
}

JSON_DAMAGES = {
    "a JSON list": _replace(lambda data: b"[1, 2]"),
    "JSON null": _replace(lambda data: b"null"),
    "an empty JSON object": _replace(lambda data: b"{}"),
    "deep JSON": _replace(lambda data: b"[" * 100_000),
    "JSON with other kinds": _replace(
        lambda data: b'{"resample": [1], "counts": 3, "scheme": {}, "content": 7, "sets": "x"}'
    ),
    "a JSON number of 5,000 digits": _replace(lambda data: b'{"resample": ' + b"1" * 5000 + b"}"),
}

FOLDER_DAMAGES = INSTEAD | {
    "a file": _instead(Path.touch),
    "an empty folder": _instead(Path.mkdir),
    "not to be written": lambda path: path.chmod(0o555),
    "not to be entered": lambda path: path.chmod(0o444),
}

# Limits and outputs, around every command.
SURROUNDINGS = {
    "output to a full device": "exec >/dev/full;",
    "closed output": "exec >&-;",
    "closed input and output": "exec <&- >&-;",
    "files of 8 KiB at most": "ulimit -f 8;",
    "1 GB of address space": "ulimit -v 1000000;",
    "20 open files": "ulimit -n 20;",
}

DATA = ("--data", "faces256")
BASELINE = (*DATA, "--run", "new", "--width", "4", "--epochs", "1", "--batch-size", "4")
SEPBN = (*BASELINE, "--sets", "2", "--groups", "2")
RESUME = (*DATA, "--run", "half", "--width", "4", "--epochs", "60", "--batch-size", "4", "--resume")
GOOD = "checkpoints/good/final.pt"
PREDICT = ("picture.jpg", "--checkpoint", GOOD, "--out", "found")
BOXES = (*PREDICT, "--boxes", "boxes.csv")
OFFICIAL = "faces/WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_"
LISTS = ("--images", "faces/WFLW_images", "--train-list", f"{OFFICIAL}train.txt")
LISTS = (*LISTS, "--test-list", f"{OFFICIAL}test.txt", "--out", "made")
PICTURE = "faces/WFLW_images/train--00/train_00000.jpg"

USUAL = {
    "trainBaseline.py": BASELINE,
    "trainBaselineSepDyBN.py": SEPBN,
    "test.py": (GOOD, *DATA, "--out", "results"),
    "predict.py": BOXES,
    "export.py": (GOOD, "--onnx", "network.onnx"),
    "visualize.py": (GOOD, *DATA, "--out", "shown"),
    "dataset/createWFLW256.py": LISTS,
    "synthetic/createSynthetic.py": ("--out", "drawn", "--train", "1", "--test", "1"),
}

# Options with values of a kind. An --epochs without end is no fault, so it gets none too large.
NUMBERS = {
    "trainBaseline.py": {
        **dict.fromkeys(("--width", "--batch-size", "--seed", "--limit"), WHOLE),
        **dict.fromkeys(("--eval-every", "--keep-every"), WHOLE),
        "--epochs": WHOLE[:-2],
        **dict.fromkeys(("--lr", "--momentum", "--weight-decay"), REAL),
        **dict.fromkeys(("--warmup-epochs", "--save-every"), REAL),
        **dict.fromkeys(("--norm", "--precision", "--device"), ("", "x", "cuda:99", "meta")),
        "--run": ("", ".", "..", "a/b", "/tmp", "n" * 300, "a\nb", "\udcff", "-x"),
    },
    "trainBaselineSepDyBN.py": {
        **dict.fromkeys(("--sets", "--groups", "--attention-grid"), WHOLE),
        "--temperature": REAL,
    },
    "test.py": {"--batch-size": WHOLE, "--device": ("", "x", "cuda:99", "meta")},
    "predict.py": {"--batch-size": WHOLE, "--device": ("", "x"), "--format": ("", "x")},
    "visualize.py": {"--device": ("", "x", "cuda:99", "meta")},
    "dataset/createWFLW256.py": {"--workers": WHOLE, "--resample": ("", "x")},
    "synthetic/createSynthetic.py": {
        **dict.fromkeys(("--train", "--test", "--seed", "--workers"), WHOLE),
        "--without": ("", "x"),
    },
}

TRAIN_LIST, TEST_LIST = "faces256/WFLW256_train.txt", "faces256/WFLW256_test.txt"
BLUR_LIST, PATCH = "faces256/WFLW256_test_blur.txt", "faces256/test/WFLW0001.png"
STORE, META = "faces256/WFLW256_test.patches", "faces256/meta.json"

# Files that a command reads: (its arguments, the file).
FILES = {
    "trainBaseline.py": (
        *((BASELINE, path) for path in (TRAIN_LIST, PATCH, STORE)),
        ((*BASELINE, "--init", "checkpoints/bn/final.pt"), "checkpoints/bn/final.pt"),
        (RESUME, "checkpoints/half/last.pt"),
        (RESUME, "checkpoints/half/log.csv"),
    ),
    "trainBaselineSepDyBN.py": (((*SEPBN, "--init", GOOD), GOOD),),
    "test.py": tuple((USUAL["test.py"], path) for path in (GOOD, TEST_LIST, TRAIN_LIST, BLUR_LIST)),
    "predict.py": (
        *((BOXES, path) for path in ("picture.jpg", GOOD, "boxes.csv")),
        (("clip.avi", *BOXES[1:-2], "--whole"), "clip.avi"),
        ((*PREDICT, "--detector", "yunet.onnx"), "yunet.onnx"),
    ),
    "export.py": ((USUAL["export.py"], GOOD),),
    "visualize.py": tuple((USUAL["visualize.py"], path) for path in (GOOD, TEST_LIST)),
    "dataset/createWFLW256.py": (
        *((LISTS, path) for path in (f"{OFFICIAL}train.txt", PICTURE)),
        (("--wflw", "faces", "--out", "faces256"), TEST_LIST),
    ),
}

# JSON files: damaged in more ways.
JSON_FILES = {
    "trainBaseline.py": (
        (BASELINE, META),
        ((*RESUME, "--norm", "none"), "checkpoints/half/config.json"),
    ),
    "test.py": ((USUAL["test.py"], META),),
    "dataset/createWFLW256.py": ((("--wflw", "faces", "--out", "faces256"), META),),
    "synthetic/createSynthetic.py": (
        (("--out", "faces", "--train", "6", "--test", "4"), "faces/synthetic.json"),
    ),
}

FOLDERS = {
    "trainBaseline.py": ((BASELINE, "faces256"), (BASELINE, "checkpoints")),
    "test.py": (((*DATA,), "checkpoints"), (USUAL["test.py"], "faces256/test")),
    "predict.py": (
        ((*PREDICT[1:], "--whole", "faces/WFLW_images/test--00"), "faces/WFLW_images/test--00"),
    ),
    "dataset/createWFLW256.py": (
        (LISTS, "faces/WFLW_images"),
        (LISTS, "faces/WFLW_images/test--00"),
    ),
}

# Options that take a path, read or written, which gets odd names.
PATHS = {
    "trainBaseline.py": ("--data", "--init"),
    "test.py": ("--data", "--out"),
    "predict.py": ("--checkpoint", "--boxes", "--detector", "--out"),
    "export.py": ("--onnx",),
    "visualize.py": ("--data", "--out"),
    "dataset/createWFLW256.py": ("--wflw", "--train-list", "--out"),
    "synthetic/createSynthetic.py": ("--out",),
}
FIRST = ("test.py", "predict.py", "export.py", "visualize.py")  # a path without an option


def all_cases() -> Iterator[Case]:
    """Every command with every rule that concerns it."""
    for script, usual in USUAL.items():
        for shell, limit in SURROUNDINGS.items():
            yield Case(script, shell, usual, shell=limit)

        yield Case(script, "an ASCII terminal", usual, surroundings={"PYTHONIOENCODING": "ascii"})
        yield Case(script, "an unknown option", (*usual, "--no-such-option"))
        yield Case(script, "no arguments", ())

        for option, values in NUMBERS.get(script, {}).items():
            for value in values:
                yield Case(script, f"{option} {_short(value)}", _with(usual, option, value))

        for option in PATHS.get(script, ()):
            for what, name in NAMES.items():
                argv = _with(usual, option, name)
                yield Case(script, f"{option}: a name {what}", argv)

        if script in FIRST:
            for what, name in NAMES.items():
                yield Case(script, f"a name {what}", (name, *usual[1:]))

        for table, damages in (
            (FILES, DAMAGES),
            (JSON_FILES, DAMAGES | JSON_DAMAGES),
            (FOLDERS, FOLDER_DAMAGES),
        ):
            for argv, path in table.get(script, ()):
                for what, damage in damages.items():
                    yield Case(script, f"{path}: {what}", argv, _at(path, damage))

    for variables in ({"WORLD_SIZE": "2"}, {"WORLD_SIZE": "x"}, {"WORLD_SIZE": "2", "RANK": "x"}):
        what = " ".join(f"{name}={value}" for name, value in variables.items())
        yield Case("trainBaseline.py", what, BASELINE, surroundings=variables)


def _at(path: str, damage: Callable[[Path], None]) -> Callable[[Path], None]:
    return lambda folder: damage(folder / path)


def _with(usual: tuple[str, ...], option: str, value: str) -> tuple[str, ...]:
    """The usual arguments with another value of an option."""
    argv = list(usual)
    rivals = {"--wflw": LISTS[:6], "--detector": BOXES[-2:]}.get(option, ())
    argv = [word for word in argv if word not in rivals]
    if option in argv:
        del argv[argv.index(option) : argv.index(option) + 2]

    # As one word, since a value may begin with a dash
    return (*argv, f"{option}={value}") if option != "--without" else (*argv, option, value)


def _short(value: str) -> str:
    return repr(value) if len(value) < 30 else f"{value[:3]!r}… ({len(value)} characters)"
