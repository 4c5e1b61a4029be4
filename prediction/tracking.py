"""Faces from one frame of a video to the next."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from dataset.crop import MAX_BOX_SIDE
from prediction.inputs import Video
from prediction.predictor import LandmarkPredictor, Shot, cut_faces
from utils.runtime import progress

MIN_OVERLAP = 0.3  # IoU of two boxes of one face in neighbouring frames, at least


def overlap_ratios(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (N, 4) with others (M, 4), edges inclusive -> (N, M)."""
    boxes, others = (np.asarray(b, np.float64).reshape(-1, 4) for b in (boxes, others))
    low = np.maximum(boxes[:, None, :2], others[:, :2])
    high = np.minimum(boxes[:, None, 2:], others[:, 2:])
    shared = np.prod(np.maximum(high - low + 1, 0), axis=-1)  # (N, M, 2) -> (N, M)
    areas, other_areas = (np.prod(b[:, 2:] - b[:, :2] + 1, axis=1) for b in (boxes, others))

    return shared / (areas[:, None] + other_areas - shared)


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


class FaceTracker:
    """Face boxes of a video's frames: searched for in every N-th, carried along by the landmarks
    in between.

    A carried box moves and grows as the landmarks did since it was found, so that a detector's own
    way of laying boxes is kept. While no face is known, every frame is searched.

    Args:
        find: image -> boxes (left, top, right, bottom) and their scores.
        every: N.

    Call :meth:`boxes` with a frame, then :meth:`update` with what the network made of them.
    """

    def __init__(self, find: Callable, every: int) -> None:
        self._find = find
        self._every = every
        self._age = 0  # frames since the last search
        self._found: list[tuple[np.ndarray, np.ndarray]] = []  # box, landmarks where it was found
        self._now: list[np.ndarray] = []  # landmarks in the last frame
        self._searched: Sequence[Sequence[int]] | None = None  # boxes of this frame's search

    def boxes(self, image: np.ndarray) -> tuple[list[list[int]], list[float] | None]:
        """Boxes of the next frame, and scores where they were searched for."""
        self._age += 1
        if self._now and self._age < self._every:
            carried = [
                (pair, box)
                for pair, now in zip(self._found, self._now, strict=True)
                if (box := _carry(*pair, now, image)) is not None
            ]
            if carried:
                self._found = [pair for pair, _ in carried]
                self._searched = None
                return [box for _, box in carried], None

        boxes, scores = self._find(image)
        self._age, self._searched = 0, boxes

        return boxes, scores

    def update(self, landmarks: np.ndarray) -> None:
        """The landmarks (N, P, 2), image px, of the boxes that :meth:`boxes` gave."""
        if self._searched is not None:
            boxes = np.asarray(self._searched, np.float64).reshape(-1, 4)
            self._found = list(zip(boxes, landmarks, strict=True))

        self._now = list(landmarks)


def _carry(
    box: np.ndarray, then: np.ndarray, now: np.ndarray, image: np.ndarray
) -> list[int] | None:
    """A box moved and scaled about as its landmarks were; None where no face can be."""
    centre, other = then.mean(axis=0), now.mean(axis=0)
    growth = np.linalg.norm(now - other) / max(np.linalg.norm(then - centre), 1e-6)
    moved = (box.reshape(2, 2) - centre) * growth + other
    if not np.isfinite(moved).all():
        return None

    left, top, right, bottom = np.rint(moved).ravel().tolist()
    height, width = image.shape[:2]
    inside = left < width and top < height and right >= 0 and bottom >= 0
    if not inside or not 1 <= min(right - left, bottom - top):
        return None
    if max(right - left, bottom - top) >= MAX_BOX_SIDE:
        return None

    return [int(edge) for edge in (left, top, right, bottom)]


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
