"""research/pictures.py: its pictures are as it says, and every part of it runs."""

from __future__ import annotations

import csv

import cv2
import numpy as np
import pytest
from conftest import load_script, write_checkpoint

from dataset.annotations import read_official_list
from dataset.detector import Faces
from dataset.pictures import read_image

LIST = "WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_test.txt"


class FindsEllipses:
    """Stands for both detectors: the synthetic set's faces are bright ellipses."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __call__(self, image: np.ndarray) -> Faces:
        bright = (image.min(axis=2) > 215).astype(np.uint8)
        _, _, stats, _ = cv2.connectedComponentsWithStats(bright)
        boxes = [[x, y, x + w - 1, y + h - 1] for x, y, w, h, area in stats[1:] if area > 100]
        return Faces(np.array(boxes).reshape(-1, 4), np.ones(len(boxes)), np.zeros(len(boxes)))


@pytest.fixture
def script(monkeypatch, tmp_path):
    loaded = load_script("research/pictures.py")
    monkeypatch.setattr(loaded, "FaceDetector", FindsEllipses)
    monkeypatch.setattr(loaded, "OnePass", FindsEllipses)
    monkeypatch.setattr(loaded, "SIZES", {40: 5, 700: 1})
    monkeypatch.setattr(loaded, "FILLING", {300: 2})
    monkeypatch.setattr(loaded, "ANGLES", (0, 90))

    return loaded


def test_sizes_are_counted_and_drawn(script, official_set, tmp_path, capsys):
    rows = tmp_path / "sizes.csv"
    source = [str(official_set / LIST), str(official_set / "WFLW_images")]
    options = ["--detector", "x.onnx", "--out", str(rows)]
    assert script.main(["sizes", *source, *options]) == 0
    assert "40 px" in capsys.readouterr().out

    written = list(csv.DictReader(rows.open()))
    assert [(row["side"], row["detector"]) for row in written[:2]] == [
        ("40", "before"),
        ("40", "after"),
    ]
    assert [int(row["faces"]) for row in written] == [5, 5, 1, 1, 2, 2]
    assert sum(int(row["found"]) for row in written) >= 12
    assert all(int(row["right"]) <= int(row["detections"]) for row in written)

    picture = tmp_path / "sizes.png"
    assert script.main(["sizes", str(rows), "--figure", str(picture)]) == 0
    assert cv2.imread(str(picture)).shape == (360, 1000, 3)


def test_every_part_runs(script, official_set, tmp_path, capsys):
    checkpoint = write_checkpoint(tmp_path / "final.pt")
    source = [str(official_set / LIST), str(official_set / "WFLW_images"), "--every", "2"]
    options = ["--detector", "x.onnx", "--checkpoint", str(checkpoint)]
    for part, words in (
        ("turns", "| 90° | 4 |"),
        ("looks", "boxes moved at random, refined"),
        ("trembling", "| 14 views |"),
        ("doubt", "| pieces of skin | 4 |"),
    ):
        assert script.main([part, *source, *options]) == 0
        assert words in capsys.readouterr().out


def test_jitter_is_less_after_smoothing(script, tmp_path, monkeypatch, capsys):
    for name, value in {"NOISES": (5,), "VIDEOS": 1}.items():
        monkeypatch.setattr(script, name, value)
    checkpoint = str(write_checkpoint(tmp_path / "final.pt"))
    assert script.main(["jitter", "--checkpoint", checkpoint]) == 0

    lines = capsys.readouterr().out.splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| 5 |")]
    assert [row[1] for row in rows] == ["still", "carried"]
    assert all(0 < float(smoothed) < float(found) for _, _, found, smoothed, _ in rows)


def test_boxes_that_are_the_annotated_ones_cost_nothing(
    script, official_set, tmp_path, monkeypatch, capsys
):
    faces = read_official_list(official_set / LIST)
    first, pictures = faces[0].image, official_set / "WFLW_images"

    def finds_all_but_the_first(image: np.ndarray) -> Faces:
        shown = next(f.image for f in faces if (read_image(pictures / f.image) == image).all())
        boxes = [face.box for face in faces if face.image == shown != first]
        return Faces(np.array(boxes).reshape(-1, 4), np.ones(len(boxes)), np.zeros(len(boxes)))

    monkeypatch.setattr(script, "FaceDetector", lambda path: finds_all_but_the_first)
    checkpoint = str(write_checkpoint(tmp_path / "final.pt"))
    options = ["--detector", "x.onnx", "--checkpoint", checkpoint]
    assert script.main(["looks", str(official_set / LIST), str(pictures), *options]) == 0

    output = capsys.readouterr().out
    found = sum(face.image != first for face in faces)
    still = "side 1.00 ± 0.00, centre off by x 0.00 ± 0.00, y 0.00 ± 0.00 sides"
    assert f"found: {found} of {len(faces)}; {still}" in output
    line = next(line for line in output.splitlines() if line.startswith("| YuNet's boxes |"))
    assert line.endswith(" 0.00 (0.00 … 0.00) |")


def test_a_box_moved_by_half_its_side_and_twice_as_large(script):
    box, other = np.array([[0, 0, 9, 9]]), np.array([[0, -5, 19, 14]])
    assert script.moved(box, other).tolist() == [[2, 0.5, 0]]


def test_a_face_is_turned_with_its_landmarks(script, official_set):
    face = read_official_list(official_set / LIST)[0]
    image = np.zeros((200, 200, 3), np.uint8)
    x, y = face.landmarks[7]
    cv2.circle(image, (round(x), round(y)), 3, (255, 255, 255), -1)
    picture, landmarks = script.turned(image, face, 70)
    rows, columns = np.nonzero(picture[..., 0] > 100)
    assert np.abs(landmarks[7] - (columns.mean(), rows.mean())).max() < 1

    change, other = landmarks[60] - landmarks[72], face.landmarks[60] - face.landmarks[72]
    angles = np.degrees(np.arctan2([change[1], other[1]], [change[0], other[0]]))
    assert (angles[0] - angles[1]) % 360 == pytest.approx(70, abs=1e-6)
