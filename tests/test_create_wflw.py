"""createWFLW256 through its command line: real faces, synthetic faces, interruption, and everything
that can be wrong.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import refused
from test_crop import plain_square

import dataset.prepare
from dataset.annotations import ATTRIBUTES, list_path, official_list, read_crop_list
from dataset.crop import patch_frame
from utils.files import UserError

SCRIPT = "dataset/createWFLW256.py"
NAMES = ["train", "test", *(f"test_{name}" for name in ATTRIBUTES)]


def check_split(out: Path, split: str, official: Path, images: Path) -> list[list[str]]:
    """Assert that list, landmarks and pixels of a nearest-resampled split are those of the official
    list's lines.
    """
    lines = [line.split() for line in official.read_text().splitlines()]
    points = (len(lines[0]) - 11) // 2
    written = (out / f"WFLW256_{split}.txt").read_text().splitlines()
    assert len(written) == len(lines) == len(list((out / split).iterdir()))

    for index, (fields, row) in enumerate(zip(lines, written, strict=True)):
        *numbers, name = row.split()
        assert name == f"{split}/WFLW{index:04d}.png" and len(numbers) == 2 * points
        image = cv2.imread(str(images / fields[-1]))
        square, left, top = plain_square(image, tuple(map(int, fields[-11:-7])))
        side = len(square)
        xs = [(float(x) - left) * 256 / side for x in fields[0 : 2 * points : 2]]
        ys = [(float(y) - top) * 256 / side for y in fields[1 : 2 * points : 2]]
        assert numbers == list(map(repr, xs + ys))  # to the last digit
        patch = cv2.imread(str(out / name))
        np.testing.assert_array_equal(
            patch, cv2.resize(square, (256, 256), interpolation=cv2.INTER_NEAREST)
        )

    return lines


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`, hidden ones too, but not the patches that a reader decoded."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".patches" not in path.name
    }


def test_real_wflw_faces(shared_data, tmp_path, run_script):
    wflw, out = shared_data / "wflw", tmp_path / "out"
    code, output, errors = run_script(SCRIPT, "--wflw", wflw, "--out", out)
    # on a slow machine stderr has lines of progress
    assert code == 0 and "error" not in errors
    assert "332 train + 131 test faces (463 patches written)" in output

    check_split(out, "train", official_list(wflw, "train"), wflw / "WFLW_images")
    lines = check_split(out, "test", official_list(wflw, "test"), wflw / "WFLW_images")
    rows = (out / "WFLW256_test.txt").read_text().splitlines()
    sizes = []

    for index, name in enumerate(ATTRIBUTES):
        members = [
            row for row, fields in zip(rows, lines, strict=True) if fields[200 + index] == "1"
        ]
        assert (out / f"WFLW256_test_{name}.txt").read_text().splitlines() == members
        sizes.append(len(members))

    assert sizes == [19, 31, 49, 16, 45, 51]
    meta = json.loads((out / "meta.json").read_text())
    assert meta["counts"] == dict(zip(NAMES, [332, 131, *sizes], strict=True))

    described = [meta[name] for name in ("format", "scheme", "num_points", "resample")]
    assert described == [1, "WFLW-98", 98, "nearest"]

    lists = {f"WFLW256_{name}.txt" for name in NAMES}
    assert {path.name for path in out.iterdir()} == {"train", "test", "meta.json", *lists}


def test_synthetic_faces(official_set, prepared_set):
    for split in ("train", "test"):
        source = official_list(official_set, split)
        check_split(prepared_set, split, source, official_set / "WFLW_images")


def test_area_patches_and_their_landmarks(official_set, prepared_set, tmp_path, run_script):
    out = tmp_path / "out"
    options = ("--out", out, "--resample", "area", "--workers", 5)
    assert run_script(SCRIPT, "--wflw", official_set, *options)[::2] == (0, "")
    assert json.loads((out / "meta.json").read_text())["resample"] == "area"

    lines = official_list(official_set, "test").read_text().splitlines()
    plain, area = (read_crop_list(list_path(folder, "test"))[0] for folder in (prepared_set, out))
    for line, points, centred in zip(lines, plain, area, strict=True):
        box = tuple(map(int, line.split()[196:200]))
        half = 128 / patch_frame(box, "area").side  # half a pixel of the image, patch px
        np.testing.assert_allclose(centred, points + half - 0.5, rtol=0, atol=1e-9)


def test_runs_from_anywhere_without_torch(official_set, prepared_set, tmp_path):
    """The one run as a subprocess: relative default output, no torch, both ways to start it."""
    root = Path(__file__).resolve().parent.parent
    check = "import sys, dataset.createWFLW256 as script; script.main(sys.argv[1:]); "
    check += "sys.exit('torch' in sys.modules)"
    command = [sys.executable, "-c", check, "--wflw", official_set]

    environment = os.environ | {"PYTHONPATH": str(root)}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert contents(tmp_path / "dataset" / "WFLW256") == contents(prepared_set)
    command = [sys.executable, root / SCRIPT, "--wflw", official_set]
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    assert (again.returncode, again.stderr) == (0, "")
    assert "already complete, nothing to do" in again.stdout


def test_a_finished_set_is_left_alone(official_set, prepared_set, run_script):
    before = {path: path.stat().st_mtime_ns for path in prepared_set.rglob("*")}
    code, output, errors = run_script(SCRIPT, "--wflw", official_set, "--out", prepared_set)
    assert (code, errors) == (0, "")
    assert "12 train + 8 test faces (already complete, nothing to do)" in output
    assert {path: path.stat().st_mtime_ns for path in prepared_set.rglob("*")} == before

    command = (SCRIPT, "--wflw", official_set, "--out", prepared_set, "--resample", "area")
    assert "holds a set of another resampling" in refused(run_script, *command)
    assert {path: path.stat().st_mtime_ns for path in prepared_set.rglob("*")} == before


def fail_at(number: int, failure: BaseException, real):
    """`real`, whose `number`-th call raises `failure`."""
    calls = []

    def called(*arguments):
        calls.append(1)
        if len(calls) == number:
            raise failure
        return real(*arguments)

    return called


@pytest.mark.parametrize(
    ("where", "failure", "code", "said"),
    [
        ("dataset.prepare.face_patch", KeyboardInterrupt(), 130, "the same command carries on"),
        ("os.replace", OSError(errno.ENOSPC, "No space left"), 1, "cannot write {out}"),
        ("os.replace", OSError(errno.EACCES, "Permission denied"), 1, "cannot write {out}"),
    ],
)
def test_an_interrupted_run_carries_on(
    official_set, prepared_set, tmp_path, run_script, monkeypatch, where, failure, code, said
):
    out = tmp_path / "out"
    command = (SCRIPT, "--wflw", official_set, "--out", out, "--workers", 1)
    real = os.replace if where == "os.replace" else dataset.prepare.face_patch
    with monkeypatch.context() as patched:
        patched.setattr(where, fail_at(9, failure, real))
        found, _, errors = run_script(*command)

    assert found == code and errors.count("\n") == 1 and said.format(out=out) in errors
    (out / "train" / ".WFLW0011.png.7.tmp").touch()  # a killed process leaves its file
    kept = {path: path.stat().st_ino for path in out.rglob("WFLW*.png")}
    assert 7 <= len(kept) < 20 and not list(out.glob("*.txt")) and not (out / "meta.json").exists()
    whole = contents(prepared_set)
    assert all(path.read_bytes() == whole[str(path.relative_to(out))] for path in kept)

    found, output, _ = run_script(*command)
    assert found == 0 and f"({20 - len(kept)} patches written)" in output
    assert {path: path.stat().st_ino for path in kept} == kept
    assert contents(out) == whole


def test_leftovers_of_other_settings_are_not_mixed_in(
    official_set, prepared_set, tmp_path, run_script, monkeypatch
):
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        stop = fail_at(9, UserError("stop"), dataset.prepare.face_patch)
        patched.setattr("dataset.prepare.face_patch", stop)
        options = ("--out", out, "--resample", "area", "--workers", 1)
        assert run_script(SCRIPT, "--wflw", official_set, *options)[0] == 1

    assert list(out.rglob("WFLW*.png"))
    _, output, _ = run_script(SCRIPT, "--wflw", official_set, "--out", out)
    assert "(20 patches written)" in output
    assert contents(out) == contents(prepared_set)


def test_preparing_again_mends_what_is_damaged(official_set, prepared_set, tmp_path, run_script):
    out = tmp_path / "out"
    shutil.copytree(prepared_set, out)
    patch = out / "train" / "WFLW0003.png"
    data = bytearray(patch.read_bytes())
    data[len(data) // 2] ^= 0xFF  # head and tail stay
    patch.write_bytes(data)
    other = cv2.imread(str(out / "test" / "WFLW0002.png"))
    cv2.imwrite(str(out / "test" / "WFLW0002.png"), other[:128])  # a sound PNG of another size
    (out / "test" / "WFLW0004.png").unlink()
    (out / "WFLW256_train.txt").write_text("")
    (out / "WFLW256_test_blur.txt").unlink()
    meta = json.loads((out / "meta.json").read_text())
    (out / "meta.json").write_text(json.dumps({**meta, "counts": None}))
    code, output, _ = run_script(SCRIPT, "--wflw", official_set, "--out", out)

    assert code == 0 and "(3 patches written)" in output
    assert contents(out) == contents(prepared_set)


@pytest.mark.parametrize("text", ["{", "[]", "\x00"])
def test_the_advice_for_a_damaged_meta_file_works(
    official_set, prepared_set, tmp_path, run_script, text
):
    out = tmp_path / "out"
    shutil.copytree(prepared_set, out)
    (out / "meta.json").write_text(text)
    line = refused(run_script, SCRIPT, "--wflw", official_set, "--out", out)
    assert f"delete the folder {out} and run this again" in line


@pytest.fixture
def own_set(official_set, tmp_path) -> Path:
    """A copy of the synthetic data set that a test may damage."""
    return Path(shutil.copytree(official_set, tmp_path / "own"))


def replace_fields(path: Path, line: int, index: slice, values: list[str]) -> str:
    """Change fields of a line (1-based) of a list; returns the line's image name."""
    lines = path.read_text().splitlines()
    fields = lines[line - 1].split()
    fields[index] = values
    lines[line - 1] = " ".join(fields)
    path.write_text("\n".join(lines) + "\n")

    return fields[-1]


