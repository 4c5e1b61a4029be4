"""The 3-D head: mesh, shapes and expressions, and the 98 points on it.

Head space: unit lengths such that the outer eye corners are 1.33 apart, x to the person's left
(right in a frontal picture), y up, z out of the face. The mesh and its blend shapes are baked from
MakeHuman assets (CC0, see NOTICE.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from dataset.landmarks import scheme_for
from synthetic.raster import rasterise

# Values of Head.part; right: x < 0.
SKIN, LEFT_EYE, RIGHT_EYE, UPPER_TEETH, LOWER_TEETH, TONGUE = range(6)
AXIS_Z = -0.35  # the vertical axis of the cylindrical skin coordinates runs through (0, ·, AXIS_Z)
_FILE = Path(__file__).with_name("head.npz")
_MIRROR = np.array(scheme_for(98).mirror)

# The person's right half and the midline; the left half follows by the mirror permutation. (x, y)
# on the resting face as seen from the front. Rows 33-41, the brow, are the middle of what
# draw_brows() varies. Placed so that a network trained on synthetic faces is right on average on
# annotated ones, not by anatomy alone: annotators follow the red of the lips, which begins below
# the upper one's ridge and ends above the lower one's fold, put both inner edges of a closed mouth
# on one line, the mouth's corners where its shadow ends, and let the brows' tails run out.
_FRONT_POINTS = {
    33: (-0.86, 0.49), 34: (-0.69, 0.61), 35: (-0.525, 0.622), 36: (-0.36, 0.597),
    37: (-0.205, 0.56), 38: (-0.207, 0.461), 39: (-0.36, 0.488), 40: (-0.52, 0.51),
    41: (-0.685, 0.515), 51: (0.0, 0.29), 52: (0.0, 0.1), 53: (0.0, -0.09), 54: (0.0, -0.28),
    55: (-0.222, -0.395), 56: (-0.115, -0.42), 57: (0.0, -0.45),
    60: (-0.673, 0.292), 61: (-0.585, 0.352), 62: (-0.478, 0.37), 63: (-0.362, 0.342),
    64: (-0.262, 0.259), 65: (-0.362, 0.225), 66: (-0.478, 0.223), 67: (-0.585, 0.232),
    76: (-0.372, -0.76), 77: (-0.237, -0.675), 78: (-0.077, -0.64), 79: (0.0, -0.656),
    85: (0.0, -0.915), 86: (-0.135, -0.9), 87: (-0.265, -0.845),
    88: (-0.348, -0.76), 89: (-0.175, -0.741), 90: (0.0, -0.747), 94: (0.0, -0.763),
    95: (-0.175, -0.755),
}  # fmt: skip
# The contour on the resting head as seen from the side, (y, z): down in front of the ear, along the
# jaw, to the chin. It begins where the ear does, a little above the eye corners, and ends on the
# chin's lower edge.
_CONTOUR = (
    (0.355, -0.72), (0.213, -0.72), (0.07, -0.73), (-0.078, -0.73), (-0.225, -0.72),
    (-0.387, -0.674), (-0.54, -0.615), (-0.689, -0.544), (-0.83, -0.45), (-0.951, -0.334),
    (-1.06, -0.202), (-1.155, -0.067), (-1.238, 0.07), (-1.31, 0.198), (-1.36, 0.34),
    (-1.38, 0.43), (-1.383, 0.5),
)  # fmt: skip
_CONTOUR_STEPS = 14  # surface samples between a contour point and the middle of the face


@dataclass(frozen=True)
class SurfacePoints:
    """Points on the mesh: three vertices (..., 3) and their weights (..., 3)."""

    vertices: np.ndarray
    weights: np.ndarray

    def at(self, values: np.ndarray) -> np.ndarray:
        """Interpolate vertex values (V, C): (..., C)."""
        return np.einsum("...k,...kc->...c", self.weights, values[self.vertices])


class _View:
    """The mesh's skin seen through one projection, as a picture of triangles that can be looked up
    by position."""

    def __init__(self, coordinates: np.ndarray, triangles: np.ndarray, window: tuple[float, ...]):
        self.low = np.array(window[:2], np.float32)
        self.scale = 512 / (np.array(window[2:], np.float32) - self.low)
        points = coordinates.astype(np.float32).copy()
        points[:, :2] = self._cells(points[:, :2])
        seen = rasterise(points, triangles, (512, 512), np.zeros(len(triangles), bool))
        self.vertices, self.weights = triangles[seen.triangle], seen.weights
        empty = np.ones(512 * 512, np.uint8)
        empty[seen.pixel] = 0
        # Cells without surface (between the lids, just outside the outline) take the nearest one
        # that has some.
        kind = cv2.DIST_LABEL_PIXEL
        labels = cv2.distanceTransformWithLabels(
            empty.reshape(512, 512), cv2.DIST_L2, 5, labelType=kind
        )[1].reshape(-1)
        owner = np.zeros(labels.max() + 1, np.int64)
        owner[labels[seen.pixel]] = np.arange(len(seen.pixel))
        self.index = owner[labels]  # (512²,) index into the vertices and weights

    def _cells(self, position: np.ndarray) -> np.ndarray:
        return (position - self.low) * self.scale * [1, -1] + [0, 511]

    def find(self, position: np.ndarray) -> SurfacePoints:
        """The foremost surface point at, or nearest to, positions (..., 2)."""
        cell = np.rint(self._cells(position)).astype(int).clip(0, 511)
        found = self.index[cell[..., 1] * 512 + cell[..., 0]]

        return SurfacePoints(self.vertices[found], self.weights[found])


class Head:
    """The mesh with its blend shapes; a pure description, nothing in it changes after loading.

    Attributes:
        base: (V, 3) vertices.
        triangles, part: (T, 3) vertices of each, and (T,) what it is of: SKIN, LEFT_EYE, ...
        skin_uv: (V, 2) angle about the vertical axis (0 in front, radians) and height.
        openness: (V,) share of the surroundings a vertex sees.
        visibility: (9, V) spherical-harmonic coefficients of which directions it sees.
    """

    def __init__(self) -> None:
        with np.load(_FILE) as stored:
            data = {name: stored[name] for name in stored.files}

        def shapes(name: str) -> np.ndarray:
            return data[name].astype(np.float32) * data[f"{name}_scale"][:, None, None]

        self.base = data["base"].astype(np.float32)
        self.triangles = data["triangles"].astype(np.int64)
        mirror = data["mirror"].astype(np.int64)
        # Below this the neck is hidden in the body's collar.
        seen = (self.base[self.triangles, 1] > -2.05).all(axis=1) | (data["triangle_part"] != SKIN)
        self.triangles, self.part = self.triangles[seen], data["triangle_part"][seen]
        self.openness = data["openness"].astype(np.float32) / 255
        self.visibility = data["visibility"].astype(np.float32) * (4 / 127)
        upper, lower, tongue = map(self.vertices_of, (UPPER_TEETH, LOWER_TEETH, TONGUE))
        self.base[upper] += np.float32([0, -0.07, 0.04])  # so that a smile shows them

        # How open they are was measured with the mouth closed.
        for vertices, openness in ((upper, 1.0), (lower, 0.7), (tongue, 0.25)):
            self.openness[vertices] = openness
            self.visibility[0, vertices] = 2.2 * openness

        # (8, V, 3): female baby, child, young, old, male baby, ...; (3, V, 3); (K, V, 3)
        self.age_sex = shapes("age_sex")
        self.ancestry, self.identity = shapes("ancestry"), shapes("identity")
        self.expressions: dict[str, np.ndarray] = {}  # (V, 3) each
        names = data["expression_names"].tolist()
        for name, shape in zip(names, shapes("expression"), strict=True):
            self.expressions[name] = shape
            if name.endswith("Left"):
                self.expressions[name[:-4] + "Right"] = shape[mirror] * np.float32([-1, 1, 1])

        self.eyes = self.vertices_of(RIGHT_EYE), self.vertices_of(LEFT_EYE)
        angle = np.arctan2(self.base[:, 0], self.base[:, 2] - AXIS_Z)
        self.skin_uv = np.stack((angle, self.base[:, 1]), axis=1)  # (V, 2)
        self._place_landmarks()
        self._average_out()

    def vertices_of(self, part: int) -> np.ndarray:
        """The vertices of SKIN, LEFT_EYE, ...: sorted indices."""
        return np.unique(self.triangles[self.part == part])

    def _average_out(self) -> None:
        """Bring the head nearer to WFLW's average face: MakeHuman's upper lip is longer, its cheeks
        are leaner."""
        x, y, z = self.base.T
        spread = np.where(y > -0.72, 0.4, 0.3)
        share = np.exp(-(((y + 0.72) / spread) ** 2) - (x / 0.6) ** 2) * (z > -0.1)
        self.base[:, 1] += 0.062 * share
        self.base[:, 0] *= 1 + 0.06 * share
        cheek = np.exp(-(((y + 0.5) / 0.35) ** 2)) * np.clip((np.abs(x) - 0.4) / 0.4, 0, 1)
        self.base[:, 0] *= 1 + 0.03 * cheek

    def _place_landmarks(self) -> None:
        skin = self.triangles[self.part == SKIN]
        # not the sockets, the mouth, the nostrils
        skin = skin[self.openness[skin].max(axis=1) > 0.2]
        x, y, z = self.base.T
        self.front = _View(self.base, skin[(z[skin] > -0.6).all(axis=1)], (-1.2, -1.7, 1.2, 1.3))
        lateral = skin[(x[skin] < 0.05).all(axis=1)]
        side = _View(np.stack((z, y, -x), 1), lateral, (-1.0, -1.7, 1.0, 1.3))
        radius = np.hypot(x, z - AXIS_Z)
        unwrapped = np.stack((self.skin_uv[:, 0], y, radius), 1)
        whole = skin[np.ptp(self.skin_uv[skin, 0], axis=1) < 1.0]  # not across the back
        around = _View(unwrapped, whole, (-2.2, -1.7, 2.2, 1.3))
        front = np.zeros((98, 2), np.float32)

        for index, (px, py) in _FRONT_POINTS.items():
            front[index] = px, py
            front[_MIRROR[index]] = -px, py

        self.feature_xy = front
        # points 33-97; the pupils' entries are placeholders
        self.features = self.front.find(front[33:])
        # From each feature straight towards the midline: what the nose or the lips may hide it
        # behind.
        self.feature_lines = self.front.find(towards_midline(front[33:])[:, 1:])  # (65, steps)

        anchors = np.array(_CONTOUR)
        start = side.find(anchors[:16, ::-1])  # look up by (z, y)
        phi = np.append(start.at(self.skin_uv[:, :1])[:, 0], 0)  # the chin is in the middle
        stop = np.where(anchors[:, 0] > 0.1, -0.15, np.where(anchors[:, 0] > -0.5, -0.32, 0.0))
        share = np.linspace(0, 1, _CONTOUR_STEPS) ** 0.8
        angle = phi[:, None] * (1 - share) + stop[:, None] * share  # (17, steps)
        heights = np.repeat(anchors[:, :1], _CONTOUR_STEPS, axis=1)
        right = np.stack((angle, heights), -1)
        self.contour = around.find(np.concatenate((right, right[15::-1] * [-1, 1])))  # (33, steps)

    def expression(self, weights: dict[str, float]) -> np.ndarray:
        """Offsets (V, 3) of a mixture of expression shapes."""
        chosen = np.stack([self.expressions[name] for name in weights])
        return mix(np.array(list(weights.values())), chosen)

    def eye(self, vertices: np.ndarray, side: int) -> tuple[np.ndarray, float]:
        """Centre (3,) and radius of the right (0) or left (1) eyeball of a shaped head."""
        ball = vertices[self.eyes[side]]
        centre = (ball.max(axis=0) + ball.min(axis=0)) / 2

        return centre, float(np.ptp(ball[:, 1]) / 2)


def towards_midline(points: np.ndarray) -> np.ndarray:
    """Points (P, 2) seen from the front, each with steps from there to the midline: (P, 5, 2)."""
    share = np.linspace(1, 0, 5, dtype=np.float32)
    return np.stack((points[:, :1] * share, np.repeat(points[:, 1:], len(share), 1)), axis=-1)


def mix(weights: np.ndarray, shapes: np.ndarray) -> np.ndarray:
    """Weighted sum of shapes: (K,), (K, V, 3) -> (V, 3). One matrix product on the flat view,
    without copies."""
    return (weights.astype(np.float32) @ shapes.reshape(len(shapes), -1)).reshape(shapes.shape[1:])


@lru_cache(maxsize=1)
def load_head() -> Head:
    """The one head of this process."""
    return Head()


def vertex_normals(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Unit normals (V, 3), weighted by the area of the triangles around a vertex."""
    a, b, c = vertices.T.take(triangles.T, axis=1).transpose(1, 0, 2)  # (3, T) each: axis, triangle
    (ux, uy, uz), (vx, vy, vz) = b - a, c - a
    faces = (uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx)
    corners = triangles.ravel()
    normals = np.stack([np.bincount(corners, np.repeat(face, 3), len(vertices)) for face in faces])
    normals /= np.maximum(np.sqrt((normals * normals).sum(axis=0)), 1e-9)

    return normals.T.astype(vertices.dtype)


