"""Landmarks of a video: smoothing, and boxes from frame to frame."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dataset.crop import overlap_ratios
from prediction.smoothing import LandmarkSmoother, OneEuroFilter
from prediction.tracking import LOST, FaceTracker, Identities

RATE = 25.0
IMAGE = np.zeros((200, 300, 3), np.uint8)


def one_coordinate_at_a_time(samples: np.ndarray, rate: float) -> np.ndarray:
    """The filter of the paper for one point (T, 2), in plain loops."""

    def alpha(cutoff: float) -> float:
        tau = 1 / (2 * math.pi * cutoff)
        return 1 / (1 + tau * rate)

    answer, velocity = list(samples[0]), [0.0, 0.0]
    answers = [tuple(answer)]

    for before, now in zip(samples[:-1], samples[1:], strict=True):
        a = alpha(1.0)
        for axis in (0, 1):
            velocity[axis] = a * (now[axis] - before[axis]) * rate + (1 - a) * velocity[axis]

        a = alpha(1.0 + 10.0 * math.hypot(*velocity))
        for axis in (0, 1):
            answer[axis] = a * now[axis] + (1 - a) * answer[axis]

        answers.append(tuple(answer))

    return np.array(answers)


def test_it_is_the_filter_of_the_paper():
    samples = np.random.default_rng(0).normal(size=(40, 5, 2)).cumsum(axis=0) / 50
    smooth = OneEuroFilter()
    answers = np.stack([smooth(points, 1 / RATE) for points in samples])
    for point in range(5):
        expected = one_coordinate_at_a_time(samples[:, point], RATE)
        assert np.allclose(answers[:, point], expected, atol=1e-12)


def test_faces_keep_their_filters_when_their_order_changes():
    random = np.random.default_rng(3)
    boxes = [[0, 0, 49, 49], [100, 100, 199, 199]]
    frames = [random.normal(0, 1, (2, 98, 2)) + [[[25, 25]], [[150, 150]]] for _ in range(6)]
    in_order, swapped = LandmarkSmoother(), LandmarkSmoother()

    for number, landmarks in enumerate(frames):
        expected = in_order([0, 1], boxes, landmarks, number / RATE)
        order = [1, 0] if number % 2 else [0, 1]
        answer = swapped(order, [boxes[i] for i in order], landmarks[order], number / RATE)
        assert np.array_equal(answer, expected[order])
        assert answer.dtype == np.float32


def test_smoothing_does_not_depend_on_the_size_of_the_face():
    random, small, large = np.random.default_rng(4), LandmarkSmoother(), LandmarkSmoother()
    for number in range(10):
        landmarks, seconds = random.normal(20, 1, (1, 98, 2)), number / RATE
        doubled = large([0], [[0, 0, 79, 79]], 2 * landmarks, seconds)
        assert np.allclose(2 * small([0], [[0, 0, 39, 39]], landmarks, seconds), doubled, rtol=1e-6)


def test_a_face_that_appears_is_not_smoothed_with_another():
    smoother = LandmarkSmoother()
    smoother([0], [[0, 0, 49, 49]], np.full((1, 98, 2), 20.0), 0.0)
    landmarks = np.stack([np.full((98, 2), 120.0), np.full((98, 2), 21.0)])
    answer = smoother([1, 0], [[100, 100, 149, 149], [0, 0, 49, 49]], landmarks, 0.04)
    assert np.array_equal(answer[0], landmarks[0]) and (answer[1] < 21).all()
    assert smoother([], [], np.empty((0, 98, 2)), 0.08).shape == (0, 98, 2)


def test_overlap_ratios_by_counting_pixels():
    boxes = np.array([[2, 3, 9, 12], [0, 0, 4, 4], [20, 20, 25, 22]])
    others = np.array([[5, 1, 15, 8], [2, 3, 9, 12]])

    def pixels(box: np.ndarray) -> set[tuple[int, int]]:
        return {(x, y) for x in range(box[0], box[2] + 1) for y in range(box[1], box[3] + 1)}

    expected = [
        [len(pixels(a) & pixels(b)) / len(pixels(a) | pixels(b)) for b in others] for a in boxes
    ]
    assert np.allclose(overlap_ratios(boxes, others), expected)


def square(x: float, y: float, side: int = 40) -> list[int]:
    return [round(x), round(y), round(x) + side - 1, round(y) + side - 1]


def test_numbers_stay_with_persons_whatever_their_order():
    identities, random = Identities(), np.random.default_rng(0)
    starts, speeds = random.uniform(0, 600, (6, 2)), random.uniform(-4, 4, (6, 2))
    starts = starts + [[0, 700 * index] for index in range(6)]  # nobody meets anybody
    known: dict[int, int] = {}

    for frame in range(40):
        order = random.permutation(6)[: 6 - frame % 2]  # now and then one is not found
        numbers = identities([square(*(starts + frame * speeds)[i]) for i in order], frame / RATE)
        for person, number in zip(order.tolist(), numbers, strict=True):
            assert known.setdefault(person, number) == number

    assert sorted(known.values()) == list(range(6))


def test_two_who_pass_each_other_keep_their_numbers():
    identities = Identities()
    for frame in range(40):
        first, second = square(10 * frame, 0), square(400 - 10 * frame, 12)
        if frame % 2:
            assert identities([second, first], frame / RATE) == [1, 0]
        else:
            assert identities([first, second], frame / RATE) == [0, 1]


@pytest.mark.parametrize("speeds", [(6, -6), (6, 0), (12, -4)])
def test_who_is_hidden_in_passing_keeps_the_number(speeds):
    """The second face is not found while the first one covers a third of it."""
    identities, random = Identities(), np.random.default_rng(0)

    for frame in range(60):
        left, right = (start + speed * frame for start, speed in zip((0, 360), speeds, strict=True))
        shown = [0, 1] if abs(left - right) > 27 else [0]
        places = [square(*(random.normal(0, 1, 2) + [(left, right)[i], 0])) for i in shown]
        assert identities(places, frame / RATE) == shown


def test_a_face_that_is_lost_keeps_its_number_for_a_second():
    for gap, same in ((0.2, True), (0.9 * LOST, True), (1.1 * LOST, False)):
        identities = Identities()
        for frame in range(10):
            assert identities([square(100 + frame, 50)], frame / RATE) == [0]

        # it moved on, less than before, and seems larger
        assert (identities([square(112, 55, 48)], 9 / RATE + gap) == [0]) == same


def test_a_number_is_given_once_a_frame_and_to_the_best():
    identities = Identities()
    assert identities([[0, 0, 9, 9], [5, 0, 14, 9]], 0.0) == [0, 1]
    boxes = [[4, 0, 13, 9], [1, 0, 10, 9], [90, 90, 99, 99], [90, 90, 99, 99]]
    assert identities(boxes, 0.04) == [1, 0, 2, 3]
    assert identities([], 0.08) == []


def searching(*answers: list[list[int]]):
    """A detector that gives one answer after the other, and the list of its answers so far."""
    given: list = []

    def find(image: np.ndarray) -> tuple[list, list, list]:
        boxes = answers[min(len(given), len(answers) - 1)]
        given.append(boxes)
        return boxes, [0.9] * len(boxes), [30.0] * len(boxes)

    return find, given


def test_a_carried_box_moves_and_grows_with_the_landmarks():
    find, given = searching([[40, 50, 79, 99]])
    tracker = FaceTracker(find, 4)
    shape = np.random.default_rng(5).normal(0, 10, (98, 2))
    shape -= shape.mean(axis=0)

    assert tracker.boxes(IMAGE) == ([[40, 50, 79, 99]], [0.9], [30.0])
    tracker.update((shape + [60, 75])[None])
    assert tracker.boxes(IMAGE) == ([[40, 50, 79, 99]], [None], [30.0])  # nothing has moved yet

    # moved by (10, -5); 0.04 of the side, 49, is left for trembling, and half of the rest is done
    tracker.update((shape + [70, 70])[None])
    assert tracker.boxes(IMAGE) == ([[44, 48, 83, 97]], [None], [30.0])

    # twice as large, (x - 60) * 2 + 60, (y - 75) * 2 + 75: towards 20 25 98 123
    tracker.update((2 * shape + [60, 75])[None])
    assert tracker.boxes(IMAGE) == ([[33, 38, 90, 109]], [None], [30.0]) and len(given) == 1

    tracker.update((shape + [60, 75])[None])
    assert tracker.boxes(IMAGE) == ([[40, 50, 79, 99]], [0.9], [30.0]) and len(given) == 2


def test_every_frame_is_searched_while_no_face_is_known():
    find, given = searching([], [], [[10, 10, 50, 50]])
    tracker = FaceTracker(find, 10)
    for count in (1, 2, 3):
        boxes, *_ = tracker.boxes(IMAGE)
        tracker.update(np.random.default_rng(6).uniform(10, 50, (len(boxes), 98, 2)))
        assert len(given) == count

    tracker.boxes(IMAGE)
    assert len(given) == 3


@pytest.mark.parametrize(
    "landmarks",
    [
        np.full((1, 98, 2), np.nan),
        np.random.default_rng(7).uniform(5000, 5050, (1, 98, 2)),  # far outside the picture
        np.random.default_rng(7).uniform(-1e6, 1e6, (1, 98, 2)),  # a giant's
        np.full((1, 98, 2), 30.0),  # all in one point
    ],
)
def test_a_face_that_cannot_be_is_searched_for_again(landmarks):
    find, given = searching([[10, 10, 50, 50]])
    tracker = FaceTracker(find, 10)
    tracker.boxes(IMAGE)
    tracker.update(np.random.default_rng(8).uniform(10, 50, (1, 98, 2)))
    tracker.boxes(IMAGE)
    tracker.update(landmarks)
    assert tracker.boxes(IMAGE)[1] == [0.9] and len(given) == 2
