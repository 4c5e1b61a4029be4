"""The patch function against the arithmetic written out slowly, hand-made boxes and painted
dots.
"""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from conftest import centres_of_light, painted_dots

from dataset.crop import MAX_BOX_SIDE, PatchFrame, face_patch, patch_frame
from utils.files import UserError


@pytest.mark.parametrize(
    ("box", "scale", "origin", "side"),
    [
        ((100, 50, 163, 113), 1.25, (52, 2), 160),  # 64 grows by 8 at every edge
        ((100, 50, 162, 109), 1.25, (52, 1), 160),  # 63 x 60, first 64 x 64 from (100, 49)
        ((100, 50, 163, 113), 1.2, (56, 6), 152),  # 76.8, whose half is nearest to 38: 76
        ((100, 50, 163, 113), 0.5, (100, 50), 64),  # 16 px less at every edge
        ((0, 0, 1, 1), 1.6, (-3, -3), 8),  # 2 grows by 1 at every edge
        ((0, 0, 1, 1), 0.5, (-1, -1), 4),  # as small as it may be
    ],
)
def test_the_square_grows_about_its_centre(box, scale, origin, side):
    assert patch_frame(box, "area", scale) == PatchFrame(*origin, side, "area")


def plain_square(image: np.ndarray, box: tuple[int, int, int, int]) -> tuple[np.ndarray, int, int]:
    """The black-padded square (2S, 2S, 3), its box grown step by step, and its origin."""
    x0, y0, x1, y1 = box
    while x1 - x0 != y1 - y0:  # the shorter side grows by one pixel, high edge first
        missing = abs((x1 - x0) - (y1 - y0))
        if x1 - x0 < y1 - y0:
            x0, x1 = (x0, x1 + 1) if missing % 2 else (x0 - 1, x1)
        else:
            y0, y1 = (y0, y1 + 1) if missing % 2 else (y0 - 1, y1)

    size = x1 - x0 + 1 + (x1 - x0 + 1) % 2
    left, top = x0 - size // 2, y0 - size // 2
    height, width = image.shape[:2]
    black = max(0, -left, -top, left + 2 * size - width, top + 2 * size - height)
    padded = np.pad(image, ((black, black), (black, black), (0, 0)))
    rows, columns = (slice(black + edge, black + edge + 2 * size) for edge in (top, left))

    return padded[rows, columns], left, top


BOXES = [
    (20, 12, 50, 47),
    (-9, -7, 20, 30),
    (70, 30, 110, 60),
    (5, 40, 17, 75),
    (-40, -40, 140, 120),
    (99, 79, 120, 99),
    (30, 20, 35, 25),
    (30, 20, 34, 25),  # 5 x 6: nothing left, 1 right
    (30, 20, 88, 83),  # 59 x 64: 2 left, 3 right
    (10, 10, 10, 40),  # 1 x 31, then odd
    (0, 0, 1, 1),
    (10, 10, 10, 10),  # edges are inclusive: one pixel, then odd
]


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("resample", ["nearest", "area"])
def test_patch_is_the_resized_padded_square(box, resample):
    image = np.random.default_rng(1).integers(1, 256, (80, 100, 3), dtype=np.uint8)
    before = image.copy()
    square, left, top = plain_square(image, box)
    rule = {
        "nearest": cv2.INTER_NEAREST,
        "area": cv2.INTER_AREA if len(square) > 256 else cv2.INTER_LINEAR,
    }[resample]
    patch, frame = face_patch(image, box, resample)

    assert (frame.left, frame.top, frame.side) == (left, top, len(square))
    assert patch.shape == (256, 256, 3) and patch.dtype == np.uint8
    np.testing.assert_array_equal(patch, cv2.resize(square, (256, 256), interpolation=rule))
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("resample", ["nearest", "area"])
def test_to_image_undoes_to_patch(resample):
    points = np.random.default_rng(3).uniform(-50, 400, (4, 98, 2))
    frame = patch_frame((31, 17, 130, 100), resample)
    np.testing.assert_allclose(frame.to_image(frame.to_patch(points)), points, atol=1e-10)

    if resample == "nearest":
        expected = (points - [frame.left, frame.top]) * 256 / frame.side
    else:
        expected = (points - [frame.left, frame.top] + 0.5) * 256 / frame.side - 0.5

    np.testing.assert_array_equal(frame.to_patch(points), expected)


