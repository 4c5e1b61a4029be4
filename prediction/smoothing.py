"""Landmarks of a video that do not tremble: a One-Euro filter for every point of every face."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

MIN_CUTOFF = 1.0  # Hz: how strongly a point at rest is smoothed
SPEED_GAIN = 10.0  # Hz per face side a second: how quickly smoothing gives way to motion
SPEED_CUTOFF = 1.0  # Hz: smoothing of the speed itself


class OneEuroFilter:
    """A low-pass filter whose cutoff frequency grows with speed (Casiez, Roussel, Vogel: *1 €
    Filter*, CHI 2012): still points keep still, moving ones hardly lag.

    A point that moves at a constant speed v lags v / (2π · cutoff) behind, where cutoff =
    MIN_CUTOFF + SPEED_GAIN · v; so never more than 1 / (2π · SPEED_GAIN), 1.6 % of the unit.

    Call with points (P, 2) in any unit that does not change from call to call, best the face's
    side, and the seconds since the call before; returns them smoothed, (P, 2) float64. The first
    call returns what it is given.
    """

    def __init__(self) -> None:
        self._points: np.ndarray | None = None  # the last answer
        self._seen: np.ndarray | None = None  # the last input
        self._velocity = np.zeros(1)  # (P, 2) a second, smoothed

    def __call__(self, points: np.ndarray, passed: float) -> np.ndarray:
        points = np.asarray(points, np.float64)
        if self._points is None or self._seen is None:
            self._points, self._velocity = points, np.zeros_like(points)
        elif passed > 0:
            change = (points - self._seen) / passed - self._velocity
            self._velocity = self._velocity + _share(SPEED_CUTOFF, passed) * change

            speed = np.linalg.norm(self._velocity, axis=-1, keepdims=True)  # (P, 2) -> (P, 1)
            share = _share(MIN_CUTOFF + SPEED_GAIN * speed, passed)
            self._points = self._points + share * (points - self._points)

        self._seen = points

        return self._points


def _share(cutoff: np.ndarray | float, passed: float) -> np.ndarray | float:
    """The new sample's share in exponential smoothing with this cutoff in Hz."""
    return 1 / (1 + 1 / (2 * math.pi * cutoff * passed))


class LandmarkSmoother:
    """A :class:`OneEuroFilter` for every person of a video.

    Call with one frame's N numbers of persons, boxes (left, top, right, bottom) and landmarks
    (N, P, 2), both in image px, and its time in seconds; returns the landmarks smoothed, (N, P, 2)
    float32. A person who was not there in the frame before starts afresh.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._filters: dict[int, tuple[OneEuroFilter, int]] = {}  # with the face's side in px

    def __call__(
        self,
        ids: Sequence[int],
        boxes: Sequence[Sequence[int]],
        landmarks: np.ndarray,
        seconds: float,
    ) -> np.ndarray:
        passed, self._seconds = seconds - self._seconds, seconds
        self._filters = {
            number: self._filters.get(number) or (OneEuroFilter(), _side(box))
            for number, box in zip(ids, boxes, strict=True)
        }

        smoothed = np.array(landmarks, np.float32)
        for index, number in enumerate(ids):
            smooth, side = self._filters[number]
            smoothed[index] = smooth(landmarks[index] / side, passed) * side

        return smoothed


def _side(box: Sequence[int]) -> int:
    left, top, right, bottom = box
    return max(right - left, bottom - top) + 1
