"""Landmarks of a video that do not tremble: a One-Euro filter for every point of every face."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from prediction.tracking import match_boxes

MIN_CUTOFF = 1.0  # Hz: how strongly a point at rest is smoothed
SPEED_GAIN = 10.0  # Hz per face side a second: how quickly smoothing gives way to motion
SPEED_CUTOFF = 1.0  # Hz: smoothing of the speed itself


class OneEuroFilter:
    """A low-pass filter whose cutoff frequency grows with speed (Casiez, Roussel, Vogel: *1 €
    Filter*, CHI 2012): still points keep still, moving ones hardly lag.

    A point that moves at a constant speed v lags v / (2π · cutoff) behind, where cutoff =
    MIN_CUTOFF + SPEED_GAIN · v; so never more than 1 / (2π · SPEED_GAIN), 1.6 % of the unit.

    Args:
        rate: samples a second.

    Call with points (P, 2) in any unit that does not change from call to call, best the face's
    side; returns them smoothed, (P, 2) float64. The first call returns what it is given.
    """

    def __init__(self, rate: float) -> None:
        if not rate > 0:
            raise ValueError(f"rate must be positive, not {rate}")

        self.rate = rate
        self._points: np.ndarray | None = None  # the last answer
        self._seen: np.ndarray | None = None  # the last input
        self._velocity = np.zeros(1)  # (P, 2) a second, smoothed

    def __call__(self, points: np.ndarray) -> np.ndarray:
        points = np.asarray(points, np.float64)
        if self._points is None or self._seen is None:
            self._points, self._velocity = points, np.zeros_like(points)
        else:
            velocity = (points - self._seen) * self.rate
            self._velocity = self._velocity + self._share(SPEED_CUTOFF) * (
                velocity - self._velocity
            )

            speed = np.linalg.norm(self._velocity, axis=-1, keepdims=True)  # (P, 2) -> (P, 1)
            share = self._share(MIN_CUTOFF + SPEED_GAIN * speed)
            self._points = self._points + share * (points - self._points)

        self._seen = points

        return self._points

    def _share(self, cutoff: np.ndarray | float) -> np.ndarray | float:
        """The new sample's share in exponential smoothing with this cutoff in Hz."""
        return 1 / (1 + self.rate / (2 * math.pi * cutoff))


class LandmarkSmoother:
    """A :class:`OneEuroFilter` a face; faces are known again from frame to frame by their boxes.

    Args:
        rate: frames a second.

    Call with one frame's N boxes (left, top, right, bottom) and landmarks (N, P, 2), both in image
    px; returns the landmarks smoothed, (N, P, 2) float32. A face without a predecessor starts
    afresh.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._boxes: Sequence[Sequence[int]] = []
        self._filters: list[tuple[OneEuroFilter, float]] = []  # with its face's side in px

    def __call__(self, boxes: Sequence[Sequence[int]], landmarks: np.ndarray) -> np.ndarray:
        before = match_boxes(boxes, self._boxes)
        self._filters = [
            (OneEuroFilter(self.rate), float(_side(box))) if old is None else self._filters[old]
            for old, box in zip(before, boxes, strict=True)
        ]
        self._boxes = boxes

        smoothed = np.array(landmarks, np.float32)
        for index, (smooth, side) in enumerate(self._filters):
            smoothed[index] = smooth(landmarks[index] / side) * side

        return smoothed


def _side(box: Sequence[int]) -> int:
    left, top, right, bottom = box
    return max(right - left, bottom - top) + 1