@pytest.mark.parametrize("half", [20, 32, 47, 64, 70, 99, 160, 256])
def test_painted_dots_land_on_their_landmarks(half):
    """In a patch of side 4 * half, shrunk or enlarged."""
    dot = np.array([2.2 * half, 1.9 * half])
    (image,) = painted_dots((4 * half, 4 * half), dot, sigma=half / 8)  # 8 patch px
    patch, frame = face_patch(image, (half, half, 3 * half - 1, 3 * half - 1), "area")
    (centre,) = centres_of_light(patch[None, ..., 0])
    np.testing.assert_allclose(centre, frame.to_patch(dot), atol=0.03)


@pytest.mark.parametrize("resample", ["nearest", "area"])
@pytest.mark.parametrize(("quarters", "angle"), [(1, -90), (2, 180), (3, 90), (3, -270)])
def test_a_picture_turned_by_quarters_gives_the_same_patch(quarters, angle, resample):
    image = np.random.default_rng(6).integers(0, 256, (120, 120, 3), dtype=np.uint8)
    box = (45, 40, 84, 79)  # it crosses no edge; its square does
    x = box[0] + 19.5 - 59.5, box[1] + 19.5 - 59.5  # the centre, from the picture's own
    turned = {1: (x[1], -x[0]), 2: (-x[0], -x[1]), 3: (-x[1], x[0])}[quarters]  # np.rot90's way
    left, top = (round(value + 59.5 - 19.5) for value in turned)
    expected, upright = face_patch(image, box, resample)
    other = np.rot90(image, quarters).copy()
    patch, frame = face_patch(other, (left, top, left + 39, top + 39), resample, angle=angle)

    np.testing.assert_array_equal(patch, expected)
    points = upright.to_image([[100.0, 50.0]]) - 59.5
    moved = {1: [1, -1], 2: [-1, -1], 3: [-1, 1]}[quarters] * (
        points if quarters == 2 else points[:, ::-1]
    )
    np.testing.assert_allclose(frame.to_image([[100.0, 50.0]]), moved + 59.5, atol=1e-9)


@pytest.mark.parametrize("angle", [-135.0, -50.0, 21.0, 77.0])
def test_a_painted_dot_lands_on_its_landmark_in_a_turned_patch(angle):
    dot = np.array([310.0, 250.0])
    (image,) = painted_dots((500, 600), dot, sigma=6)
    patch, frame = face_patch(image, (240, 180, 369, 309), "area", 1.2, angle=angle)

    (centre,) = centres_of_light(patch[None, ..., 0])
    np.testing.assert_allclose(centre, frame.to_patch(dot), atol=0.05)
    points = np.random.default_rng(3).uniform(-50, 400, (4, 98, 2))
    np.testing.assert_allclose(frame.to_image(frame.to_patch(points)), points, atol=1e-9)


@pytest.mark.parametrize(
    ("box", "words"),
    [
        ((11, 10, 10, 40), "no area"),
        ((10, 11, 40, 10), "no area"),
        ((0, 0, MAX_BOX_SIDE, 5), "larger than"),
        ((100, 10, 130, 40), "outside the image of 100 x 80"),
        ((10, 80, 40, 90), "outside the image of 100 x 80"),
        ((-30, 10, -1, 40), "outside the image of 100 x 80"),
        ((10, -30, 40, -1), "outside the image of 100 x 80"),
    ],
)
def test_boxes_that_cannot_be_cut_are_refused(box, words):
    with pytest.raises(UserError, match=words):
        face_patch(np.zeros((80, 100, 3), np.uint8), box)


def test_one_pixel_of_overlap_is_enough():
    patch, _ = face_patch(np.full((80, 100, 3), 255, np.uint8), (99, 79, 130, 110))
    assert patch.any()
