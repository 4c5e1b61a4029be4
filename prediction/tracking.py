"""Faces from one frame of a video to the next: who is who, and where they are between searches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from dataset.crop import MAX_BOX_SIDE, overlap_ratios
from dataset.detector import overlaps

SLACK = 0.04  # of a box's side: landmarks that tremble by less leave its edges where they are
FOLLOW = 0.5  # of the rest is done in a frame: what a network sees in a box depends on the box
MIN_SIDE = 8  # px; in a smaller box there is nothing to see
MIN_OVERLAP = 0.3  # IoU of two boxes of one face in neighbouring frames, at least
LOST = 1.0  # s after which a face that is not found is forgotten
MOMENTUM = 0.5  # of a face's speed stays when a new frame tells another


def match(likeness: np.ndarray) -> list[int | None]:
    """For each of N new things the index of the one of M earlier that it continues; None: it is
    new.

    The pairs that are most alike are taken first, down to a likeness (N, M) of 0, exclusive; each
    earlier thing is continued once at most.
    """
    matches: list[int | None] = [None] * len(likeness)

    for flat in np.argsort(-likeness, axis=None, kind="stable").tolist():
        new, old = divmod(flat, likeness.shape[1])
        if likeness[new, old] <= 0:
            break
        if matches[new] is None and old not in matches:
            matches[new] = old

    return matches


def likeness(boxes: np.ndarray, before: np.ndarray) -> np.ndarray:
    """How alike boxes (N, 4) are to earlier ones (M, 4) -> (N, M): up to 1 what they overlap; where
    they do not, below 0 from a distance of one side of the box on, or where one is twice as large.
    """
    overlap = overlap_ratios(boxes, before)
    corners, earlier = boxes.reshape(-1, 2, 2), before.reshape(-1, 2, 2)
    sides, lengths = (np.ptp(each, axis=1).max(axis=1) + 1 for each in (corners, earlier))
    ratio = np.abs(np.log2(sides[:, None] / lengths))
    way = corners.mean(axis=1)[:, None] - earlier.mean(axis=1)
    distance = np.linalg.norm(way, axis=-1) / sides[:, None]
    apart = MIN_OVERLAP * (1 - np.maximum(distance, ratio))

    return np.where(overlap >= MIN_OVERLAP, overlap, apart)


@dataclass
class _Person:
    """Where a face was last, and how it moved."""

    id: int
    box: np.ndarray  # (4,) float64
    seconds: float
    velocity: np.ndarray  # (2,) px a second

    def expected(self, seconds: float) -> np.ndarray:
        return self.box + np.tile(self.velocity * (seconds - self.seconds), 2)

    def move(self, box: np.ndarray, seconds: float) -> None:
        passed = seconds - self.seconds
        if passed > 0:
            velocity = ((box - self.box).reshape(2, 2).mean(axis=0)) / passed
            self.velocity = MOMENTUM * self.velocity + (1 - MOMENTUM) * velocity

        self.box, self.seconds = box, seconds


class Identities:
    """Numbers that stay with the persons of a video: 0, 1, … in the order of their appearance.

    A face continues the one whose box, there or moved on at its speed, it overlaps most, or else
    the nearest; a face that is not found keeps its number for ``LOST`` seconds. Faces are not
    recognised: who comes back later is a new person, and after a cut a face may be taken for the
    one who was there.

    Call with the N boxes (left, top, right, bottom) of the next frame and its time in seconds;
    returns N numbers.
    """

    def __init__(self) -> None:
        self._persons: list[_Person] = []
        self._next = 0

    def __call__(self, boxes: Sequence[Sequence[int]], seconds: float) -> list[int]:
        self._persons = [person for person in self._persons if seconds - person.seconds <= LOST]
        found = np.array(boxes, np.float64).reshape(-1, 4)
        moved = np.array([person.expected(seconds) for person in self._persons]).reshape(-1, 4)
        stayed = np.array([person.box for person in self._persons]).reshape(-1, 4)
        alike = np.maximum(likeness(found, moved), likeness(found, stayed))
        # who was there in the frame before goes before who is hidden, perhaps by that very face
        seen = np.array([person.seconds for person in self._persons])
        alike += (alike >= MIN_OVERLAP) & (seen == seen.max(initial=0))
        numbers = []

        for box, old in zip(found, match(alike), strict=True):
            if old is None:
                person = _Person(self._next, box, seconds, np.zeros(2))
                self._persons.append(person)
                self._next += 1
            else:
                person = self._persons[old]
                person.move(box, seconds)

            numbers.append(person.id)

        return numbers


@dataclass
class _Face:
    """A face that was found, and what became of it since."""

    found_box: np.ndarray  # (4,) float64
    angle: float  # degrees by which the box is turned
    box: np.ndarray  # (4,) float64, where it is now
    landmarks: list[np.ndarray] = field(default_factory=list)  # (P, 2) as found, and the last

    def carry(self, image: np.ndarray) -> bool:
        """Move and scale the box about as the landmarks did, less what may be trembling; whether
        they are where a face in the picture can be.
        """
        found, last = self.landmarks[0], self.landmarks[-1]
        centre, other = found.mean(axis=0), last.mean(axis=0)
        growth = np.linalg.norm(last - other) / max(float(np.linalg.norm(found - centre)), 1e-6)
        target = ((self.found_box.reshape(2, 2) - centre) * growth + other).ravel()

        sides = target[2:] - target[:2]
        if not (np.isfinite(target).all() and MIN_SIDE <= min(sides) <= max(sides) < MAX_BOX_SIDE):
            return False

        change = target - self.box
        slack = SLACK * max(self.box[2:] - self.box[:2])
        self.box = self.box + FOLLOW * np.sign(change) * np.maximum(np.abs(change) - slack, 0)

        return overlaps(target.tolist(), image) and overlaps(self.whole_box(), image)

    def whole_box(self) -> list[int]:
        return [int(edge) for edge in np.rint(self.box).tolist()]


class FaceTracker:
    """Face boxes of a video's frames: searched for in every N-th, carried along by the landmarks
    in between.

    A carried box moves and grows as the landmarks did since it was found, so that a detector's own
    way of laying boxes is kept; it stands still where they only tremble. While no face is known,
    every frame is searched.

    Args:
        find: image -> boxes (left, top, right, bottom), their scores and angles.
        every: N.

    Call :meth:`boxes` with a frame, then :meth:`update` with what the network made of them.
    """

    def __init__(self, find: Callable, every: int) -> None:
        self._find, self._every = find, every
        self._age = 0  # frames since the last search
        self._faces: list[_Face] = []

    def boxes(self, image: np.ndarray) -> tuple[Sequence, Sequence | None, Sequence | None]:
        """Boxes of the next frame, their scores, None where they were carried, and angles."""
        self._age += 1
        if self._age < self._every:
            self._faces = [face for face in self._faces if face.carry(image)]
            if self._faces:
                angles = [face.angle for face in self._faces]
                return [face.whole_box() for face in self._faces], [None] * len(angles), angles

        boxes, scores, angles = self._find(image)
        places = np.array(boxes, np.float64).reshape(-1, 4)
        turns = [0.0] * len(places) if angles is None else angles
        self._faces = [_Face(box, angle, box) for box, angle in zip(places, turns, strict=True)]
        self._age = 0

        return boxes, scores, angles

    def update(self, landmarks: np.ndarray) -> None:
        """The landmarks (N, P, 2), image px, of the boxes that :meth:`boxes` gave."""
        for face, points in zip(self._faces, landmarks, strict=True):
            face.landmarks[1:] = [points]
