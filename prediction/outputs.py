"""What predict.py leaves behind: overlays, .pts files, tables, and how they are called."""

from __future__ import annotations

import colorsys
import csv
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dataset.boxes import BOX_COLUMNS
from dataset.landmarks import EYELIDS_68, LandmarkScheme
from dataset.views import is_doubtful
from prediction.predictor import LandmarkPredictor, Shot
from utils.files import UserError, atomic_write, make_folder, write_json
from utils.progress import note

_SHIFT = 4  # cv2 draws at fixed-point coordinates with this many fractional bits
_LIMIT = 1e6  # px; keeps the fixed-point numbers inside 32 bits when a network answers nonsense
_JPEG_SIDE = 65_500  # px; libjpeg's limit
_BOX_COLOUR = (255, 255, 255)
PIXELS = "x, y; integers are pixel centres, 0, 0 is the upper left; boxes have inclusive edges"


def overlay_of(shot: Shot, scheme: LandmarkScheme, ids: Sequence[int] = ()) -> np.ndarray:
    """A copy of a picture or frame with its faces' boxes, numbers `ids` and landmarks on it."""
    canvas = shot.image.copy()

    for index, (left, top, right, bottom) in enumerate(shot.boxes):
        middle, size = ((left + right) / 2, (top + bottom) / 2), (right - left, bottom - top)
        corners = cv2.boxPoints((middle, size, shot.frames[index].angle))
        fixed, stroke = np.rint(corners).astype(np.int32), _stroke(max(size))
        cv2.polylines(canvas, [fixed], True, _BOX_COLOUR, stroke)
        if ids:
            font, height = cv2.FONT_HERSHEY_SIMPLEX, max(0.5, size[0] / 200)
            place = (left, top - 4)
            cv2.putText(canvas, str(ids[index]), place, font, height, _BOX_COLOUR, stroke)

    for points in shot.landmarks:
        draw_landmarks(canvas, points, scheme)

    return canvas


def draw_landmarks(canvas: np.ndarray, points: np.ndarray, scheme: LandmarkScheme) -> None:
    """Draw one face's points (P, 2) and contours, one colour each, on a picture (H, W, 3) uint8,
    BGR.
    """
    extent = float(np.ptp(points, axis=0).max())
    stroke, radius = _stroke(extent), round(min(max(1.2, extent / 100), 100) * 2**_SHIFT)
    fixed = np.rint(np.clip(points, -_LIMIT, _LIMIT) * 2**_SHIFT).astype(np.int32)
    lines = [fixed[list(contour.points)] for contour in scheme.contours]
    colours = [_bright(index / len(lines)) for index in range(len(lines))]

    for line, contour, colour in zip(lines, scheme.contours, colours, strict=True):
        cv2.polylines(canvas, [line], contour.closed, colour, stroke, cv2.LINE_AA, _SHIFT)

    # Dots last, so that no line covers them.
    for line, colour in zip(lines, colours, strict=True):
        for x, y in line.tolist():
            cv2.circle(canvas, (x, y), radius, colour, cv2.FILLED, cv2.LINE_AA, _SHIFT)


def _bright(hue: float) -> tuple[float, ...]:
    """BGR of a bright colour."""
    return tuple(round(255 * part) for part in reversed(colorsys.hsv_to_rgb(hue, 0.85, 1.0)))


def _stroke(extent: float) -> int:
    """Line width in px for something `extent` px wide: 1 up to about 450 px, growing with it."""
    return min(max(1, round(extent / 300)), 64)


def write_jpeg(path: Path, image: np.ndarray) -> None:
    height, width = image.shape[:2]
    if max(height, width) > _JPEG_SIDE:  # libjpeg would print a line of its own
        raise UserError(f"cannot write {path}: {width} x {height} px is too large for a JPEG")

    data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
    with atomic_write(path) as file:
        file.write(data.tobytes())


def write_pts(path: Path, landmarks: np.ndarray) -> None:
    """One face (P, 2) in the iBUG tools' form. Its pixels are counted from 1, so 1 is added to x
    and y.
    """
    rows = "".join(f"{x:.4f} {y:.4f}\n" for x, y in np.asarray(landmarks, np.float64) + 1)
    with atomic_write(path) as file:
        file.write(f"version: 1\nn_points: {len(landmarks)}\n{{\n{rows}}}\n".encode())


