"""Landmarks, contours and boxes drawn on pictures."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np

from dataset.landmarks import LandmarkScheme

_SHIFT = 4  # cv2 draws at fixed-point coordinates with this many fractional bits
_LIMIT = 1e6  # px; keeps the fixed-point numbers inside 32 bits when a network answers nonsense
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
    canvas: np.ndarray, points: np.ndarray, scheme: LandmarkScheme, colours: list[tuple[int, int, int]]
) -> None:
    extent = float(np.ptp(points, axis=0).max())
    stroke, radius = _stroke(extent), round(min(max(1.2, extent / 100), 100) * 2**_SHIFT)
    fixed = np.rint(np.clip(points, -_LIMIT, _LIMIT) * 2**_SHIFT).astype(np.int32)
    for contour, colour in zip(scheme.contours, colours, strict=True):
        line = fixed[list(contour.points)]
        if len(line) > 1:
            cv2.polylines(canvas, [line], contour.closed, colour, stroke, cv2.LINE_AA, _SHIFT)
    for contour, colour in zip(scheme.contours, colours, strict=True):  # dots last, so that no line covers them
        for x, y in fixed[list(contour.points)].tolist():
            cv2.circle(canvas, (x, y), radius, colour, cv2.FILLED, cv2.LINE_AA, _SHIFT)


def _stroke(extent: float) -> int:
    """Line width in px for something `extent` px wide: 1 up to about 450 px, growing with it."""
    return min(max(1, round(extent / 300)), 64)
