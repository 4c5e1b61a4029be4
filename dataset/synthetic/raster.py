"""A z-buffer for many small triangles, vectorised over candidate pixels instead of looped over triangles.

Every pixel of every triangle's bounding box is a candidate; those outside their triangle drop out, the rest are sorted
by depth and written far to near, so that the nearest one stays. With some thousand triangles of a few pixels each this
takes a few milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Fragments:
    """The visible surface: one entry per covered pixel, in no particular order.

    pixel: (F,) flat pixel index, row · width + column; triangle: (F,) index into the triangles given;
    weights: (F, 3) float32 barycentric weights (they sum to 1); depth: (F,) float32, larger is nearer.
    """

    pixel: np.ndarray
    triangle: np.ndarray
    weights: np.ndarray
    depth: np.ndarray

    def interpolate(self, triangles: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Vertex values (V, C) at every fragment: (F, C)."""
        corners = triangles[self.triangle]  # (F, 3)
        result = values[corners[:, 0]] * self.weights[:, 0:1]
        result += values[corners[:, 1]] * self.weights[:, 1:2]
        result += values[corners[:, 2]] * self.weights[:, 2:3]
        return result


def rasterise(points: np.ndarray, triangles: np.ndarray, size: tuple[int, int], cull: np.ndarray) -> Fragments:
    """Visible fragments of a triangle mesh.

    points: (V, 3) float32, x and y in pixels (integers are pixel centres), z larger towards the viewer.
    triangles: (T, 3) vertex indices. size: (height, width). cull: (T,) bool, drop the triangle when it is seen from
    behind (from the front its corners run counter-clockwise on the screen, as seen with y up).
    """
    height, width = size
    x, y = points[:, 0][triangles.T], points[:, 1][triangles.T]  # (3, T) each
    area = (x[1] - x[0]) * (y[2] - y[0]) - (x[2] - x[0]) * (y[1] - y[0])  # y down: negative in front
    front = np.flatnonzero((area < 0) | (~cull & (area > 0)))
    x, y, area = x[:, front], y[:, front], area[front]
    left = np.maximum(np.ceil(np.minimum(np.minimum(x[0], x[1]), x[2])), 0)
    top = np.maximum(np.ceil(np.minimum(np.minimum(y[0], y[1]), y[2])), 0)
    columns = np.minimum(np.floor(np.maximum(np.maximum(x[0], x[1]), x[2])), width - 1) - left + 1
    rows = np.minimum(np.floor(np.maximum(np.maximum(y[0], y[1]), y[2])), height - 1) - top + 1
    some = np.flatnonzero((columns > 0) & (rows > 0))
    x, y, area, left, top, front = x[:, some], y[:, some], area[some], left[some], top[some], front[some]
    columns, rows = columns[some].astype(np.int32), rows[some].astype(np.int32)

    # The weights are linear in the pixel: value at the box's first pixel + gradient · step.
    gx0, gy0 = (y[1] - y[2]) / area, (x[2] - x[1]) / area
    gx1, gy1 = (y[2] - y[0]) / area, (x[0] - x[2]) / area
    at0 = (left - x[2]) * gx0 + (top - y[2]) * gy0
    at1 = (left - x[2]) * gx1 + (top - y[2]) * gy1
    count = columns * rows
    owner = np.repeat(np.arange(len(count), dtype=np.int32), count)  # candidate -> triangle
    step = np.arange(len(owner), dtype=np.int32) - np.repeat(np.cumsum(count, dtype=np.int32) - count, count)
    across = columns[owner]
    step_y = step // across
    step_x = (step - step_y * across).astype(np.float32)
    step_y = step_y.astype(np.float32)
    w0 = at0[owner] + gx0[owner] * step_x + gy0[owner] * step_y
    w1 = at1[owner] + gx1[owner] * step_x + gy1[owner] * step_y
    inside = np.flatnonzero((w0 >= -1e-5) & (w1 >= -1e-5) & (w0 + w1 <= 1 + 1e-5))
    owner, w0, w1 = owner[inside], w0[inside], w1[inside]
    pixel = ((top[owner] + step_y[inside]) * width + left[owner] + step_x[inside]).astype(np.int64)  # exact below 2^24
    z = points[:, 2][triangles[front].T]  # (3, T')
    depth = z[2][owner] + (z[0] - z[2])[owner] * w0 + (z[1] - z[2])[owner] * w1
    if not len(pixel):
        return Fragments(pixel, pixel, np.zeros((0, 3), np.float32), depth)

    # Nearest last: a stable sort of 16-bit keys is a radix sort, and an assignment's last value stays.
    lowest = depth.min()
    keys = ((depth - lowest) * (65535 / max(float(depth.max() - lowest), 1e-6))).astype(np.uint16)
    order = np.argsort(keys, kind="stable")
    winner = np.full(height * width, -1, np.int64)
    winner[pixel[order]] = order
    kept = winner[winner >= 0]
    w0, w1 = w0[kept], w1[kept]
    return Fragments(pixel[kept], front[owner[kept]], np.stack((w0, w1, 1 - w0 - w1), axis=1), depth[kept])