def _evenly_spaced(line: np.ndarray) -> np.ndarray:
    """As many points along the same line (P, 2), at equal distances: so annotators set the contour
    on either side."""
    length = np.append(0, np.cumsum(np.hypot(*np.diff(line, axis=0).T)))
    even = np.linspace(0, length[-1], len(line))

    return np.stack([np.interp(even, length, line[:, axis]) for axis in (0, 1)], axis=1)


def visible_landmarks(
    head: Head, projected: np.ndarray, brows: SurfacePoints, pupils: np.ndarray, up: np.ndarray
) -> np.ndarray:
    """The 98 points in the picture, as annotators place them: what is hidden moves out to the
    visible outline.

    projected: (V, 2) vertices in image px; brows: 18 surface points (33-50) with their lines (18,
    steps); pupils: (2, 2) px; up: (2,) direction of the head's vertical axis in the picture.
    """
    # the picture's right along the head's horizontal
    right = np.array([-up[1], up[0]]) / max(np.hypot(*up), 1e-9)
    contour = head.contour.at(projected)  # (33, steps, 2)
    outward = np.where(np.arange(33) < 16, -1.0, 1.0)
    outward[16] = 0
    best = np.argmax((contour @ right) * outward[:, None], axis=1)
    points = np.empty((98, 2))
    outline = contour[np.arange(33), best]
    points[:17], points[16:33] = _evenly_spaced(outline[:17]), _evenly_spaced(outline[16:])

    features = head.features.at(projected)  # (65, 2)
    lines = head.feature_lines.at(projected)  # (65, steps, 2)
    brow = brows.at(projected)  # (18, 1 + steps, 2)
    features[:18], lines[:18] = brow[:, 0], brow[:, 1:]
    features[63:] = pupils
    side = np.sign(head.feature_xy[33:, 0])
    side[63:] = -1, 1
    lines[63:65] = lines[[29, 37]]  # the pupils hide where the upper lids' middles hide
    # > 0: the surface nearer the midline sticks out
    reach = ((lines - features[:, None]) @ right) * side[:, None]
    features += right * (np.maximum(reach.max(axis=1), 0) * side)[:, None]
    points[33:] = features

    return points
