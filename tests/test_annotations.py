"""Official lists and crop lists: what is read, and one line with file and line number for what
cannot be.
"""

from __future__ import annotations

import numpy as np
import pytest

from dataset.annotations import read_crop_list, read_official_list, write_crop_list
from utils.files import UserError


def official_fields(points: int = 98, *, seed: int = 0) -> list[str]:
    coordinates = np.random.default_rng(seed).uniform(-20, 300, 2 * points)
    rest = ["10", "20", "130", "141", "0", "1", "0", "0", "1", "0", "1--Event/a.jpg"]
    return [*(f"{value:.6f}" for value in coordinates), *rest]


def write_list(path, *lines: list[str]):
    path.write_text("".join(" ".join(fields) + "\n" for fields in lines))
    return path


def test_windows_line_ends_and_blank_lines_do_no_harm(tmp_path):
    path, line = tmp_path / "list.txt", " ".join(official_fields()).encode()
    path.write_bytes(b"\xef\xbb\xbf" + line + b" \r\n\r\n" + line + b"\r\n \n")
    faces = read_official_list(path)
    assert [(face.image, face.line) for face in faces] == [("1--Event/a.jpg", n) for n in (1, 3)]


@pytest.mark.parametrize("points", [98, 68])
@pytest.mark.parametrize("name", ["1--Event/a  b c.jpg", "7 of 9.jpg", "a 0 1.png"])
def test_image_names_may_hold_spaces(tmp_path, points, name):
    fields = official_fields(points)
    path = write_list(tmp_path / "list.txt", [*fields[:-1], name], fields)
    first, second = read_official_list(path)
    assert (first.image, second.image) == (name, fields[-1])
    assert first.box == second.box and first.attributes == second.attributes
    assert np.array_equal(first.landmarks, second.landmarks)


def with_field(index: int, value: str) -> list[str]:
    fields = official_fields()
    fields[index] = value
    return fields


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (official_fields()[:-1], "206 fields, expected 207"),
        (["1.5", *official_fields()], "208 fields, expected 207"),
        (official_fields(68), "68 points, but line 1 has 98"),
        (with_field(7, "nan"), "'nan' is no coordinate"),
        (with_field(7, "1e300"), "'1e300' is no coordinate (expected a number up to 1,000,000)"),
        (with_field(197, "left"), "'left' is no coordinate"),
        (with_field(196, "10.5"), "face box 10.5 20 130 141 is not in whole pixels"),
        (with_field(198, "9"), "face box 10 20 9 141 has no area"),
        (with_field(198, "99999"), "larger than"),
        (with_field(200, "2"), "attribute largepose is '2', expected 0 or 1"),
    ],
)
def test_a_bad_official_line_is_named(tmp_path, line, message):
    path = write_list(tmp_path / "list.txt", official_fields(), line, official_fields())
    with pytest.raises(UserError) as caught:
        read_official_list(path)
    assert str(caught.value).startswith(f"{path}, line 2: ") and message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_official_list_is_refused(tmp_path, content):
    path = tmp_path / "list.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match="is empty"):
        read_official_list(path)


@pytest.mark.parametrize("read", [read_official_list, read_crop_list])
def test_files_that_are_no_lists(tmp_path, read):
    with pytest.raises(UserError, match="does not exist"):
        read(tmp_path / "missing.txt")
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path)
    (tmp_path / "picture.txt").write_bytes(b"\x89PNG\r\n\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8 text"):
        read(tmp_path / "picture.txt")


@pytest.fixture
def patches(tmp_path):
    (tmp_path / "test").mkdir()
    names = [f"test/WFLW000{i}.png" for i in range(3)]
    for name in names:
        (tmp_path / name).touch()
    return names


@pytest.mark.parametrize("points", [98, 68])
def test_crop_list_round_trip_is_exact(tmp_path, patches, points):
    landmarks = np.random.default_rng(0).normal(128, 1e3, (3, points, 2)) / 3
    landmarks[0, 0] = (-0.0, 1e-17)
    write_crop_list(tmp_path / "list.txt", landmarks, patches)
    got, paths = read_crop_list(tmp_path / "list.txt")

    assert got.dtype == np.float64
    np.testing.assert_array_equal(got, landmarks)
    assert paths == [tmp_path.resolve() / name for name in patches]

    fields = (tmp_path / "list.txt").read_text().splitlines()[1].split()
    assert len(fields) == 2 * points + 1 and fields[-1] == "test/WFLW0001.png"
    blocks = [*landmarks[1, :, 0], *landmarks[1, :, 1]]  # all x, then all y
    assert [float(field) for field in fields[:-1]] == blocks


def test_crop_list_with_absolute_paths_and_spaces(tmp_path, patches):
    folder = tmp_path / "some body's disk"
    folder.mkdir()
    (folder / "a face.png").touch()
    write_crop_list(
        folder / "list.txt", np.zeros((2, 98, 2)), [folder / "a face.png", tmp_path / patches[0]]
    )
    _, paths = read_crop_list(folder / "list.txt")
    assert paths == [folder / "a face.png", tmp_path / patches[0]]


def test_an_empty_crop_list_is_an_empty_subset(tmp_path):
    write_crop_list(tmp_path / "list.txt", np.zeros((0, 98, 2)), [])
    landmarks, paths = read_crop_list(tmp_path / "list.txt")
    assert landmarks.shape[0] == 0 and paths == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["1.5"] * 196, "196 fields, expected 196 coordinates and the patch's path"),
        (["1.5"] * 100 + ["x1"] + ["1.5"] * 95 + ["test/WFLW0000.png"], "'x1' is no coordinate"),
        (["1.5"] * 100 + ["inf"] + ["1.5"] * 95 + ["test/WFLW0000.png"], "'inf' is no coordinate"),
        (["1.5"] * 197 + ["test/WFLW0000.png"], "1.5 test/WFLW0000.png does not exist"),
        (["1.5"] * 196 + ["test/WFLW0009.png"], "test/WFLW0009.png does not exist"),
    ],
)
def test_a_bad_crop_line_is_named(tmp_path, patches, line, message):
    path = write_list(tmp_path / "list.txt", ["1.5"] * 196 + [patches[0]], line)
    with pytest.raises(UserError) as caught:
        read_crop_list(path)
    assert str(caught.value).startswith(f"{path}, line 2: ") and message in str(caught.value)


def test_a_first_crop_line_of_no_known_scheme_is_named(tmp_path, patches):
    path = write_list(tmp_path / "list.txt", ["1.5"] * 195 + [patches[0]])
    with pytest.raises(UserError, match="line 1: 195 numbers before the patch's path, expected"):
        read_crop_list(path)