def describe_faces(shot: Shot, ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
    """Faces as they stand in landmarks.json and in the lines of a video."""
    faces = []

    for index, (box, frame) in enumerate(zip(shot.boxes, shot.frames, strict=True)):
        points, spread = (v[index].astype(float) for v in (shot.landmarks, shot.spread))
        face: dict[str, Any] = {} if ids is None else {"id": ids[index]}
        face |= {"box": box, "score": None if shot.scores is None else shot.scores[index]}
        face |= {"angle": round(frame.angle, 2), "landmarks": points.round(4).tolist()}

        if spread.any():  # over several views
            face["spread"] = spread.round(4).tolist()
            face |= {"doubtful": True} if is_doubtful(spread, box) else {}

        faces.append(face)

    return faces


def output_names(paths: Sequence[Path]) -> dict[Path, Path]:
    """How the files of each input begin: its own whole name, in folders as the inputs lie in.

    ``a.jpg`` and ``a.png`` of one folder give ``a.jpg`` and ``a.png``; ``x/a.jpg`` and ``y/a.jpg``
    keep their folders, counted from the deepest one that they share.
    """
    places = {path: Path(os.path.abspath(path)) for path in paths}
    drives = {place.drive for place in places.values()}
    if len(drives) > 1:
        return {
            path: Path(place.drive.strip(":\\"), *place.parts[1:]) for path, place in places.items()
        }

    shared = os.path.commonpath([place.parent for place in places.values()]) if places else ""

    return {path: place.relative_to(shared) for path, place in places.items()}


class Results:
    """The folder that predict.py fills, and what it tells at the end.

    Args:
        folder: it is made where it is missing.
        paths: all inputs.
        predictor: what the landmarks come from.

    Attributes:
        entries: what landmarks.json says about each input that was read.
        errors: what is wrong with an input.
        frames, faces: pictures and frames of videos so far, and their faces.
        doubtful: how many faces of an input are doubtful, where there are any.
    """

    def __init__(self, folder: Path, paths: Sequence[Path], predictor: LandmarkPredictor) -> None:
        self.folder, self.scheme = make_folder(folder), predictor.scheme
        self.entries: dict[Path, dict[str, Any]] = {}
        self.errors: dict[Path, str] = {}
        self.frames = self.faces = 0
        self.doubtful: Counter[Path] = Counter()
        self._names, self._predictor = output_names(paths), predictor
        self._written: set[Path] = set()
        self._table: Any = None

    def place(self, path: Path, suffix: str) -> Path:
        """Where a file of an input goes; its folder is made."""
        file = self.folder / f"{self._names[path]}{suffix}"
        make_folder(file.parent)
        self._written.add(file)

        return file

    def name(self, file: Path) -> str:
        """A written file as landmarks.json names it."""
        return file.relative_to(self.folder).as_posix()

    def refuse(self, path: Path, error: UserError | str) -> None:
        """Say what is wrong with an input, at once and in landmarks.json."""
        said = str(error)
        self.errors[path] = said if str(path) in said else f"{path}: {said}"
        note(f"error: {self.errors[path]}")

    @contextmanager
    def refusing(self, path: Path) -> Iterator[None]:
        """What is wrong with an input inside is said, and the rest is done."""
        try:
            yield
        except UserError as error:
            self.refuse(path, error)

    def count(self, path: Path, frame: int, seconds: float, faces: list[dict[str, Any]]) -> None:
        """Count a picture or a frame; its faces are rows of the table, if there is one."""
        self.frames += 1
        self.faces += len(faces)
        self.doubtful.update(path for face in faces if "doubtful" in face)

        for index, face in enumerate(faces if self._table else ()):
            score = "" if face["score"] is None else face["score"]
            start = [path, frame, face.get("id", index), seconds, score, 1]
            x, y = zip(*face["landmarks"], strict=True)
            self._table.writerow([*start, *face["box"], face["angle"], *x, *y])

    @contextmanager
    def table(self, *, wanted: bool) -> Iterator[None]:
        """Inside, faces go to landmarks.csv too where it is wanted; it appears at the end."""
        if not wanted:
            yield
            return

        points = range(self.scheme.num_points)
        coordinates = [f"{axis}_{point}" for axis in "xy" for point in points]
        header = ["file", "frame", "face_id", "timestamp", "confidence", "success"]
        file = self.folder / "landmarks.csv"
        self._written.add(file)

        with atomic_write(file, "w") as text:
            self._table = csv.writer(text)
            self._table.writerow([*header, *BOX_COLUMNS[1:], "angle", *coordinates])
            yield

    def write_summary(self) -> None:
        """Write landmarks.json."""
        predictor = self._predictor
        content = {"format": 1, "scheme": self.scheme.name, "box_scale": predictor.box_scale}
        if self.scheme != predictor.network_scheme:
            content["made_from"] = predictor.network_scheme.name
            content["interpolated_along_the_eyelids"] = list(EYELIDS_68)

        wrong = {path: {"error": message} for path, message in self.errors.items()}
        files = [
            {"file": str(path)} | self.entries.get(path, {}) | wrong.get(path, {})
            for path in self.entries | wrong
        ]
        made_by = {"checkpoint": str(predictor.path), "arm": predictor.config["arm"]}
        content |= made_by | {"pixels": PIXELS, "files": files}
        write_json(self.folder / "landmarks.json", content, indent=None)

    def others(self) -> list[Path]:
        """Files in the folder that this call did not write."""
        written = {*self._written, self.folder / "landmarks.json"}
        found = sorted(path for path in self.folder.rglob("*") if path.is_file())

        return [path for path in found if path not in written and not path.name.startswith(".")]
