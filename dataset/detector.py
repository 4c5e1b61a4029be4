"""Face boxes from OpenCV's face detector."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from dataset.crop import Box
from utils.fetching import RemoteFile, fetch_once
from utils.files import UserError, require_utf8

YUNET = RemoteFile(
    "https://media.githubusercontent.com/media/opencv/opencv_zoo/main/models/"
    "face_detection_yunet/face_detection_yunet_2023mar.onnx",
    "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4",
)


def yunet_path() -> Path:
    """YuNet's file in the cache folder, fetched at the first call."""
    otherwise = "name one with --detector, or say where the faces are with --box or --whole"
    return fetch_once(YUNET, otherwise=otherwise)


def inclusive_box(x: float, y: float, width: float, height: float) -> Box:
    """The integer box with inclusive edges of a detector's x, y, width, height."""
    return math.floor(x), math.floor(y), math.ceil(x + width) - 1, math.ceil(y + height) - 1


def overlaps(box: Sequence[int], image: np.ndarray) -> bool:
    """Whether any pixel of `image` (H, W, ...) lies in `box`."""
    left, top, right, bottom = box
    return left < image.shape[1] and top < image.shape[0] and right >= 0 and bottom >= 0


class FaceDetector:
    """OpenCV's `cv2.FaceDetectorYN` with a YuNet model.

    Call with an image (H, W, 3) uint8 BGR. Returns boxes (N, 4) int64, edges inclusive, image px,
    and scores (N,) float32, best first. Boxes may cross the image border.

    Args:
        path: `face_detection_yunet_2023mar.onnx`, from the OpenCV Zoo.
        min_score: detections below it are left out.
        max_side: px. Longer pictures are shrunk to it for the detector (not for the landmarks):
            YuNet is made for faces of about 10 to 300 px, and its time grows with the number of
            pixels.
    """

    def __init__(self, path: str | Path, *, min_score: float = 0.6, max_side: int = 1600) -> None:
        if not hasattr(cv2, "FaceDetectorYN"):
            raise UserError(
                "this OpenCV has no FaceDetectorYN; pip install 'opencv-python-headless>=4.8'"
            )

        if not Path(path).is_file():
            raise UserError(
                f"no face detector at {path}; fetch face_detection_yunet_2023mar.onnx from the "
                "OpenCV Zoo (github.com/opencv/opencv_zoo, models/face_detection_yunet)"
            )

        require_utf8(path)  # OpenCV crashes on other names
        self.max_side = max_side

        try:
            self._net = cv2.FaceDetectorYN.create(str(path), "", (320, 320), min_score)
            # a file of another network shows here
            self._net.detect(np.zeros((320, 320, 3), np.uint8))
        except cv2.error as error:
            raise UserError(
                f"{path} is not a YuNet model that OpenCV {cv2.__version__} can run"
            ) from error

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        height, width = image.shape[:2]
        scale = min(1.0, self.max_side / max(height, width))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        seen = image if scale == 1 else cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        self._net.setInputSize(size)
        rows = self._net.detect(seen)[1]
        boxes: list[Box] = []
        scores: list[float] = []

        # a row: x, y, w, h, five points, score; "no face" is None
        for row in sorted([] if rows is None else rows.tolist(), key=lambda row: -row[-1]):
            left, top, right, bottom = box = inclusive_box(*(value / scale for value in row[:4]))
            if left < right and top < bottom and overlaps(box, image):
                boxes.append(box)
                scores.append(row[-1])

        return np.array(boxes, np.int64).reshape(-1, 4), np.array(scores, np.float32)
