"""Prepared folders: what is read, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import write_checkpoint

from dataset.annotations import ATTRIBUTES
from dataset.faces import central_crops, load_faces
from utils.files import UserError


@pytest.fixture
def folder(prepared_set, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(prepared_set, tmp_path / "data")


def test_pixels_are_rgb_and_landmarks_those_of_the_list(prepared_set):
    faces = load_faces(prepared_set, "test")
    assert len(faces) == 8 and faces.scheme.num_points == 98

    line = (prepared_set / "WFLW256_test.txt").read_text().splitlines()[3].split()
    expected = np.array(line[:196], float).reshape(2, 98).T
    assert np.allclose(faces.landmarks[3], expected, atol=1e-4)

    picture = cv2.imread(str(prepared_set / line[196]))
    assert np.array_equal(faces.patches[3].numpy(), picture[:, :, ::-1])

    crop = central_crops(faces.patches[3:4])
    assert torch.equal(
        crop[0, 0], (torch.tensor(picture[64:192, 64:192, 2].astype(np.float32)) - 127.5) / 128
    )
    assert torch.equal(faces.crop_landmarks(), faces.landmarks - 64)


def test_attributes_are_memberships_in_the_subset_lists(prepared_set, official_set):
    faces = load_faces(prepared_set, "test")
    source = (
        official_set
        / "WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_test.txt"
    )
    flags = [line.split()[200:206] for line in source.read_text().splitlines()]
    assert np.array_equal(faces.attributes, np.array(flags, int).astype(bool))
    assert faces.attributes.any() and not faces.attributes.all()


@pytest.fixture
def released_folder(prepared_set, tmp_path) -> Path:
    """The prepared faces as the released code writes them: absolute paths, subset lists that name
    copies of the patches and have no "test" in their names, no meta.json.
    """
    folder = tmp_path / "released"

    for name in ("train", "test", *ATTRIBUTES):
        own = name if name in ("train", "test") else f"test_{name}"
        (folder / name).mkdir(parents=True)
        lines = []

        for line in (prepared_set / f"WFLW256_{own}.txt").read_text().splitlines():
            *numbers, patch = line.split()
            copy = shutil.copy(prepared_set / patch, folder / name)
            lines.append(" ".join([*numbers, copy]) + "\n")

        (folder / f"WFLW256_{name}.txt").write_text("".join(lines))

    return folder


def test_a_folder_of_the_released_code_keeps_its_subsets(
    released_folder, prepared_set, tmp_path, run_script
):
    expected = load_faces(prepared_set, "test").attributes
    assert np.array_equal(load_faces(released_folder, "test").attributes, expected)
    assert not load_faces(released_folder, "train").attributes.any()

    final = write_checkpoint(tmp_path / "run" / "final.pt")
    tables = []
    for folder in (prepared_set, released_folder):
        code, output, errors = run_script("test.py", final, "--data", folder)
        assert (code, "warning" in errors) == (0, False), errors
        tables.append([line for line in output.splitlines() if "NME %" in line])

    assert tables[0] == tables[1] and len(tables[0]) == 2


def test_a_folder_without_subset_lists_says_so(released_folder, tmp_path, run_script):
    final = write_checkpoint(tmp_path / "run" / "final.pt")
    for name in ("blur", "makeup"):
        (released_folder / f"WFLW256_{name}.txt").unlink()

    code, output, errors = run_script("test.py", final, "--data", released_folder)
    assert code == 0 and errors.count("warning") == 1
    assert "so their columns stay empty: makeup, blur (WFLW256_test_<subset>.txt" in errors
    assert "largepose (" in output and "blur (0)" in output


def test_the_mean_shape_is_that_of_the_faces_taken(prepared_set):
    some, everything = load_faces(prepared_set, "train", limit=5), load_faces(prepared_set, "train")
    assert torch.allclose(some.mean_shape(), everything.landmarks[:5].mean(dim=0) - 64, atol=1e-3)


SMALL = cv2.imencode(".png", np.zeros((128, 256, 3), np.uint8))[1].tobytes()
SPOILED = {
    r"WFLW256_train.txt.*3.*WFLW0002.png": ("train/WFLW0002.png", None),
    r"train.txt, line 5: .*WFLW0004.png is no picture of 256 x 256": ("train/WFLW0004.png", SMALL),
    r"train.txt, line 2: .*WFLW0001.png is no picture": ("train/WFLW0001.png", b"no picture"),
    r"WFLW256_test.txt is empty": ("WFLW256_test.txt", b""),
    r"test_blur.txt: WFLW0000.png is not in WFLW256_test.txt": ("WFLW256_test_blur.txt", b"TRAIN"),
}


@pytest.mark.parametrize(("words", "file"), SPOILED.items())
def test_what_is_wrong_with_a_prepared_folder_is_named(folder, words, file):
    path, content = folder / file[0], file[1]
    if content == b"TRAIN":  # a face of the other list
        content = (folder / "WFLW256_train.txt").read_bytes().splitlines(keepends=True)[0]

    path.unlink()
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(UserError, match=words):
        load_faces(folder, "train" if "train" in file[0] else "test")
