"""Labels that cannot be right are said: faults of many kinds, made at random from good synthetic
faces, and no false alarm on good ones.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import load_script, write_checkpoint

from dataset.annotations import official_list, read_crop_list, read_official_list
from dataset.labels import doubtful_labels
from dataset.landmarks import to_ibug_68
from dataset.sources import SPLITS, read_lists
from prediction.outputs import write_pts
from utils.files import UserError

PREPARE = "dataset/createWFLW256.py"
FACES = {"train": 12, "test": 6}


@pytest.fixture(scope="session")
def synthetic_faces(tmp_path_factory) -> Path:
    """Synthetic faces in WFLW's layout: heads of any pose, landmarks true by construction."""
    folder = tmp_path_factory.mktemp("labels") / "faces"
    counts = [option for split in SPLITS for option in (f"--{split}", str(FACES[split]))]
    script = load_script("synthetic/createSynthetic.py")
    assert script.main(["--out", str(folder), *counts, "--workers", "1"]) == 0

    return folder


@pytest.fixture(params=[98, 68])
def lists(request, synthetic_faces, tmp_path) -> dict[str, Path]:
    """Lists of the synthetic faces with 98 or with 68 points, which a test may spoil."""
    paths = {}

    for split in SPLITS:
        paths[split] = tmp_path / f"{split}.txt"
        lines = []
        for face in read_official_list(official_list(synthetic_faces, split)):
            points = face.landmarks if request.param == 98 else to_ibug_68(face.landmarks)
            lines.append(official_line(points, face.box, face.image))

        paths[split].write_text("".join(lines))

    return paths


def official_line(points: np.ndarray, box, image: str) -> str:
    return (
        " ".join([*map(repr, np.ravel(points).tolist()), *map(str, box), *"000000", image]) + "\n"
    )


def doubts(synthetic_faces: Path, lists: dict[str, Path]) -> list[str]:
    return doubtful_labels(read_lists(synthetic_faces / "WFLW_images", lists))


def test_no_false_alarm_on_synthetic_faces(synthetic_faces, lists):
    assert doubts(synthetic_faces, lists) == []


def test_no_false_alarm_on_real_faces(shared_data):
    """332 + 131 faces of WFLW with 98 points, 870 + 337 of Helen and AFW with 68."""
    wflw, w300 = shared_data / "wflw", shared_data / "w300_68pt"
    helen = {split: w300 / f"list_68pt_rect_attr_{split}.txt" for split in SPLITS}
    sources = [
        read_lists(wflw / "WFLW_images", {split: official_list(wflw, split) for split in SPLITS}),
        read_lists(w300 / "images", helen),
    ]

    assert [len(source.faces[split]) for source in sources for split in SPLITS] == [
        *(332, 131),
        *(870, 337),
    ]
    assert [doubtful_labels(source) for source in sources] == [[], []]


def swap(box) -> list[int]:
    left, top, right, bottom = box
    return [left, right, top, bottom]


