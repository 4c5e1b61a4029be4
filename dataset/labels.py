"""Labels that cannot be right, found before any patch is cut. They are prepared all the same: what
looks odd may be true, and whoever prepares faces is the one to judge.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from dataset.crop import CROP_SIZE, overlap_ratios
from dataset.landmarks import COMMON_60, SCHEMES, LandmarkScheme, require_eye_distance
from dataset.sources import SPLITS, Face, Source
from utils.progress import progress

if TYPE_CHECKING:  # it needs torch, and preparation does not
    from dataset.faces import FaceSet

# Limits as shares of the box's side, if nothing else is said. Beside each stands the outermost of
# 1,670 real faces with good labels: 463 of WFLW, 1,207 of Helen and AFW.
NEAR = 0.1  # a point that lies less far from the box is not counted as outside
MOST_OUTSIDE = 0.25  # share of the points that lie outside the box: 0.11; the picture: 0.15
FARTHEST = 0.5  # from a point to the box: 0.16
EYES = (0.03, 1.2)  # between the outer eye corners: 0.16 and 0.73
EXTENT = (0.45, 2.0)  # of the points: 0.57 and 1.17
OWN_EXTENT = (0.1, 2.0)  # the same where a scheme of one's own may cover little of the face
LEAST_PARALLEL = 0.6  # of the ways from points to their mirror partners, see `_parallel`: 0.88
LONGEST_STEP = 0.42  # within a contour, as a share of the points' extent: 0.34
SAME = 0.7  # overlap (IoU) of boxes in a picture above which they are one face's
LARGEST_ROLL = 70.0  # degrees that the line of the eyes is turned: 51
AS_STORED = "labels in stored pixels, though the picture's EXIF entry turns it upright"
BEYOND = "many points outside the picture, as if it had been made smaller"
BUILT_IN = (*SCHEMES.values(), COMMON_60)
EXIF_ORIENTATION, SIDEWAYS, UPSIDE_DOWN = 274, (5, 6, 7, 8), (3, 4)


def doubtful_labels(source: Source) -> list[str]:
    """One line for each kind of doubt: how many faces it concerns, and the first three.

    Raises:
        UserError: the outer eye corners of a test face coincide, so its NME is undefined.
    """
    test = source.faces["test"]
    landmarks = np.array([face.annotation.landmarks for face in test])
    require_eye_distance(landmarks, source.scheme, lambda index: test[index].where)

    faces = [face for split in SPLITS for face in source.faces[split]]
    points = np.array([face.annotation.landmarks for face in faces])
    boxes = np.array([face.annotation.box for face in faces], np.float64)
    size, turn = _pictures(faces, source.images)
    _, roll = _eyes(points, source.scheme)
    stored = np.where(roll < 135, (roll > 45) & np.isin(turn, SIDEWAYS), np.isin(turn, UPSIDE_DOWN))
    beyond = ((points < -0.5) | (points > size[:, None] - 0.5)).any(axis=2).mean(axis=1)

    doubts = {AS_STORED: stored} | _doubts(points, boxes, source.scheme)
    kinds = doubts | {BEYOND: beyond > MOST_OUTSIDE}, *_repeated(source)

    return [line for kind in kinds for line in _lines(kind, [face.name for face in faces])]


def doubtful_crops(faces: FaceSet) -> list[str]:
    """The same of prepared faces, as far as crops show it."""
    half = CROP_SIZE / faces.meta.get("box_scale", 1.0) / 2
    box = (CROP_SIZE - 1) / 2 + np.array([-half, -half, half, half])  # within the crop
    points = faces.crop_landmarks().double().numpy()
    doubts = _doubts(points, np.tile(box, (len(points), 1)), faces.scheme)

    return _lines(doubts, [f"{path.parent.name}/{path.name}" for path in faces.paths])


def _lines(doubts: dict[str, np.ndarray], names: list[str]) -> list[str]:
    """A line for each doubt that some face raises; a face counts once, for the first of them."""
    lines, seen = [], np.zeros(len(names), bool)

    for what, chosen in doubts.items():
        if new := np.flatnonzero(chosen & ~seen).tolist():
            first = ", ".join([names[i] for i in new[:3]] + ["…"] * (len(new) > 3))
            lines.append(f"{what}, in {len(new)} of {len(names)} faces: {first}")
        seen |= chosen

    return lines


def _doubts(points: np.ndarray, boxes: np.ndarray, scheme: LandmarkScheme) -> dict[str, np.ndarray]:
    """What is odd about points (N, P, 2) in boxes (N, 4), and in which faces, (N,) bool each."""
    own = scheme not in BUILT_IN
    extent = np.ptp(points, axis=1).max(axis=1)
    share, distance = _outside(points, boxes)
    fits = _fits(points, boxes, own)
    parallel, mirrored = _parallel(points, scheme)
    disordered = parallel < LEAST_PARALLEL
    if not own:
        disordered |= _longest_step(points, scheme) > LONGEST_STEP * extent

    eyes, roll = _eyes(points, scheme)
    # .pts files count pixels from 1
    marks = [(points == mark).all(axis=2).any(axis=1) for mark in (0, -1, -2)]

    return {
        "all points within one pixel, as if they were shares of the picture": extent <= 1,
        "points at (0, 0) or (-1, -1), as if missing": np.any(marks, axis=0),
        "a point far outside the face box": (share <= MOST_OUTSIDE) & (distance > FARTHEST),
        "points in another order than the scheme's (expected x0 y0 x1 y1 …)": disordered,
        "a box that reads as x y width height (expected x_min y_min x_max y_max)": ~fits
        & _fits(points, np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:] - 1]), own),
        "a box that reads as x_min x_max y_min y_max (expected x_min y_min x_max y_max)": ~fits
        & _fits(points, boxes[:, [0, 2, 1, 3]], own),
        "many points outside the face box, or a box much larger than the face": ~fits,
        "left and right exchanged, or labels of a mirrored picture": mirrored & (not own),
        "labels of a face that is upside down or on its side": (roll > LARGEST_ROLL) & (not own),
        "eye corners too near or too far from each other": ~_within(eyes / _side(boxes), EYES),
    }


def _outside(points: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of the points outside their box, and how far the farthest lies outside as a share of
    the box's side, (N,) each.
    """
    distance = np.maximum(boxes[:, None, :2] - points, points - boxes[:, None, 2:]).max(axis=2)
    distance = distance / np.maximum(_side(boxes), 1)[:, None]

    return (distance > NEAR).mean(axis=1), distance.max(axis=1)


