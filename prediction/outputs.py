"""What predict.py leaves behind: overlays, .pts files, videos, and how they are called."""

from __future__ import annotations

import colorsys
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from dataset.landmarks import LandmarkScheme
from utils.files import (
    UserError,
    atomic_write,
    describe_os_error,
    require_file_or_nothing,
    require_utf8,
)

_SHIFT = 4  # cv2 draws at fixed-point coordinates with this many fractional bits
_LIMIT = 1e6  # px; keeps the fixed-point numbers inside 32 bits when a network answers nonsense
_JPEG_SIDE = 65_500  # px; libjpeg's limit
_BOX_COLOUR = (255, 255, 255)


def draw_faces(
    image: np.ndarray,
    landmarks: np.ndarray,
    scheme: LandmarkScheme,
    *,
    boxes: Sequence[Sequence[int]] | None = None,
) -> np.ndarray:
    """Return a copy of `image` with points, contours (one colour a group) and boxes drawn on it.

    Args:
        image: (H, W, 3) uint8, BGR.
        landmarks: (N, P, 2) x, y in image pixels; integer coordinates are pixel centres.
        scheme: names the contours of the P points.
        boxes: N boxes (left, top, right, bottom), edges inclusive, image pixels.
    """
    canvas = np.ascontiguousarray(image).copy()
    for box in [] if boxes is None else boxes:
        left, top, right, bottom = (int(edge) for edge in box)
        thickness = _stroke(max(right - left, bottom - top))
        cv2.rectangle(canvas, (left, top), (right, bottom), _BOX_COLOUR, thickness)

    colours = contour_colours(len(scheme.contours))
    for points in landmarks:
        _draw_points(canvas, np.asarray(points, np.float64), scheme, colours)

    return canvas


def contour_colours(count: int) -> list[tuple[int, int, int]]:
    """`count` bright BGR colours, hues evenly spread."""
    rgb = [colorsys.hsv_to_rgb(index / max(count, 1), 0.85, 1.0) for index in range(count)]
    return [(round(255 * blue), round(255 * green), round(255 * red)) for red, green, blue in rgb]


def _draw_points(
    canvas: np.ndarray,
    points: np.ndarray,
    scheme: LandmarkScheme,
    colours: list[tuple[int, int, int]],
) -> None:
    extent = float(np.ptp(points, axis=0).max())
    stroke, radius = _stroke(extent), round(min(max(1.2, extent / 100), 100) * 2**_SHIFT)
    fixed = np.rint(np.clip(points, -_LIMIT, _LIMIT) * 2**_SHIFT).astype(np.int32)

    for contour, colour in zip(scheme.contours, colours, strict=True):
        line = fixed[list(contour.points)]
        if len(line) > 1:
            cv2.polylines(canvas, [line], contour.closed, colour, stroke, cv2.LINE_AA, _SHIFT)

    # Dots last, so that no line covers them.
    for contour, colour in zip(scheme.contours, colours, strict=True):
        for x, y in fixed[list(contour.points)].tolist():
            cv2.circle(canvas, (x, y), radius, colour, cv2.FILLED, cv2.LINE_AA, _SHIFT)


def _stroke(extent: float) -> int:
    """Line width in px for something `extent` px wide: 1 up to about 450 px, growing with it."""
    return min(max(1, round(extent / 300)), 64)


@contextmanager
def atomic_video(path: Path, fps: float) -> Iterator[_VideoSink]:
    """Write an MP4 whose frame size is the first frame's; it takes its name at the end, and only
    without an error.
    """
    require_utf8(path)  # OpenCV crashes on other names
    require_file_or_nothing(path)
    sink = _VideoSink(path.with_name(f".{path.stem[:40]}.tmp{path.suffix}"), fps)
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
        """Append a frame (H, W, 3) uint8 BGR. The codec drops the last row or column of an odd
        size.
        """
        if self._writer is None:
            size = frame.shape[1], frame.shape[0]
            self._writer = cv2.VideoWriter(
                str(self.path), cv2.VideoWriter.fourcc(*"mp4v"), self._fps, size
            )
            if not self._writer.isOpened():
                raise UserError(f"cannot write a {size[0]} x {size[1]} video in {self.path.parent}")

        self._writer.write(frame)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.release()


def write_jpeg(path: Path, image: np.ndarray) -> None:
    try:
        # looked at first, since libjpeg would print a line of its own
        done = max(image.shape) <= _JPEG_SIDE
        if done:
            done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])
    except cv2.error:
        done = False

    if not done:
        raise UserError(
            f"cannot write {path}: {image.shape[1]} x {image.shape[0]} px is too large for a JPEG "
            "overlay"
        )

    with atomic_write(path) as file:
        file.write(data.tobytes())


def write_pts(path: Path, landmarks: np.ndarray) -> None:
    """One face (P, 2) in the iBUG tools' form. Its pixels are counted from 1, so 1 is added to x
    and y.
    """
    rows = "".join(f"{x:.4f} {y:.4f}\n" for x, y in np.asarray(landmarks, np.float64) + 1)
    with atomic_write(path) as file:
        file.write(f"version: 1\nn_points: {len(landmarks)}\n{{\n{rows}}}\n".encode())


def output_names(paths: Sequence[Path]) -> list[str]:
    """The files' stems, numbered where two are alike (in different folders, or with different
    suffixes). The files of a picture's faces are called ``NAME_face0``, ``NAME_face1``, ….
    """
    names: list[str] = []
    taken: set[str] = set()  # in small letters: some file systems do not tell A from a

    for path in paths:
        name, number = path.stem, 1
        while name.lower() in taken:
            number += 1
            name = f"{path.stem}_{number}"

        taken.add(name.lower())
        names.append(name)

    return names
