"""Pictures and videos of a user: reading them."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from dataset.crop import IMAGE_SUFFIXES
from utils.files import UserError, require_utf8

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")


def is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def expand_input(path: Path) -> list[Path]:
    """A file as it is; a folder as its pictures by suffix, sorted by name, subfolders and videos
    left out.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            raise UserError(f"{path}: a device, not a picture or video")
        if not stat.S_ISDIR(mode):
            return [path]

        found = sorted(
            p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()
        )
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such file or folder") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None

    if not found:
        raise UserError(f"{path}: the folder holds no pictures ({' '.join(IMAGE_SUFFIXES)})")

    return found


class Video:
    """A video file to read, frame after frame, upright; a name that is not UTF-8 is an
    UserError.
    """

    def __init__(self, path: Path) -> None:
        require_utf8(path)  # OpenCV crashes on other names
        self.path = path
        self._capture = cv2.VideoCapture(str(path))

        fps = self._capture.get(cv2.CAP_PROP_FPS)
        # containers without a rate say 0, nan or nonsense
        self.fps = fps if 1 <= fps <= 1000 else 25.0
        # the container's word, for a bar
        self.announced = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))

    def __iter__(self) -> Iterator[np.ndarray]:
        """(H, W, 3) uint8 BGR each; an `UserError` where there is not a single frame."""
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
            raise UserError(
                f"{self.path}: no frame could be read; not a video, a damaged one, or an unknown "
                "codec"
            )