def _fits(points: np.ndarray, boxes: np.ndarray, own: bool) -> np.ndarray:
    """(N,) bool: whether most of the points lie in a box of about their extent."""
    extent = np.ptp(points, axis=1).max(axis=1) / np.maximum(_side(boxes), 1)
    share, _ = _outside(points, boxes)

    return (share <= MOST_OUTSIDE) & _within(extent, OWN_EXTENT if own else EXTENT)


def _side(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2:] - boxes[:, :2]).max(axis=1) + 1


def _within(values: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    return (values >= limits[0]) & (values <= limits[1])


def _parallel(points: np.ndarray, scheme: LandmarkScheme) -> tuple[np.ndarray, np.ndarray]:
    """How far the ways from the points to their mirror partners are parallel, (N,) from 0 to 1; and
    whether they lead the wrong way, seen from the eyes with the face below, (N,) bool.
    """
    mirror = np.array(scheme.mirror)
    first = np.flatnonzero(mirror > np.arange(len(mirror)))
    if not first.size:
        return np.ones(len(points)), np.zeros(len(points), bool)

    ways = points[:, mirror[first]] - points[:, first]  # (N, pairs, 2)
    across = ways.sum(axis=1)
    length = np.linalg.norm(ways, axis=2).sum(axis=1)
    parallel = np.linalg.norm(across, axis=1) / np.where(length > 0, length, np.inf)

    down = points.mean(axis=1) - points[:, list(scheme.outer_eyes)].mean(axis=1)
    turn = across[:, 0] * down[:, 1] - across[:, 1] * down[:, 0]

    return parallel, turn < 0


def _longest_step(points: np.ndarray, scheme: LandmarkScheme) -> np.ndarray:
    """(N,): the longest way between neighbours of a contour."""
    contours = [list(contour.points) for contour in scheme.contours if len(contour.points) > 1]
    steps = [np.linalg.norm(np.diff(points[:, run], axis=1), axis=2) for run in contours]

    return np.concatenate(steps, axis=1).max(axis=1)


def _eyes(points: np.ndarray, scheme: LandmarkScheme) -> tuple[np.ndarray, np.ndarray]:
    """Distance of the outer eye corners, and degrees that their line is turned, (N,) each."""
    left, right = scheme.outer_eyes
    x, y = (points[:, right] - points[:, left]).T

    return np.hypot(x, y), np.degrees(np.abs(np.arctan2(y, x)))


def _pictures(faces: list[Face], images: Path) -> tuple[np.ndarray, np.ndarray]:
    """Of each face's picture width and height as shown, (N, 2) px, nan where it tells none, and the
    orientation of its EXIF entry, (N,), 1 where it has none.
    """
    known: dict[str, tuple[float, float, int]] = {}

    names = {face.annotation.image for face in faces}
    for name in progress(names, desc="looking at pictures", unit="picture"):
        known[name] = np.nan, np.nan, 1
        with suppress(Exception), Image.open(images / name) as picture:  # cutting names the damaged
            turn = picture.getexif().get(EXIF_ORIENTATION, 1)
            known[name] = *picture.size[:: -1 if turn in SIDEWAYS else 1], turn

    shown = np.array([known[face.annotation.image] for face in faces], np.float64)

    return shown[:, :2], shown[:, 2]


def _repeated(source: Source) -> list[dict[str, np.ndarray]]:
    """Which test faces have a picture of the training split, and which faces come twice, (N,) bool
    each.
    """
    faces = [(split, face) for split in SPLITS for face in source.faces[split]]
    content = _contents({source.images / face.annotation.image for _, face in faces})
    shown: dict[tuple[str, object], list[Face]] = {}
    both, twice = np.zeros((2, len(faces)), bool)

    for index, (split, face) in enumerate(faces):
        picture = content[source.images / face.annotation.image]
        both[index] = split == "test" and ("train", picture) in shown
        earlier = shown.setdefault((split, picture), [])
        boxes = np.array([other.annotation.box for other in earlier])
        overlap = overlap_ratios(np.array(face.annotation.box), boxes).max(initial=0)
        twice[index] = overlap > SAME
        earlier.append(face)

    return [{"the same picture in both splits": both}, {"the same face twice in a split": twice}]


def _contents(paths: set[Path]) -> dict[Path, object]:
    """What is equal for pictures with equal bytes: a digest, where more than one has a size."""
    sizes = {path: path.stat().st_size for path in paths if path.is_file()}
    often = {size for size, count in Counter(sizes.values()).items() if count > 1}

    return {
        path: blake2b(path.read_bytes()).digest() if sizes.get(path) in often else path
        for path in paths
    }
