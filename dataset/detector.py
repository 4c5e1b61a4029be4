"""Face boxes from OpenCV's face detector."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import cv2
import numpy as np

from dataset.crop import PATCH_SIZE, Box, face_patch
from utils.fetching import RemoteFile, fetch_once
from utils.files import UserError, is_utf8

YUNET = RemoteFile(
    "https://media.githubusercontent.com/media/opencv/opencv_zoo/main/models/"
    "face_detection_yunet/face_detection_yunet_2023mar.onnx",
    "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4",
)

MIN_SCORE = 0.6  # of a face, at least
MIN_FACE = 32  # px, the side of the smallest faces that are searched for, …
MOST_ACROSS = 64  # … or this part of a large picture's longer side
NET_FACE = 32  # px, the smallest face that YuNet is sure of
FIRST_SIDE = 640  # px, a picture's longer side when it is searched first
TILE, OVERLAP = 1600, 160  # px; of tiles, so that faces of up to OVERLAP px lie whole in one
MAX_SHARED = 0.6  # of the smaller of two boxes; two that share more are one face

UPRIGHT_SCORE = 0.91  # faces with a higher score are upright, …
LIKELY_UPRIGHT = 0.86  # … and those with this one that score lower when turned, …
CLEARLY = 0.05  # … by so much upside down
AS_WELL = 0.03  # by which the score of a turned face may fall short of that it was found with
MIN_TURN = 20.0  # degrees; a face that is turned by less is left as it is
TURN_STEP = 45.0  # degrees from one look at a face to the next
LOOK_SCALE = 1.8  # of the box that a patch is cut about for these looks
LOOK_FACE = PATCH_SIZE / (2 * LOOK_SCALE)  # px, a face's side in that patch
LOOK_SIDE = 2.5 * LOOK_FACE  # px; turned to any side, so much of the patch is seen
QUARTER_TURNS = {  # degrees by which a picture is turned clockwise, and what turns it back
    90.0: cv2.ROTATE_90_COUNTERCLOCKWISE,
    180.0: cv2.ROTATE_180,
    -90.0: cv2.ROTATE_90_CLOCKWISE,
}


def yunet_path(otherwise: str = "name one with --detector") -> Path:
    """YuNet's file in the cache folder, fetched at the first call; ``otherwise`` is what else a
    caller without a network can do.
    """
    return fetch_once(YUNET, otherwise=otherwise)


def inclusive_box(x: float, y: float, width: float, height: float) -> Box:
    """The integer box with inclusive edges of a detector's x, y, width, height."""
    return math.floor(x), math.floor(y), math.ceil(x + width) - 1, math.ceil(y + height) - 1


def overlaps(box: Sequence[int], image: np.ndarray) -> bool:
    """Whether any pixel of `image` (H, W, ...) lies in `box`."""
    left, top, right, bottom = box
    return left < image.shape[1] and top < image.shape[0] and right >= 0 and bottom >= 0


class Faces(NamedTuple):
    """N faces, best first."""

    boxes: np.ndarray  # (N, 4) int64: left, top, right, bottom, edges inclusive, image px
    scores: np.ndarray  # (N,) float32, 0 to 1
    angles: np.ndarray  # (N,) float64: degrees by which a box is turned clockwise about its centre


class _Face(NamedTuple):
    """A detection in px, counted from the picture's edge; `angle` as in `Faces`."""

    x: float
    y: float
    width: float
    height: float
    score: float
    angle: float = 0.0

    @property
    def side(self) -> float:
        return max(self.width, self.height)

    @property
    def centre(self) -> np.ndarray:
        return np.array([self.x + self.width / 2, self.y + self.height / 2])

    @property
    def box(self) -> Box:
        return inclusive_box(self.x, self.y, self.width, self.height)

    def scaled(self, factor: float) -> _Face:
        """In px that are smaller by `factor`."""
        x, y, width, height = (edge * factor for edge in self[:4])
        return self._replace(x=x, y=y, width=width, height=height)

    def at(self, centre: np.ndarray, angle: float) -> _Face:
        """The face about another centre, turned."""
        x, y = (centre - (self.width / 2, self.height / 2)).tolist()
        return self._replace(x=x, y=y, angle=angle)


