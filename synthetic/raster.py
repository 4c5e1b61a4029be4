"""A z-buffer for many small triangles, vectorised over candidate pixels instead of looped over
triangles.

Every triangle is cut into spans, one per row of pixels, and the pixels of all spans compete by
depth; only the winners get weights. With some thousand triangles of a few pixels each this takes a
few milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Twice the px² below which a triangle is seen edge on: its depth would be rounding errors.
_LEAST_AREA = 2e-3


@dataclass(frozen=True)
class Fragments:
    """The visible surface: one entry per covered pixel, in no particular order.

    pixel: (F,) flat pixel index, row · width + column; triangle: (F,) index into the triangles
    given; weights: (F, 3) float32 barycentric weights (they sum to 1); depth: (F,) float32, larger
    is nearer.
    """

    pixel: np.ndarray
    triangle: np.ndarray
    weights: np.ndarray
    depth: np.ndarray

    def interpolate(self, triangles: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Vertex values (V, C) at every fragment: (F, C)."""
        corners = triangles.take(self.triangle, axis=0)  # (F, 3)
        result = values.take(corners[:, 0], axis=0) * self.weights[:, 0:1]
        result += values.take(corners[:, 1], axis=0) * self.weights[:, 1:2]
        result += values.take(corners[:, 2], axis=0) * self.weights[:, 2:3]

        return result


def rasterise(
    points: np.ndarray, triangles: np.ndarray, size: tuple[int, int], cull: np.ndarray
) -> Fragments:
    """Visible fragments of a triangle mesh.

    points: (V, 3) float32, x and y in pixels (integers are pixel centres), z larger towards the
    viewer. triangles: (T, 3) vertex indices. size: (height, width). cull: (T,) bool, drop the
    triangle when it is seen from behind (from the front its corners run counter-clockwise on the
    screen, as seen with y up).
    """
    height, width = size
    x, y, z = points.T.take(triangles.T, axis=1)  # (3, T) each: corner, triangle
    # y down: negative in front
    area = (x[1] - x[0]) * (y[2] - y[0]) - (x[2] - x[0]) * (y[1] - y[0])
    front = np.flatnonzero((area < -_LEAST_AREA) | (~cull & (area > _LEAST_AREA)))
    x, y, z, area = x[:, front], y[:, front], z[:, front], area[front]
    owner, row, first, length = _spans(x, y, size)

    # Depth is linear in the pixel: its value at column 0 of a span, and its slope along the span.
    slope_x = ((z[0] - z[2]) * (y[1] - y[2]) - (z[1] - z[2]) * (y[0] - y[2])) / area
    slope_y = ((z[1] - z[2]) * (x[0] - x[2]) - (z[0] - z[2]) * (x[1] - x[2])) / area
    line = row.astype(np.float32)
    start = (z[2] - slope_x * x[2] - slope_y * y[2]).take(owner) + slope_y.take(owner) * line
    slope = slope_x.take(owner)

    # One candidate per pixel of a span; each knows no more than where it is and how near.
    span = np.repeat(np.arange(len(owner), dtype=np.int32), length)
    column = np.arange(len(span), dtype=np.int32)
    column += (first - np.cumsum(length, dtype=np.int32) + length).take(span)
    pixel = (row * width).take(span) + column
    depth = start.take(span) + slope.take(span) * column.astype(np.float32)

    nearest = np.full(height * width, -np.inf, np.float32)
    np.maximum.at(nearest, pixel, depth)
    best = np.flatnonzero(depth == nearest.take(pixel))
    winner = np.full(height * width, -1, np.int64)
    winner[pixel.take(best)] = best  # of equally near ones the last stays
    kept = winner[winner >= 0]

    span = span.take(kept)
    at = owner.take(span)
    across, down = (
        column.take(kept).astype(np.float32) - x[2].take(at),
        line.take(span) - y[2].take(at),
    )
    w0 = ((y[1] - y[2]) / area).take(at) * across + ((x[2] - x[1]) / area).take(at) * down
    w1 = ((y[2] - y[0]) / area).take(at) * across + ((x[0] - x[2]) / area).take(at) * down
    w0 = np.clip(w0, 0, 1)  # rounding may put a pixel on an edge just outside
    w1 = np.clip(w1, 0, 1 - w0)
    weights = np.stack((w0, w1, 1 - w0 - w1), axis=1)

    return Fragments(pixel.take(kept).astype(np.int64), front.take(at), weights, depth.take(kept))


def _spans(
    x: np.ndarray, y: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What triangles with corners x, y (3, T) cover in each row: (triangle, row, first column,
    length), int32."""
    height, width = size
    top = np.maximum(np.ceil(y.min(axis=0)), 0).astype(np.int32)
    rows = np.maximum(np.minimum(np.floor(y.max(axis=0)), height - 1).astype(np.int32) - top + 1, 0)
    owner = np.repeat(np.arange(len(rows), dtype=np.int32), rows)
    row = np.arange(len(owner), dtype=np.int32) + (
        top - np.cumsum(rows, dtype=np.int32) + rows
    ).take(owner)

    # With the corners from top to bottom, one border is the long edge, the other bends at the
    # middle corner.
    order = np.argsort(y, axis=0)
    (x0, x1, x2), (y0, y1, y2) = np.take_along_axis(x, order, 0), np.take_along_axis(y, order, 0)
    upper, lower, whole = (
        (end - start) / np.where(fall > 0, fall, 1)
        for start, end, fall in ((x0, x1, y1 - y0), (x1, x2, y2 - y1), (x0, x2, y2 - y0))
    )
    line = row.astype(np.float32)
    straight = x0.take(owner) + whole.take(owner) * (line - y0.take(owner))
    below = line - y1.take(owner)
    bent = x1.take(owner) + np.where(below < 0, upper.take(owner), lower.take(owner)) * below
    low, high = np.minimum(straight, bent), np.maximum(straight, bent)

    # The tolerance keeps a pixel on the edge of two triangles from falling between them.
    first = np.ceil(np.clip(low - 1e-4, 0, width)).astype(np.int32)
    length = np.floor(np.clip(high + 1e-4, -1, width - 1)).astype(np.int32) - first + 1
    some = np.flatnonzero(length > 0)

    return owner[some], row[some], first[some], length[some]
