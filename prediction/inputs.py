"""Pictures and videos of a user: reading them, and their face boxes from a table."""

from __future__ import annotations

import csv
import io
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from dataset.crop import IMAGE_SUFFIXES, Box, patch_frame
from utils.files import InputError, read_bytes, require_utf8
from utils.runtime import silent_libraries

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")
BOX_COLUMNS = ("file", "x0", "y0", "x1", "y1")


def is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def expand_input(path: Path) -> list[Path]:
    """A file as it is; a folder as its pictures by suffix, sorted by name, subfolders and videos
    left out.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            raise InputError(f"{path}: a device, not a picture or video")
        if not stat.S_ISDIR(mode):
            return [path]

        found = sorted(
            p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()
        )
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path}: no such file or folder") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None

    if not found:
        raise InputError(f"{path}: the folder holds no pictures ({' '.join(IMAGE_SUFFIXES)})")

    return found


class BoxTable:
    """Face boxes from a CSV file with the header `file,x0,y0,x1,y1` (more columns do no harm), a
    line a face.

    Edges are whole image px, inclusive. `file` is a picture's path, or any tail of it (`a.jpg`,
    `party/a.jpg`).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # boxes and their lines, by the parts of the path in the column "file"
        self._rows: dict[tuple[str, ...], list[tuple[Box, int]]] = {}
        data = io.BytesIO(read_bytes(path, "table"))
        try:
            reader = csv.DictReader(io.TextIOWrapper(data, "utf-8-sig", newline=""))
            missing = [name for name in BOX_COLUMNS if name not in (reader.fieldnames or [])]
            if missing:
                raise InputError(
                    f"{path}, line 1: no column {', '.join(missing)}; the header must be "
                    f"{','.join(BOX_COLUMNS)}"
                )

            for row in reader:
                self._add(row, reader.line_num)
        except (UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"{path}: not a CSV text file ({error})") from error

    def _add(self, row: dict, line: int) -> None:
        try:
            left, top, right, bottom = (int(row[name]) for name in BOX_COLUMNS[1:])
            box = (left, top, right, bottom)
            patch_frame(box)  # refuses a box without area
        except (TypeError, ValueError):
            raise InputError(
                f"{self.path}, line {line}: x0, y0, x1, y1 must be four whole numbers"
            ) from None
        except InputError as error:
            raise InputError(f"{self.path}, line {line}: {error}") from None

        if not row["file"]:
            raise InputError(f"{self.path}, line {line}: the file name is missing")

        self._rows.setdefault(Path(row["file"]).parts, []).append((box, line))

    def boxes_of(self, picture: Path) -> list[tuple[Box, int]]:
        """The picture's boxes, each with its line in the table."""
        spellings = {
            Path(path).parts
            for path in (picture, os.path.abspath(picture), os.path.realpath(picture))
        }
        tails = {parts[start:] for parts in spellings for start in range(len(parts))}
        rows = [row for tail in tails for row in self._rows.get(tail, ())]

        return sorted(rows, key=lambda row: row[1])

    def unused(self, pictures: Sequence[Path]) -> list[int]:
        """Lines that name none of the pictures."""
        used = {line for picture in pictures for _, line in self.boxes_of(picture)}
        return [line for rows in self._rows.values() for _, line in rows if line not in used]


class Video:
    """A video file to read, frame after frame, upright; a name that is not UTF-8 is an
    InputError.
    """

    def __init__(self, path: Path) -> None:
        require_utf8(path)  # OpenCV crashes on other names
        self.path = path
        with silent_libraries():
            self._capture = cv2.VideoCapture(str(path))

        fps = self._capture.get(cv2.CAP_PROP_FPS)
        # containers without a rate say 0, nan or nonsense
        self.fps = fps if 1 <= fps <= 1000 else 25.0
        # the container's word, for a bar
        self.announced = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))

    def __iter__(self) -> Iterator[np.ndarray]:
        """(H, W, 3) uint8 BGR each; an `InputError` where there is not a single frame."""
        count = 0
        try:
            while True:
                with silent_libraries():
                    there, frame = self._capture.read()
                if not there:
                    break

                count += 1
                yield frame
        finally:
            self._capture.release()

        if not count:
            raise InputError(
                f"{self.path}: no frame could be read; not a video, a damaged one, or an unknown "
                "codec"
            )