class FaceDetector:
    """OpenCV's `cv2.FaceDetectorYN` with a YuNet model, for faces of every size and turn.

    YuNet is sure of upright faces between about 32 and 480 px. So a picture is searched first as
    small as `FIRST_SIDE`, for its largest faces, then at four times the scale before, in
    overlapping tiles where that is large, until the smallest face asked for measures `NET_FACE`.
    Faces that may be turned are looked at in eight turns; a picture without an upright face is
    searched sideways and upside down too.

    Call with an image (H, W, 3) uint8 BGR. Returns `Faces`. Boxes may cross the image border.

    Args:
        path: `face_detection_yunet_2023mar.onnx`, from the OpenCV Zoo.
        min_score: detections below it are left out.
        min_face: px, the side of the smallest faces to search for; half of it may take four times
            as long. None: 32, or 1/64 of the longer side of a picture of more than 2,048 px.
    """

    def __init__(
        self, path: str | Path, *, min_score: float = MIN_SCORE, min_face: float | None = None
    ) -> None:
        if not Path(path).is_file() or not is_utf8(path):
            raise UserError(
                f"no face detector at {path}; fetch face_detection_yunet_2023mar.onnx from the "
                "OpenCV Zoo (github.com/opencv/opencv_zoo, models/face_detection_yunet)"
            )

        self.min_face = min_face
        self._alone = Lock()  # threads may share a detector, which holds its picture's size
        # OpenCV 5 warns of its own engine
        level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

        try:
            self._net = cv2.FaceDetectorYN.create(str(path), "", (320, 320), min_score)
            # a file of another network shows here
            self._net.detect(np.zeros((320, 320, 3), np.uint8))
        except cv2.error as error:
            raise UserError(f"{path} is not a YuNet model for OpenCV {cv2.__version__}") from error
        finally:
            cv2.utils.logging.setLogLevel(level)

    def __call__(self, image: np.ndarray) -> Faces:
        faces = [self._upright(image, face) for face in self._search(image)]

        if all(face.angle for face in faces):
            faces += [self._upright(image, face) for face in self._search_turned(image)]

        faces = [face for face in _distinct(faces) if _visible(face, image)]

        return Faces(
            np.array([face.box for face in faces], np.int64).reshape(-1, 4),
            np.array([face.score for face in faces], np.float32),
            np.array([face.angle for face in faces], np.float64),
        )

    def smallest(self, image: np.ndarray) -> float:
        """The side of the smallest faces that are searched for in a picture, px."""
        return self.min_face or max(MIN_FACE, max(image.shape[:2]) / MOST_ACROSS)

    def _search(self, image: np.ndarray) -> list[_Face]:
        """Faces of every size that look upright."""
        scale, last = self._first_scale(image), NET_FACE / self.smallest(image)
        faces = self._at_scale(image, scale)

        while scale < last:
            scale = min(last, 4 * scale)
            # larger faces, which a tile may cut, were found at the scale before
            faces += [face for face in self._at_scale(image, scale) if face.side * scale <= OVERLAP]

        return _distinct(faces)

    def _search_turned(self, image: np.ndarray) -> list[_Face]:
        """Large faces of a picture that lies on its side or upside down."""
        middle = np.array(image.shape[1::-1]) / 2
        faces = []

        for angle, back in QUARTER_TURNS.items():
            turned = cv2.rotate(image, back)
            for face in self._at_scale(turned, self._first_scale(image)):
                offset = face.centre - np.array(turned.shape[1::-1]) / 2
                cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
                centre = middle + np.array([[cos, -sin], [sin, cos]]) @ offset
                faces.append(face.at(centre, angle))

        return _distinct(faces)

    def _first_scale(self, image: np.ndarray) -> float:
        return min(NET_FACE / self.smallest(image), FIRST_SIDE / max(image.shape[:2]))

    def _at_scale(self, image: np.ndarray, scale: float) -> list[_Face]:
        """Faces found in the picture enlarged or shrunk by `scale`, in px of the picture."""
        seen, size = image, [max(1, round(side * scale)) for side in image.shape[1::-1]]
        if scale != 1:
            rule = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
            seen = cv2.resize(image, size, interpolation=rule)

        faces = []
        for x, y in product(*(range(0, max(side - OVERLAP, 1), TILE - OVERLAP) for side in size)):
            for face in self._detect(seen[y : y + TILE, x : x + TILE]):
                face = face._replace(x=face.x + x, y=face.y + y)
                # two tiles meet in the middle of what both see
                if _within(face.centre[0], x, size[0]) and _within(face.centre[1], y, size[1]):
                    faces.append(face.scaled(1 / scale))

        return [face for face in faces if _visible(face, image)]

    def _detect(self, image: np.ndarray) -> list[_Face]:
        """What YuNet finds in a picture as it is."""
        with self._alone:
            self._net.setInputSize(image.shape[1::-1])
            rows = self._net.detect(np.ascontiguousarray(image))[1]

        # a row: x, y, width, height, five points, score; "no face" is None
        rows = [] if rows is None else rows.tolist()

        return [_Face(x, y, width, height, score) for x, y, width, height, *_, score in rows]

    def _upright(self, image: np.ndarray, face: _Face) -> _Face:
        """The face as it is found in a picture that is turned until the face is upright.

        What tells the turn is YuNet's score, which falls to either side of the upright face. Its
        five points do not: on a face that is turned by 60 degrees they lie as on an upright one.
        """
        if face.score >= UPRIGHT_SCORE:
            return face

        (x, y), half = face.centre, face.side / 2
        square = inclusive_box(x - half, y - half, face.side, face.side)
        patch, frame = face_patch(image, square, "area", LOOK_SCALE)
        zoom = min(max(face.side, NET_FACE) / LOOK_FACE, 1.0)

        angles = (face.angle + TURN_STEP * np.arange(8)).tolist()
        looks: list[_Face | None] = [None] * 8
        for step in (0, 1, 7, 4, 2, 3, 5, 6):
            looks[step] = self._look(patch, zoom, angles[step])
            scores = np.array([0.0 if look is None else look.score for look in looks])
            # a small or hidden face shows in comparison with 45 degrees to either side and 180
            likely = step == 4 and scores.argmax() == 0 and scores[4] < scores[0] - CLEARLY
            if scores[0] >= (LIKELY_UPRIGHT if likely else UPRIGHT_SCORE):
                return face

        # a turn must score about as well as what was found
        scores[0] = max(scores[0], face.score - AS_WELL)
        best = int(scores.argmax())
        before, here, after = np.roll(scores, 1 - best)[:3] ** 8  # the highest, almost alone
        turn = TURN_STEP * (after - before) / max(before + here + after, 1e-9)
        angle = (angles[best] + turn + 180) % 360 - 180
        if abs(angle) < MIN_TURN:
            angle = 0.0
        if angle == face.angle:
            return face

        found = self._look(patch, zoom, angle) or looks[best]
        if found is None:
            return face

        centre = frame.to_image(found.centre - 0.5) + 0.5

        return found.scaled(frame.side / PATCH_SIZE).at(centre, found.angle)

    def _look(self, patch: np.ndarray, zoom: float, angle: float) -> _Face | None:
        """The face in the middle of a patch, in its px, as it is found where the patch is turned
        back by `angle` and shrunk by `zoom`.
        """
        size = round(LOOK_SIDE * zoom)
        middle = (PATCH_SIZE - 1) / 2
        matrix = np.array(cv2.getRotationMatrix2D((middle, middle), angle, zoom), np.float64)
        matrix[:, 2] += (size - PATCH_SIZE) / 2
        faces = self._detect(cv2.warpAffine(patch, matrix, (size, size)))

        near = [face for face in faces if np.abs(face.centre - size / 2).max() < face.side / 2]
        if not near:
            return None

        best = max(near, key=lambda face: face.score)
        centre = (best.centre - size / 2) @ matrix[:, :2] / zoom**2 + PATCH_SIZE / 2

        return best.scaled(1 / zoom).at(centre, angle)


def _within(centre: float, start: int, length: int) -> bool:
    """Whether a face belongs to the tile from `start` on, in a picture of that length."""
    after_first = start == 0 or centre >= start + OVERLAP / 2
    before_last = start + TILE >= length or centre < start + TILE - OVERLAP / 2

    return after_first and before_last


def _visible(face: _Face, image: np.ndarray) -> bool:
    """Whether the face's box has an area and a pixel of `image`."""
    left, top, right, bottom = face.box
    return left < right and top < bottom and overlaps(face.box, image)


def _distinct(faces: list[_Face]) -> list[_Face]:
    """The faces, best first, without those whose box lies mostly in a better one's, or holds it."""
    kept: list[_Face] = []

    for face in sorted(faces, key=lambda face: -face.score):
        if all(_shared(face, better) <= MAX_SHARED for better in kept):
            kept.append(face)

    return kept


def _shared(a: _Face, b: _Face) -> float:
    """The area that two boxes share, as a part of the smaller one; turns do not count."""
    width = min(a.x + a.width, b.x + b.width) - max(a.x, b.x)
    height = min(a.y + a.height, b.y + b.height) - max(a.y, b.y)

    return max(width, 0) * max(height, 0) / min(a.width * a.height, b.width * b.height)
