"""Pictures and videos of a user: reading them, their face boxes from a table, and writing results."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from dataset.crop import patch_frame
from engine.predictor import Box
from utils.files import InputError, atomic_write, describe_os_error

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jp2")
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")
BOX_COLUMNS = ("file", "x0", "y0", "x1", "y1")


def is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def expand_input(path: Path) -> list[Path]:
    """A file as it is; a folder as its pictures by suffix, sorted by name, subfolders and videos left out."""
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
        if not found:
            raise InputError(f"{path}: the folder holds no pictures ({' '.join(IMAGE_SUFFIXES)})")
        return found
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    return [path]


class BoxTable:
    """Face boxes from a CSV file with the header `file,x0,y0,x1,y1` (more columns do no harm), a line a face.

    Edges are whole image px, inclusive. `file` is a picture's path, or any tail of it (`a.jpg`, `party/a.jpg`).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[tuple[tuple[str, ...], Box, int]] = []  # parts of the path, box, line
        try:
            with open(path, newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file)
                missing = [name for name in BOX_COLUMNS if name not in (reader.fieldnames or [])]
                if missing:
                    raise InputError(
                        f"{path}, line 1: no column {', '.join(missing)}; the header must be {','.join(BOX_COLUMNS)}"
                    )
                for row in reader:
                    self._add(row, reader.line_num)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from error
        except (UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"{path}: not a CSV text file ({error})") from error

    def _add(self, row: dict, line: int) -> None:
        try:
            left, top, right, bottom = box = tuple(int(row[name]) for name in BOX_COLUMNS[1:])
            patch_frame((left, top, right, bottom))  # refuses a box without area
        except (TypeError, ValueError):
            raise InputError(f"{self.path}, line {line}: x0, y0, x1, y1 must be four whole numbers") from None
        except InputError as error:
            raise InputError(f"{self.path}, line {line}: {error}") from None
        if not row["file"]:
            raise InputError(f"{self.path}, line {line}: the file name is missing")
        self.rows.append((Path(row["file"]).parts, box, line))

    def boxes_of(self, picture: Path) -> list[tuple[Box, int]]:
        """The picture's boxes, each with its line in the table."""
        spellings = {path.parts for path in (picture, Path(os.path.abspath(picture)), picture.resolve())}
        return [(box, line) for tail, box, line in self.rows if any(parts[-len(tail) :] == tail for parts in spellings)]

    def unused(self, pictures: Sequence[Path]) -> list[int]:
        """Lines that name none of the pictures."""
        used = {line for picture in pictures for _, line in self.boxes_of(picture)}
        return [line for _, _, line in self.rows if line not in used]


class Video:
    """A video file to read, frame after frame, upright."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._capture = cv2.VideoCapture(str(path))
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if 1 <= fps <= 1000 else 25.0  # containers without a rate say 0, nan or nonsense
        self.announced = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))  # the container's word, for a bar

    def __iter__(self) -> Iterator[np.ndarray]:
        """(H, W, 3) uint8 BGR each; an `InputError` where there is not a single frame."""
        count = 0
        try:
            while True:
                there, frame = self._capture.read()
                if not there:
                    break
                count += 1
                yield frame
        finally:
            self._capture.release()
        if not count:
            raise InputError(f"{self.path}: no frame could be read; not a video, a damaged one, or an unknown codec")


@contextmanager
def atomic_video(path: Path, fps: float) -> Iterator[_VideoSink]:
    """Write an MP4 whose frame size is the first frame's; it takes its name at the end, and only without an error."""
    sink = _VideoSink(path.with_name(f".{path.stem}.tmp{path.suffix}"), fps)
    try:
        yield sink
        sink.close()
        os.replace(sink.path, path)
    except OSError as error:
        raise describe_os_error(error, path) from error
    finally:
        sink.close()
        sink.path.unlink(missing_ok=True)


class _VideoSink:
    def __init__(self, path: Path, fps: float) -> None:
        self.path = path
        self._fps = fps
        self._writer: cv2.VideoWriter | None = None

    def write(self, frame: np.ndarray) -> None:
        """Append a frame (H, W, 3) uint8 BGR. The codec drops the last row or column of an odd size."""
        if self._writer is None:
            size = frame.shape[1], frame.shape[0]
            self._writer = cv2.VideoWriter(str(self.path), cv2.VideoWriter_fourcc(*"mp4v"), self._fps, size)
            if not self._writer.isOpened():
                raise InputError(f"cannot write a {size[0]} x {size[1]} video in {self.path.parent}")
        self._writer.write(frame)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.release()


def write_jpeg(path: Path, image: np.ndarray) -> None:
    try:
        data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
    except cv2.error as error:
        raise InputError(f"{path}: {image.shape[1]} x {image.shape[0]} px is too large for a JPEG overlay") from error
    with atomic_write(path) as file:
        file.write(data.tobytes())


def write_pts(path: Path, landmarks: np.ndarray) -> None:
    """One face (P, 2) in the iBUG tools' form. Its pixels are counted from 1, so 1 is added to x and y."""
    rows = "".join(f"{x:.4f} {y:.4f}\n" for x, y in np.asarray(landmarks, np.float64) + 1)
    with atomic_write(path) as file:
        file.write(f"version: 1\nn_points: {len(landmarks)}\n{{\n{rows}}}\n".encode())


def output_names(paths: Sequence[Path]) -> list[str]:
    """The files' stems, numbered where two are alike (in different folders, or with different suffixes).

    Alike are also ``a`` and ``a_face0``, since a file of one face of ``a`` may be called so (:func:`face_name`).
    """
    names: list[str] = []
    taken: set[str] = set()
    pictures: set[str] = set()  # what those taken would be faces of

    def alike(name: str) -> bool:
        name = name.lower()  # some file systems do not tell A from a
        return name in taken or name in pictures or _without_face(name) in taken

    for path in paths:
        name, number = path.stem, 1
        while alike(name):
            number += 1
            name = f"{path.stem}_{number}"
        taken.add(name.lower())
        pictures |= {_without_face(name.lower())} - {name.lower()}
        names.append(name)
    return names


def _without_face(name: str) -> str:
    return re.sub(r"_face\d+$", "", name)


def face_name(name: str, index: int, count: int) -> str:
    """Name of the file of face ``index``, one of ``count`` in the picture ``name``."""
    return f"{name}_face{index}" if count > 1 else name