@pytest.mark.parametrize(
    ("index", "values", "message"),
    [
        (slice(150, None), [], "line 5: 150 fields, expected 207"),
        (slice(206, 207), ["0--Drawn/lost.png"], "line 5: image"),
    ],
)
def test_a_bad_line_stops_before_any_patch(own_set, run_script, index, values, message):
    replace_fields(official_list(own_set, "test"), 5, index, values)
    assert message in refused(run_script, SCRIPT, "--wflw", own_set, "--out", own_set / "out")
    assert not (own_set / "out").exists()


def test_what_cannot_be_cut_is_named_and_can_be_mended(own_set, prepared_set, run_script):
    path, image = official_list(own_set, "train"), own_set / "WFLW_images/0--Drawn/test_6.png"
    files = {file: file.read_bytes() for file in (path, image)}
    out = own_set.parent / "out"
    command = (SCRIPT, "--wflw", own_set, "--out", out)
    image.write_bytes(b"<html>404</html>")
    assert "list_98pt_rect_attr_test.txt, line 7: image" in refused(run_script, *command)

    image.write_bytes(files[image])
    replace_fields(path, 6, slice(196, 200), ["500", "500", "600", "600"])
    message = "train.txt, line 6: face box 500 500 600 600 lies outside the image of 200 x 200 px"
    assert message in refused(run_script, *command)
    assert {path.suffix for path in out.rglob("*") if path.is_file()} <= {".png", ".json"}
    assert not (out / "meta.json").exists()

    path.write_bytes(files[path])
    assert run_script(*command)[0] == 0
    assert contents(out) == contents(prepared_set)