# What is made of a face's points and box by a slip; `rng` chooses where and how much.
FAULTS = {
    "shares of the picture": lambda p, b, rng: (p / rng.uniform(300, 1000), b),
    "shares of the box": lambda p, b, rng: ((p - b[:2]) / (b[2] - b[0]), b),
    "a tenth": lambda p, b, rng: (p / 10, b),
    "of a picture n times as large": lambda p, b, rng: (p * rng.choice([0.25, 0.5, 2, 3]), b),
    "of a picture twice as large, and its box": lambda p, b, rng: (2 * p, 2 * b),
    "relative to a box far in the picture": lambda p, b, rng: (p - (b[2] - b[0]), b),
    "shifted": lambda p, b, rng: (p + rng.choice([-1, 1], 2) * 0.6 * (b[2] - b[0]), b),
    "negative": lambda p, b, rng: (-p - 10, b),
    "a missing point as 0": lambda p, b, rng: (with_point(p, rng, 0), b),
    "a missing point as -1": lambda p, b, rng: (with_point(p, rng, -1), b),
    "all missing": lambda p, b, rng: (0 * p, b),
    "one point far off": lambda p, b, rng: (with_point(p, rng, 10 * p.max()), b),
    "x and y exchanged": lambda p, b, rng: (p[:, ::-1], b[[1, 0, 3, 2]]),
    "x and y of points exchanged": lambda p, b, rng: (p[:, ::-1] - p[0, ::-1] + p[0], b),
    "all x before all y": lambda p, b, rng: (p.T.reshape(-1, 2), b),
    "a coordinate too early": lambda p, b, rng: (np.roll(p, 1).reshape(-1, 2), b),
    "a point too early": lambda p, b, rng: (np.roll(p, 1, axis=0), b),
    "numbered from 1, the first lost": lambda p, b, rng: (p[[*range(1, len(p)), -1]], b),
    "numbered backwards": lambda p, b, rng: (p[::-1], b),
    "in any order": lambda p, b, rng: (rng.permutation(p), b),
    "of a mirrored picture": lambda p, b, rng: (p * [-1, 1] + [b[0] + b[2], 0], b),
    "y upwards": lambda p, b, rng: (p * [1, -1] + [0, b[1] + b[3]], b),
    "of a picture upside down": lambda p, b, rng: (b[:2] + b[2:] - p, b),
    "narrow": lambda p, b, rng: (p * [0.3, 1], b),
    "x0 x1 y0 y1": lambda p, b, rng: (p + [60, 0], swap(b + [60, 0, 60, 0])),
    "x y width height": lambda p, b, rng: (p, [*b[:2], *(b[2:] - b[:2] + 1)]),
    "a box of three sides": lambda p, b, rng: (p, [*(b[:2] - b[2:] + b[:2]), *(2 * b[2:] - b[:2])]),
    "a box of a brow": lambda p, b, rng: (p, [*p[33].astype(int), *(p[33].astype(int) + 15)]),
    "another face's box": lambda p, b, rng: (p, b + 3 * (b[2] - b[0]) // 4),
    "one corner twice": lambda p, b, rng: (p, [*b[:2], b[0] + 1, b[1] + 1]),
    "eye corners in one place": lambda p, b, rng: (with_eyes(p), b),
}


def with_point(points: np.ndarray, rng, value: float) -> np.ndarray:
    points = points.copy()
    points[rng.integers(len(points))] = value

    return points


def with_eyes(points: np.ndarray) -> np.ndarray:
    points = points.copy()
    left, right = (60, 72) if len(points) == 98 else (36, 45)
    points[right] = points[left]

    return points


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_refused_or_said(synthetic_faces, lists, fault):
    rng = np.random.default_rng(len(fault))
    split = rng.choice(SPLITS)
    lines = lists[split].read_text().splitlines(keepends=True)
    number = rng.integers(len(lines))
    face = read_official_list(lists[split])[number]
    points, box = FAULTS[fault](face.landmarks, np.array(face.box), rng)
    lines[number] = official_line(points, np.array(box).tolist(), face.image)
    lists[split].write_text("".join(lines))

    try:
        (said,) = doubts(synthetic_faces, lists)
    except UserError as error:
        assert f"{split}.txt, line {number + 1}: " in str(error)
    else:
        assert said.endswith(f", in 1 of 18 faces: {face.image} ({split} line {number + 1})")


def test_the_same_face_and_the_same_picture(synthetic_faces, lists):
    train, test = (lists[split].read_text().splitlines(keepends=True) for split in SPLITS)
    picture = synthetic_faces / "WFLW_images" / test[2].split()[-1]
    copy = shutil.copy(picture, picture.with_name("copy.jpg"))
    again = read_official_list(lists["train"])[4]
    shifted = np.array(again.box) + 2  # labelled once more, a little otherwise
    train.append(official_line(again.landmarks + 1, shifted, again.image))
    lists["train"].write_text("".join(train))
    lists["test"].write_text("".join([*test, test[2].replace(picture.name, copy.name), train[0]]))

    said = doubts(synthetic_faces, lists)
    Path(copy).unlink()
    assert said == [
        f"the same picture in both splits, in 1 of 21 faces: {train[0].split()[-1]} (test line 8)",
        "the same face twice in a split, in 2 of 21 faces: "
        f"{train[4].split()[-1]} (train line 13), test--00/copy.jpg (test line 7)",
    ]


def turned(path: Path, orientation: int) -> None:
    """Give a JPEG an EXIF entry that says how it is to be turned."""
    entry = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0" + bytes([orientation, 0, 0])
    entry += b"\0" * 4
    data = path.read_bytes()
    path.write_bytes(
        data[:2] + b"\xff\xe1" + (len(entry) + 2).to_bytes(2, "big") + entry + data[2:]
    )


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_labels_of_stored_pixels_are_told_from_those_of_the_upright_picture(
    synthetic_faces, tmp_path, run_script, orientation
):
    """A picture lies on the disk turned, and EXIF says so."""
    folder = Path(shutil.copytree(synthetic_faces, tmp_path / "faces"))
    face = read_official_list(official_list(folder, "test"))[0]
    path = folder / "WFLW_images" / face.image
    image = cv2.imread(str(path))
    height, width = image.shape[:2]
    x, y = face.landmarks.T
    how = {
        3: (cv2.ROTATE_180, (width - 1 - x, height - 1 - y)),
        6: (cv2.ROTATE_90_COUNTERCLOCKWISE, (y, width - 1 - x)),
        8: (cv2.ROTATE_90_CLOCKWISE, (height - 1 - y, x)),
    }
    code, stored = how[orientation]
    cv2.imwrite(str(path), cv2.rotate(image, code))
    turned(path, orientation)
    assert cv2.imread(str(path)).shape == image.shape

    points = np.stack(stored, axis=1)
    box = [*points.min(axis=0).astype(int), *points.max(axis=0).astype(int)]
    lines = official_list(folder, "test").read_text().splitlines(keepends=True)
    assert run_script(PREPARE, "--wflw", folder, "--out", tmp_path / "upright")[::2] == (0, "")

    lines[0] = official_line(points, box, face.image)
    official_list(folder, "test").write_text("".join(lines))
    code, _, errors = run_script(PREPARE, "--wflw", folder, "--out", tmp_path / "stored")
    assert code == 0 and errors.startswith(
        "warning: labels in stored pixels, though the picture's EXIF"
    )
    assert errors.endswith(f"in 1 of 18 faces: {face.image} (test line 1)\n")


def test_more_than_three_faces_are_counted(synthetic_faces, lists):
    lines = []
    for face in read_official_list(lists["train"]):
        lines.append(official_line(face.landmarks[::-1], face.box, face.image))

    lists["train"].write_text("".join(lines))
    (said,) = doubts(synthetic_faces, lists)
    assert said.startswith("points in another order than the scheme's")
    names = [face.split()[-1] + f" (train line {i + 1})" for i, face in enumerate(lines[:3])]
    assert said.endswith(f"in 12 of 18 faces: {', '.join(names)}, …")


def test_test_py_says_it_of_folders_that_were_prepared_without_a_word(
    synthetic_faces, tmp_path, run_script
):
    data = tmp_path / "data"
    assert run_script(PREPARE, "--wflw", synthetic_faces, "--out", data)[0] == 0
    path = data / "WFLW256_test.txt"
    lines = path.read_text().splitlines()
    *numbers, name = lines[1].split()
    lines[1] = " ".join([*(repr(float(number) / 256) for number in numbers), name])
    path.write_text("\n".join(lines) + "\n")
    for subset in data.glob("WFLW256_test_*.txt"):
        subset.write_text("")

    final = write_checkpoint(tmp_path / "run" / "final.pt")
    code, _, errors = run_script("test.py", final, "--data", data, "--out", tmp_path / "results")
    assert code == 0 and "warning: all points within one pixel" in errors
    assert errors.splitlines()[0].endswith(f"in 1 of 6 faces: {name}")
    assert "within one pixel" in (tmp_path / "results" / "table.md").read_text()


# --- .pts files as predict.py and macOS leave them -----------------------------------------------


@pytest.mark.parametrize("names", ["p{}.jpg p{}_face0.pts", "p{}.jpg p{}.jpg_face0.pts"])
def test_pts_files_of_predict_and_hidden_files(synthetic_faces, tmp_path, run_script, names):
    for split in SPLITS:
        (tmp_path / split).mkdir()
        for index, face in enumerate(read_official_list(official_list(synthetic_faces, split))):
            picture, pts = (tmp_path / split / name.format(index) for name in names.split())
            shutil.copy(synthetic_faces / "WFLW_images" / face.image, picture)
            write_pts(pts, face.landmarks)

        for name in (picture.name, pts.name):  # as macOS leaves them on other file systems
            (tmp_path / split / f"._{name}").write_bytes(b"\x00\x05\x16\x07")

    arguments = ["--pts-train", tmp_path / "train", "--pts-test", tmp_path / "test"]
    code, output, errors = run_script(PREPARE, *arguments, "--out", tmp_path / "out")
    assert (code, errors) == (0, "") and "12 train + 6 test faces (18 patches written)" in output


def test_names_are_found_however_they_are_written(synthetic_faces, tmp_path, run_script):
    """Accents are decomposed on the disk and not in the list or the .pts file's name, and the list
    has Windows's backslashes.
    """
    images = tmp_path / "images"
    (images / "Ba\u0308r").mkdir(parents=True)
    options: list[object] = ["--images", images]

    for split in SPLITS:
        face = read_official_list(official_list(synthetic_faces, split))[0]
        name = f"Zoe\u0301 {split}"
        (tmp_path / split).mkdir()
        for copy in (images / "Ba\u0308r" / f"{name}.jpg", tmp_path / split / f"{name}.jpg"):
            shutil.copy(synthetic_faces / "WFLW_images" / face.image, copy)

        write_pts(tmp_path / split / f"Zo\u00e9 {split}.pts", face.landmarks)
        line = official_line(face.landmarks, face.box, f"B\u00e4r\\Zo\u00e9 {split}.jpg")
        (tmp_path / f"{split}.txt").write_text(line)
        options += [f"--{split}-list", tmp_path / f"{split}.txt"]

    folders = ["--pts-train", tmp_path / "train", "--pts-test", tmp_path / "test"]
    for number, source in enumerate((options, folders)):
        code, output, errors = run_script(PREPARE, *source, "--out", tmp_path / f"out{number}")
        assert (code, errors) == (0, "") and "1 train + 1 test faces (2 patches" in output


def test_several_faces_in_a_picture(synthetic_faces, tmp_path, run_script):
    """NAME_face0.pts and NAME_face1.pts beside NAME.jpg, with the boxes of both in the table: each
    face takes its own, so that both are cut as the one is that the picture shows.
    """
    rows = ["file,x0,y0,x1,y1"]

    for split in SPLITS:
        (tmp_path / split).mkdir()
        face = read_official_list(official_list(synthetic_faces, split))[0]
        shutil.copy(synthetic_faces / "WFLW_images" / face.image, tmp_path / split / "two.jpg")
        box = np.array(face.box)
        beside = (box[2] - box[0]) // 2
        write_pts(tmp_path / split / "two_face0.pts", face.landmarks + [beside, 0])
        write_pts(tmp_path / split / "two_face1.pts", face.landmarks)
        for edges in (box, box + [beside, 0, beside, 0]):
            rows.append(f"{split}/two.jpg,{','.join(map(str, edges))}")

    (tmp_path / "boxes.csv").write_text("\n".join(rows))
    arguments = ["--pts-train", tmp_path / "train", "--pts-test", tmp_path / "test"]
    arguments += ["--boxes", tmp_path / "boxes.csv", "--out", tmp_path / "out"]
    code, output, errors = run_script(PREPARE, *arguments)
    assert (code, "2 train + 2 test faces" in output) == (0, True), errors

    assert run_script(PREPARE, "--wflw", synthetic_faces, "--out", tmp_path / "listed")[0] == 0
    for split in SPLITS:
        found, expected = (
            read_crop_list(tmp_path / name / f"WFLW256_{split}.txt")[0]
            for name in ("out", "listed")
        )
        np.testing.assert_allclose(found, expected[[0, 0]], atol=0.02)  # .pts has four decimals
