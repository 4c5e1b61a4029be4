"""How the camera sees the head: pose, perspective, and the face box around what it sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BOX_SIDE = 120  # px of the face box in the picture that is rendered
CANVAS = 256  # px; a little more than the 2 × BOX_SIDE that a patch takes


@dataclass(frozen=True)
class Pose:
    """Angles in radians: yaw > 0 turns the face to the picture's right, pitch > 0 up, roll > 0
    counter-clockwise; distance of the camera in head units (small: wide angle)."""

    yaw: float
    pitch: float
    roll: float
    distance: float

    @property
    def rotation(self) -> np.ndarray:
        """Head space to camera space (x right, y up, z towards the viewer), (3, 3) float32."""
        # A nod is mostly the head's own, before it turns (in profile it looks like a roll), partly
        # the camera's height.
        shares = (self.yaw, 0.7 * self.pitch, 0.3 * self.pitch, self.roll)
        (cy, sy), (cp, sp), (ch, sh), (cr, sr) = ((np.cos(a), np.sin(a)) for a in shares)
        nod = np.array([[1, 0, 0], [0, cp, sp], [0, -sp, cp]])
        turn = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
        height = np.array([[1, 0, 0], [0, ch, sh], [0, -sh, ch]])
        tilt = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])

        return (tilt @ height @ turn @ nod).astype(np.float32)

    @property
    def large(self) -> bool:
        """The list's pose attribute."""
        yaw, pitch, roll = np.degrees(np.abs((self.yaw, self.pitch, self.roll)))
        return bool(yaw > 40 or pitch > 28 or roll > 32)


def draw_pose(rng: np.random.Generator, vary: bool = True) -> Pose:
    """Mostly near frontal, with all of ±90° of yaw represented; nearly frontal throughout where not
    `vary`."""
    distance = float(np.exp(rng.uniform(np.log(5.5), np.log(40))))
    if not vary:
        return Pose(*np.radians(rng.normal(0, 6, 3)).tolist(), distance)

    kind = rng.random()

    if kind < 0.52:
        yaw = rng.normal(0, 18)
    elif kind < 0.82:
        yaw = rng.uniform(-75, 75)
    else:
        yaw = rng.choice([-1, 1]) * rng.uniform(50, 90)

    pitch = rng.normal(3, 10) if rng.random() < 0.75 else rng.uniform(-42, 42)
    roll = rng.normal(0, 8) if rng.random() < 0.92 else rng.normal(0, 20)

    return Pose(*np.radians([np.clip(yaw, -90, 90), pitch, roll]).tolist(), distance)


def project(camera: np.ndarray, distance: float) -> np.ndarray:
    """Perspective at unit scale: camera space (V, 3) to x right, y down, depth, (V, 3) float32."""
    zoom = distance / np.maximum(distance - camera[:, 2], 0.5)
    x, y, depth = camera.T
    return np.stack((x * zoom, -y * zoom, depth), axis=1).astype(np.float32)


def draw_box(landmarks: np.ndarray, rng: np.random.Generator) -> tuple[float, float, float, float]:
    """A face box (left, top, width, height) around landmarks, as loose and as far off as WFLW's own
    are: its side relative to the larger extent of the landmarks, its centre above theirs, the
    shorter side at random."""
    low, high = landmarks.min(0), landmarks.max(0)
    extent = (high - low).max()
    ratio = np.clip(rng.normal(1.235, 0.12), 1.0, 1.65)
    side = extent * ratio
    shift = np.array([rng.normal(0, 0.03), -0.103 - 0.16 * (ratio - 1.235) + rng.normal(0, 0.036)])
    centre = (low + high) / 2 + np.clip(shift, -0.22, 0.1) * side
    width, height = side * (rng.uniform(0.7, 1) if rng.random() < 0.7 else 1), side

    return float(centre[0] - width / 2), float(centre[1] - height / 2), float(width), float(height)


@dataclass(frozen=True)
class View:
    """A camera whose picture is the canvas: its pose, the projected position of the first pixel, px
    per unit."""

    pose: Pose
    origin: np.ndarray
    scale: float

    def on_canvas(self, points: np.ndarray) -> np.ndarray:
        """Projected points (..., 2) to canvas px."""
        return (points - self.origin) * self.scale

    def see(self, camera: np.ndarray) -> np.ndarray:
        """Camera space (V, 3) to canvas px and depth, (V, 3) float32."""
        points = project(camera, self.pose.distance)
        points[:, :2] = self.on_canvas(points[:, :2])

        return points


def centred_view(pose: Pose, box: tuple[float, float, float, float], size: int) -> View:
    """The view that puts a face box (left, top, width, height; projected, unit scale) in the
    middle of a canvas of size x size pixels."""
    left, top, width, height = box
    scale = BOX_SIDE * (size / CANVAS) / max(width, height)
    middle = np.array([left + width / 2, top + height / 2])

    return View(pose, middle - (size - 1) / 2 / scale, scale)
