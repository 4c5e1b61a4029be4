"""Odd inputs to every command, which hypothesis chooses: option and value, file and damage, name,
surroundings.

    HOSTILE=300 python -m pytest tests/hostile    # 300 for every command instead of a few
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import cv2
import pytest
from conftest import load_script, smooth_noise
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataset.pictures import read_image
from models.checkpoint import load_model
from tests.hostile.trials import SURROUNDINGS, Case, ended, judge, snapshot, start, try_case
from utils.files import UserError

EXAMPLES = int(os.environ.get("HOSTILE", 0))
FEW = {
    "deadline": None,
    "derandomize": not EXAMPLES,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}

DATA = ("--data", "faces256")
BASELINE = (*DATA, *"--run new --width 4 --epochs 1 --batch-size 4".split())
RESUME = (*DATA, *"--run half --width 4 --epochs 60 --batch-size 4 --resume".split())
GOOD = "checkpoints/good/final.pt"
PREDICT = ("picture.jpg", "--checkpoint", GOOD, "--out", "found")
BOXES = (*PREDICT, "--boxes", "boxes.csv")
LIST = "faces/WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_{}.txt"
LISTS = ("--images", "faces/WFLW_images", "--train-list", LIST.format("train"))
LISTS = (*LISTS, "--test-list", LIST.format("test"), "--out", "made")
TRAIN, TEST = "faces256/WFLW256_train.txt", "faces256/WFLW256_test.txt"

# Script -> its usual arguments, each with the files or folders that it reads.
USUAL = {
    "trainBaseline.py": (
        (BASELINE, (TRAIN, "faces256/test/WFLW0001.png", "faces256/meta.json", "checkpoints")),
        ((*BASELINE, "--init", "checkpoints/bn/final.pt"), ("checkpoints/bn/final.pt",)),
        (
            RESUME,
            tuple(f"checkpoints/half/{name}" for name in ("last.pt", "log.csv", "config.json")),
        ),
    ),
    "trainBaselineSepDyBN.py": (((*BASELINE, "--sets", "2", "--init", GOOD), (GOOD, TRAIN)),),
    "test.py": (
        ((GOOD, *DATA, "--out", "results"), (GOOD, TEST, TRAIN, "faces256/meta.json")),
        (DATA, ("checkpoints", "faces256/WFLW256_test_blur.txt")),
    ),
    "predict.py": (
        (BOXES, ("picture.jpg", "boxes.csv", GOOD)),
        (("clip.avi", *PREDICT[1:], "--whole"), ("clip.avi",)),
        ((*PREDICT, "--detector", "yunet.onnx"), ("yunet.onnx",)),
    ),
    "export.py": (((GOOD, "--onnx", "network.onnx"), (GOOD,)),),
    "visualize.py": (((GOOD, *DATA, "--out", "shown"), (GOOD, TEST)),),
    "dataset/createWFLW256.py": (
        (LISTS, (LIST.format("train"), "faces/WFLW_images/test--00")),
        (("--wflw", "faces", "--out", "faces256"), (TEST, "faces256/meta.json")),
    ),
    "synthetic/createSynthetic.py": (
        (("--out", "faces", "--train", "6", "--test", "4"), ("faces/synthetic.json",)),
    ),
}

HUGE = "1" + "0" * 400
NUMBERS = ("", "x", "-1", "0", "1.5", "nan", "inf", "1e300", "1e-320", str(2**63), HUGE)
WORDS = ("", "x", ".", "..", "a/b", "n" * 300, "a\nb", "\udcff", "-x", "cuda:99", "meta")
PLACES = ("absent/absent", "picture.jpg/below", "/dev/full", "/dev/zero", "/proc/self/mem", "")
# any name of bytes
NAMES = st.binary(min_size=1, max_size=255).map(lambda name: name.translate(None, b"/\0"))


def instead(make: Callable[[Path], object]) -> Callable[[Path], object]:
    """Something else in the place of a file or folder."""

    def damage(path: Path) -> None:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        make(path)

    return damage


DAMAGES = {
    "missing": instead(lambda path: None),
    "a folder": instead(Path.mkdir),
    "a loop of links": instead(lambda path: path.symlink_to(path.name)),
    "a link to nothing": instead(lambda path: path.symlink_to("nothing")),
    "a link to /dev/zero": instead(lambda path: path.symlink_to("/dev/zero")),
    "not allowed": lambda path: path.chmod(0),
    "empty": instead(Path.touch),
}
CONTENTS = (
    b"\n\n\n",
    b"[1, 2]",
    b"null",
    b"{}",
    b"[" * 100_000,
    b'{"counts": ' + b"1" * 5000 + b"}",
)
CONTENTS += (b'{"resample": [1], "counts": 3, "scheme": {}, "content": 7, "sets": "x"}',)

# Bits that are flipped, and pieces that are replaced: (where, as a share; length; what comes there)
PLACE = st.floats(0, 1, exclude_max=True)
FLIPS = st.lists(st.tuples(PLACE, st.integers(0, 7)), max_size=8)
PIECES = st.lists(st.tuples(PLACE, st.integers(0, 5000), st.binary(max_size=600)), max_size=3)


def damaged(data: bytes, flips: list, pieces: list) -> bytes:
    changed = bytearray(data)
    for place, bit in flips if data else ():
        changed[int(place * len(data))] ^= 1 << bit
    for place, length, piece in pieces:
        start = int(place * len(changed))
        changed[start : start + length] = piece

    return bytes(changed)


def rewrite(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    """A damage to what a file holds; folders stay."""
    return lambda path: path.is_file() and path.write_bytes(change(path.read_bytes()))


def actions(script: str) -> list[argparse.Action]:
    """The options and arguments of a script that take a value."""
    found: list[argparse.Action] = []

    def look(parser: argparse.ArgumentParser, *_: object) -> None:
        found.extend(action for action in parser._actions if action.nargs != 0)
        parser.exit()

    with mock.patch.object(argparse.ArgumentParser, "parse_args", look), pytest.raises(SystemExit):
        load_script(script).main([])

    return found


@st.composite
def cases(draw: st.DrawFn, script: str) -> Case:
    """A usual command of a script with one thing that is odd."""
    argv, paths = draw(st.sampled_from(USUAL[script]))
    kind = draw(st.sampled_from(("value", "value", "damage", "content", "surroundings")))

    if kind == "surroundings":
        return Case(script, argv, what=draw(st.sampled_from(sorted(SURROUNDINGS))))

    if kind == "value":
        action = draw(st.sampled_from(actions(script)))
        values = st.sampled_from(WORDS + NUMBERS)
        if action.type is Path:
            values = st.one_of(st.sampled_from(PLACES), NAMES.map(os.fsdecode))
        value = draw(values)
        if action.option_strings:
            endless = action.dest == "epochs" and len(value) > 15  # to train for long is no fault
            return Case(script, (*argv, f"{action.option_strings[-1]}={'x' if endless else value}"))
        return Case(script, (value, *argv[1:]))

    path = draw(st.sampled_from(paths))
    if kind == "damage":
        what = draw(st.sampled_from(sorted(DAMAGES)))
        return Case(script, argv, path, DAMAGES[what], what)

    contents = st.one_of(st.sampled_from(CONTENTS), st.binary(max_size=4000))
    flips, pieces = draw(FLIPS), draw(PIECES)
    content = draw(contents) if not flips + pieces else None
    change = rewrite(lambda data: damaged(data, flips, pieces) if content is None else content)

    return Case(script, argv, path, change, f"content {content!r} {flips} {pieces}")


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """The folder that every case gets a copy of: all files it needs, and nothing else."""
    folder = tmp_path_factory.mktemp("hostile") / "template"
    folder.mkdir()
    small = (*DATA, *"--width 4 --batch-size 4 --epochs 2 --run".split())

    for script, *argv in (
        ("synthetic/createSynthetic.py", "--out", "faces", "--train", "8", "--test", "4"),
        ("dataset/createWFLW256.py", "--wflw", "faces", "--out", "faces256"),
        ("trainBaseline.py", *small, "bn"),
        ("trainBaselineSepDyBN.py", *small, "good", "--sets", "2"),
    ):
        said = folder.with_suffix(".stderr")
        assert ended(start(script, tuple(argv), folder)) == 0, said.read_text()

    stopped = start("trainBaseline.py", (*RESUME, "--save-every", "0"), folder)
    log = folder / "checkpoints/half/log.csv"
    while not (log.exists() and log.read_text().count("\n") > 2):
        time.sleep(0.02)
    stopped.terminate()
    assert ended(stopped) == 128 + signal.SIGTERM

    picture = smooth_noise()
    for suffix in ("jpg", "png", "tif", "bmp", "webp", "ppm", "jp2"):
        cv2.imwrite(str(folder / f"picture.{suffix}"), picture)

    code = cv2.VideoWriter_fourcc(*"MJPG")
    video = cv2.VideoWriter(str(folder / "clip.avi"), code, 25, (160, 120))
    for _ in range(3):
        video.write(picture)
    video.release()

    (folder / "boxes.csv").write_text("file,x0,y0,x1,y1\npicture.jpg,20,20,90,90\n")
    (folder / "yunet.onnx").write_bytes(b"\x08\x07\x12\x04test" * 20)

    return folder


@pytest.mark.parametrize("script", USUAL)
def test_an_odd_input_ends_well(template, tmp_path, script):
    @settings(max_examples=EXAMPLES or 3, **FEW)
    @given(case=cases(script))
    def tried(case: Case) -> None:
        assert try_case(case, template, tmp_path) == ""

    tried()


@pytest.mark.parametrize(
    ("pattern", "read"), [("checkpoints/*/final.pt", load_model), ("picture.*", read_image)]
)
def test_a_damaged_file_is_read_or_refused_in_one_line(template, tmp_path, pattern, read):
    @settings(max_examples=5 * EXAMPLES or 40, **FEW)
    @given(source=st.sampled_from(sorted(template.glob(pattern))), flips=FLIPS, pieces=PIECES)
    def tried(source: Path, flips: list, pieces: list) -> None:
        path = tmp_path / source.name
        path.write_bytes(damaged(source.read_bytes(), flips, pieces))
        try:
            read(path)
        except UserError as error:
            assert len(str(error).splitlines()) == 1

    tried()


# --- the judge ----------------------------------------------------------------------------------


USAGE = "usage: test.py [-h]\n               [--data DIR]\ntest.py: error: unknown option\n"
ERROR = "error: what, where, what to do\n"


@pytest.mark.parametrize(
    ("holds", "code", "stderr"),
    [
        (True, 0, "note: held in memory\npatches: face 5 of 10, 1.0 face/s\n"),
        (True, 1, ERROR),
        (True, 2, USAGE),
        (False, 0, "[ERROR:0@0.1] global grfmt_tiff.cpp:117\n"),
        (False, 1, ""),
        (False, 1, "error: one\nerror: two\n"),
        (False, 1, "Traceback (most recent call last):\nKeyError\n"),
        (False, 2, USAGE + "more\n"),
        (False, 3, ERROR),
        (False, -11, ""),
    ],
)
def test_the_judge_lets_nothing_pass_that_it_should_not(holds, code, stderr):
    assert (judge(Case("test.py", ()), code, stderr, {}, {}) == "") == holds


def test_a_failure_must_leave_everything_as_it_was(tmp_path):
    (tmp_path / "data").write_text("as before")
    before = snapshot(tmp_path)
    test, prepare = Case("test.py", ()), Case("dataset/createWFLW256.py", ())
    assert judge(test, 1, ERROR, before, snapshot(tmp_path)) == ""

    for change in ("changed", None):
        (tmp_path / "data").write_text(change) if change else (tmp_path / "data").unlink()
        assert "changed data" in judge(test, 1, ERROR, before, snapshot(tmp_path))

    (tmp_path / "made").mkdir()
    assert "made" in judge(prepare, 1, ERROR, before, snapshot(tmp_path))
