"""Faces from one frame of a video to the next."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataset.crop import MAX_BOX_SIDE, overlap_ratios
from dataset.detector import overlaps
from prediction.inputs import Video
from prediction.predictor import LandmarkPredictor, Shot, cut_faces
from utils.runtime import progress

SLACK = 0.04  # of a box's side: landmarks that tremble by less leave its edges where they are
FOLLOW = 0.5  # of the rest is done in a frame: what a network sees in a box depends on the box
MIN_SIDE = 8  # px; in a smaller box there is nothing to see
MIN_OVERLAP = 0.3  # IoU of two boxes of one face in neighbouring frames, at least


def match_boxes(
    boxes: Sequence[Sequence[int]], before: Sequence[Sequence[int]]
) -> list[int | None]:
    """For each box the index of the earlier one that it continues; None: it is new.

    The pairs that overlap most are taken first; each earlier box is continued once at most.
    """
    ratios = overlap_ratios(np.array(boxes), np.array(before))
    matches: list[int | None] = [None] * len(boxes)

    for flat in np.argsort(-ratios, axis=None, kind="stable").tolist():
        new, old = divmod(flat, len(before))
        if ratios[new, old] < MIN_OVERLAP:
            break
        if matches[new] is None and old not in matches:
            matches[new] = old

    return matches


@dataclass
class _Face:
    """A face that was found, and what became of it since."""

    found_box: np.ndarray  # (4,) float64
    found: np.ndarray  # (P, 2) landmarks in that box
    box: np.ndarray  # (4,) float64, where it is now
    landmarks: np.ndarray  # (P, 2) in that box

    def carry(self, image: np.ndarray) -> bool:
        """Move and scale the box about as the landmarks did, less what may be trembling; whether
        they are where a face in the picture can be.
        """
        centre, other = self.found.mean(axis=0), self.landmarks.mean(axis=0)
        size = max(float(np.linalg.norm(self.found - centre)), 1e-6)
        growth = np.linalg.norm(self.landmarks - other) / size
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
        find: image -> boxes (left, top, right, bottom) and their scores.
        every: N.

    Call :meth:`boxes` with a frame, then :meth:`update` with what the network made of them.
    """

    def __init__(self, find: Callable, every: int) -> None:
        self._find = find
        self._every = every
        self._age = 0  # frames since the last search
        self._faces: list[_Face] = []
        self._searched: Sequence[Sequence[int]] | None = None  # boxes of this frame's search

    def boxes(self, image: np.ndarray) -> tuple[list[list[int]], list[float] | None]:
        """Boxes of the next frame, and scores where they were searched for."""
        self._age += 1
        if self._age < self._every:
            self._faces = [face for face in self._faces if face.carry(image)]
            if self._faces:
                self._searched = None
                return [face.whole_box() for face in self._faces], None

        boxes, scores = self._find(image)[:2]
        self._age, self._searched = 0, boxes

        return boxes, scores

    def update(self, landmarks: np.ndarray) -> None:
        """The landmarks (N, P, 2), image px, of the boxes that :meth:`boxes` gave."""
        if self._searched is not None:
            self._faces = [
                _Face(box, points, box, points)
                for box, points in zip(
                    np.array(self._searched, np.float64).reshape(-1, 4), landmarks, strict=True
                )
            ]

        for face, points in zip(self._faces, landmarks, strict=True):
            face.landmarks = points


class VideoShots:
    """A video's frames with their faces and landmarks.

    Args:
        every: frames from one search for faces to the next.

    Iterate for (shot, landmarks (N, P, 2) in image px), a pair a frame.
    """

    def __init__(
        self, predictor: LandmarkPredictor, path: Path, boxes_of: Callable, *, every: int
    ) -> None:
        self.path = path
        self.scheme = predictor.scheme
        self.video = Video(path)
        self._predictor, self._boxes_of, self._every = predictor, boxes_of, every

    def __iter__(self) -> Iterator[tuple[Shot, np.ndarray]]:
        frames = progress(
            self.video, desc=self.path.name, total=self.video.announced or None, unit="frame"
        )
        if self._every > 1:
            return self._carried(frames)

        return self._predictor.stream(
            cut_faces(self._predictor, self.path, frame, self._boxes_of) for frame in frames
        )

    def _carried(self, frames: Iterable[np.ndarray]) -> Iterator[tuple[Shot, np.ndarray]]:
        """Frame by frame, since a frame's boxes may need the landmarks of the one before."""
        tracker = FaceTracker(lambda image: self._boxes_of(self.path, image), self._every)

        for frame in frames:
            shot = cut_faces(
                self._predictor, self.path, frame, lambda _, image: tracker.boxes(image)
            )
            landmarks = self._predictor.predict_patches(shot.patches, shot.frames)
            tracker.update(landmarks)
            yield shot, landmarks
