"""The face detector: every size, every turn, each face once."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from dataset.annotations import Annotation, read_official_list
from dataset.crop import overlap_ratios
from dataset.detector import FaceDetector, inclusive_box
from utils.files import UserError

YUNET = "models/face_detection_yunet_2023mar.onnx"


class FindsSquares:
    """Stands for YuNet: white squares of 24 to 480 px are faces, and no other."""

    size = (320, 320)

    def setInputSize(self, size: tuple[int, int]) -> None:  # noqa: N802, OpenCV's name
        self.size = tuple(size)

    def detect(self, image: np.ndarray) -> tuple[int, np.ndarray | None]:
        assert image.shape[1::-1] == self.size and max(self.size) <= 1600
        _, _, stats, _ = cv2.connectedComponentsWithStats((image[..., 0] > 127).astype(np.uint8))
        rows = [[*box[:4], *np.zeros(10), 0.95] for box in stats[1:] if 24 <= min(box[2:4]) <= 480]

        return len(rows), np.array(rows, np.float32) if rows else None


@pytest.fixture
def squares(monkeypatch, tmp_path):
    """squares(**options): a detector that finds white squares."""
    (tmp_path / "net.onnx").write_bytes(b"")
    monkeypatch.setattr(cv2.FaceDetectorYN, "create", lambda *_: FindsSquares())

    return lambda **options: FaceDetector(tmp_path / "net.onnx", **options)


def picture_with(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    image = np.zeros((height, width, 3), np.uint8)
    for left, top, right, bottom in boxes:
        image[top : bottom + 1, left : right + 1] = 255

    return image


def test_faces_in_every_place_and_size_are_found_once(squares):
    random = np.random.default_rng(0)
    corners = np.array([(x, y) for x in range(0, 4000, 400) for y in range(0, 3000, 400)])
    sides = np.geomspace(36, 300, len(corners)).astype(int)
    random.shuffle(sides)
    corners += random.integers(0, 90, corners.shape)
    truth = np.column_stack([corners, corners + sides[:, None] - 1])
    truth = truth[truth[:, 3] < 3000]

    found = squares(min_face=32)(picture_with(truth, 4000, 3000))
    ratios = overlap_ratios(truth, found.boxes)
    assert len(found.boxes) == len(truth) and (found.angles == 0).all()
    assert ratios.max(axis=1).min() > 0.8 and ratios.max(axis=0).min() > 0.8

    # where the picture is not enlarged or shrunk, a box is exact
    small = squares()(picture_with(truth[:1] % 300, 640, 480)).boxes
    assert small.tolist() == (truth[:1] % 300).tolist()


def test_threads_may_share_a_detector(squares, monkeypatch):
    set_size = FindsSquares.setInputSize
    monkeypatch.setattr(
        FindsSquares, "setInputSize", lambda *args: (set_size(*args), time.sleep(0.002))
    )
    detector, images = squares(), [np.zeros((side, 200, 3), np.uint8) for side in range(100, 108)]
    for image in images:
        image[20:60, 30:70] = 255

    with ThreadPoolExecutor(4) as pool:
        for faces in pool.map(detector, images):
            assert faces.boxes.tolist() == [[30, 20, 69, 59]]


def test_a_face_that_fills_a_large_picture_is_found(squares):
    box = np.array([[300, 200, 2499, 2399]])
    found = squares(min_face=32)(picture_with(box, 3000, 2800)).boxes
    assert len(found) == 1 and overlap_ratios(box, found)[0, 0] > 0.98


def test_the_smallest_face_is_as_large_as_told(squares):
    truth = np.array([[1000, 700, 1039, 739], [3000, 2000, 3199, 2199]])
    image = picture_with(truth, 6400, 4800)
    assert squares().smallest(image) == 100 and squares().smallest(image[:900, :1200]) == 32
    assert len(squares()(image).boxes) == 1
    assert len(squares(min_face=40)(image).boxes) == 2
    assert len(squares(min_face=8)(picture_with(np.array([[50, 40, 59, 49]]), 90, 80)).boxes) == 1


def test_a_detectors_rectangle_becomes_an_inclusive_box():
    assert inclusive_box(10.0, 20.0, 5.0, 6.0) == (10, 20, 14, 25)  # five columns, six rows
    assert inclusive_box(-0.5, 1.2, 3.0, 3.0) == (-1, 1, 2, 4)


def test_a_missing_or_wrong_detector_is_named(tmp_path):
    with pytest.raises(UserError, match="no face detector at .*nothing.onnx"):
        FaceDetector(tmp_path / "nothing.onnx")
    wrong = tmp_path / "wrong.onnx"
    wrong.write_bytes(b"no network")
    with pytest.raises(UserError, match="wrong.onnx is not a YuNet model"):
        FaceDetector(wrong)


def real_faces(shared_data, count: int) -> list[tuple[np.ndarray, Annotation]]:
    folder = shared_data / "w300_68pt"
    faces = read_official_list(folder / "list_68pt_rect_attr_train.txt")

    return [
        (cv2.imread(str(folder / "images" / face.image)), face)
        for face in faces[:: len(faces) // count]
    ]


def test_real_faces_of_every_size_are_found(shared_data):
    detector = FaceDetector(shared_data / YUNET)

    for side in (40, 700, 1800):
        for image, face in real_faces(shared_data, 4):
            factor = side / (face.box[2] - face.box[0] + 1)
            boxes = detector(cv2.resize(image, None, fx=factor, fy=factor)).boxes
            assert overlap_ratios(np.array([face.box]) * factor, boxes).max() > 0.5


@pytest.mark.parametrize("angle", [-120, 60, 90, 180])
def test_the_turn_of_a_real_head_is_told(shared_data, angle):
    detector, differences = FaceDetector(shared_data / YUNET), []

    for image, face in real_faces(shared_data, 8):
        left, top, right, bottom = face.box
        centre = (left + right) / 2, (top + bottom) / 2
        size = 2 * (right - left)
        matrix = cv2.getRotationMatrix2D(centre, -angle, 1)  # OpenCV turns anticlockwise
        matrix[:, 2] += size / 2 - np.array(centre)
        eyes = (face.landmarks[45] - face.landmarks[36]) @ matrix[:, :2].T
        found = detector(cv2.warpAffine(image, matrix, (size, size)))
        middles = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2 - size / 2

        for index in np.flatnonzero(np.abs(middles).max(axis=1) < size / 4)[:1]:
            told = found.angles[index] - np.degrees(np.arctan2(eyes[1], eyes[0]))
            differences.append(abs((told + 180) % 360 - 180))

    assert len(differences) >= 7 and np.median(differences) < 12
    assert np.mean(np.array(differences) > 35) < 0.2