def test_lists_may_come_through_pipes(official_set, prepared_set, tmp_path, run_script):
    pipes = {}

    for split in ("train", "test"):
        pipes[split] = tmp_path / official_list(official_set, split).name
        os.mkfifo(pipes[split])
        data = official_list(official_set, split).read_bytes()
        # as a shell's <(...): one writer, which is gone when the list was read once
        threading.Thread(target=pipes[split].write_bytes, args=(data,), daemon=True).start()

    arguments = ["--images", official_set / "WFLW_images", "--out", tmp_path / "out"]
    arguments += ["--train-list", pipes["train"], "--test-list", pipes["test"]]
    code, _, errors = run_script(SCRIPT, *arguments)
    assert (code, errors) == (0, "")

    made, expected = contents(tmp_path / "out"), contents(prepared_set)
    sources = [json.loads(files.pop("meta.json"))["source"] for files in (made, expected)]
    assert made == expected
    for split in ("train", "test"):
        assert sources[0][split] == sources[1][split] | {"list": "(pipe)"}


def test_skip_bad_leaves_bad_faces_out_and_names_them(own_set, prepared_set, run_script):
    test_list = official_list(own_set, "test")
    lost, cut = (replace_fields(test_list, line, slice(0, 0), []) for line in (3, 8))
    (own_set / "WFLW_images" / lost).unlink()
    image = own_set / "WFLW_images" / cut
    good = image.read_bytes()
    image.write_bytes(good[: len(good) // 2])
    box = ["500", "500", "600", "600"]
    beside = replace_fields(official_list(own_set, "train"), 6, slice(196, 200), box)

    out = own_set.parent / "out"
    command = (SCRIPT, "--wflw", own_set, "--out", out, "--skip-bad")
    code, output, errors = run_script(*command)
    assert code == 0 and "warning: many points outside the face box" in errors

    left_out = {"train": [f"{beside} (train line 6)"], "test": []}
    for line, fields in enumerate(test_list.read_text().splitlines(), start=1):
        if fields.split()[-1] in (lost, cut):
            left_out["test"].append(f"{fields.split()[-1]} (test line {line})")

    meta = json.loads((out / "meta.json").read_text())
    count = len(left_out["test"])
    assert meta["left_out"] == left_out and meta["counts"]["test"] == 8 - count
    assert f"1 train faces have a bad picture or box and are left out: {beside}" in output
    assert f"{count} test faces have a bad picture or box and are left out" in output

    # the others are what they are without the bad ones
    rows, whole = (
        (folder / "WFLW256_test.txt").read_text().splitlines() for folder in (out, prepared_set)
    )
    assert set(rows) < set(whole) and len(rows) == 8 - count
    assert "nothing to do" in run_script(*command)[1]

    image.write_bytes(good)  # one is mended: its faces come back
    assert "nothing to do" not in run_script(*command)[1]
    assert json.loads((out / "meta.json").read_text())["counts"]["test"] > 8 - count


def test_skip_bad_stops_where_nothing_is_left(own_set, run_script):
    for image in (own_set / "WFLW_images" / "0--Drawn").glob("test_*.png"):
        image.unlink()

    out = own_set.parent / "out"
    line = refused(run_script, SCRIPT, "--wflw", own_set, "--out", out, "--skip-bad")
    assert line.startswith("error: no test face is left to use: ")
    assert not (out / "meta.json").exists()
