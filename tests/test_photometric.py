"""Photometric augmentation: each effect against a slow reference, the ranges of what is drawn, and
that it depends on (seed, epoch, face) alone.
"""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from test_augment import random_faces

from dataset.augment import batch, draw_epoch
from dataset.photometric import NEUTRAL, apply, draw, pack

RANGES = {  # name -> lowest and highest value, as documented
    "brightness": (-40, 40),
    "contrast": (0.65, 1.35),
    "cast": (0.8, 1.2),
    "grey": (0, 1),
    "gamma": (np.exp(-0.4), np.exp(0.4)),
    "blur": (0, 1),
    "noise": (0, 12),
    "noise_origin": (0, 3 * 128 * 128 - 1),
    "blocks": (0, 16),
    "colour": (0, 255),
}


def crops(count: int = 2, seed: int = 0) -> torch.Tensor:
    """Smooth random crops between 60 and 190, in channels-last order."""
    random = np.random.default_rng(seed)
    small = random.uniform(60, 190, (count, 9, 9, 3)).astype(np.float32)
    large = np.stack([cv2.resize(image, (128, 128)) for image in small])

    return torch.from_numpy(large).permute(0, 3, 1, 2)


def with_effect(images: torch.Tensor, **values: list[float]) -> np.ndarray:
    """Apply one set of parameters to all crops -> (B, H, W, 3) float64."""
    parameters = {name: np.tile(each, (len(images), 1)) for name, each in NEUTRAL.items()}
    for name, value in values.items():
        parameters[name][:] = value

    return apply(images, pack(parameters)).permute(0, 2, 3, 1).double().numpy()


def plain(images: torch.Tensor) -> np.ndarray:
    return images.permute(0, 2, 3, 1).double().numpy()


@pytest.mark.parametrize("name", RANGES)
def test_what_is_drawn_spans_its_range_in_some_faces_and_is_neutral_in_the_others(name):
    values, unchanged = draw(20_000, seed=3, epoch=5)[name], NEUTRAL[name]
    low, high = RANGES[name]
    drawn = values[(values != unchanged).any(axis=1)]

    assert values.min() >= low and values.max() <= high
    assert drawn.min() <= low + 0.01 * (high - low) and drawn.max() >= high - 0.01 * (high - low)
    assert 0.28 < len(drawn) / len(values) < 0.32


def test_rectangles_have_sides_in_range_and_reach_into_the_crop():
    rectangle = draw(20_000, seed=3, epoch=5)["rectangle"]
    left, top, right, bottom = rectangle[(rectangle != 0).any(axis=1)].T

    for sides in (right - left, bottom - top):
        assert 8 <= sides.min() < 8.5 and 47.5 < sides.max() <= 48

    assert left.min() >= -24 and left.max() < 104 and top.min() >= -24 and top.max() < 104


def test_colours_follow_their_formula():
    images, pixels = crops(), plain(crops())
    changed = with_effect(
        images, brightness=12, contrast=0.8, cast=[0.9, 1.0, 1.1], grey=0.4, gamma=1.3
    )
    grey = pixels @ np.array([0.299, 0.587, 0.114])
    expected = 0.6 * pixels + 0.4 * grey[..., None]
    expected = (expected * [0.9, 1.0, 1.1] - 127.5) * 0.8 + 127.5 + 12
    expected = 255 * (np.clip(expected, 0, 255) / 255) ** 1.3

    assert np.abs(changed - expected).max() < 0.01


def test_blur_mixes_with_a_binomial_filter():
    images, pixels = crops(), plain(crops())
    weights = np.array([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    inner = (slice(2, -2), slice(2, -2))

    for image, changed in zip(pixels, with_effect(images, blur=0.7), strict=True):
        smooth = cv2.sepFilter2D(image, -1, weights, weights)
        assert np.abs(changed[inner] - (0.3 * image + 0.7 * smooth)[inner]).max() < 1e-3


def test_blur_keeps_a_flat_picture_to_its_edges():
    flat = torch.full((1, 3, 128, 128), 90.0)

    assert np.allclose(with_effect(flat, blur=1), 90, atol=1e-3)


def test_noise_has_its_standard_deviation_and_follows_its_window():
    grey = torch.full((1, 3, 128, 128), 128.0).contiguous(memory_format=torch.channels_last)
    here = with_effect(grey, noise=8)[0] - 128
    moved = with_effect(grey, noise=8, noise_origin=[5 * 128 + 9])[0] - 128

    assert abs(here.std() - 8) < 0.1 and abs(here.mean()) < 0.2
    assert np.allclose(moved[:-6, :-9], here[5:-1, 9:], atol=1e-4)


def test_blocks_are_rounded_cosine_transforms():
    images, pixels = crops(), plain(crops())
    changed = with_effect(images, blocks=10)
    u = np.arange(8)
    steps = 10 * (1 + u[:, None] + u) / 2

    for row, column in ((0, 0), (64, 24), (120, 120)):
        place = (slice(row, row + 8), slice(column, column + 8))
        for channel in range(3):
            coefficients = cv2.dct(pixels[1][place][..., channel])
            expected = cv2.idct(np.round(coefficients / steps) * steps)
            assert np.abs(changed[1][place][..., channel] - expected).max() < 0.01


def test_a_rectangle_covers_its_pixels_and_no_others():
    images, pixels = crops(), plain(crops())
    changed = with_effect(images, rectangle=[10, 20, 30, 26], colour=[250, 0, 7])
    covered = np.zeros((128, 128), dtype=bool)
    covered[20:26, 10:30] = True

    assert np.allclose(changed[:, covered], [250, 0, 7], atol=1e-3)
    assert np.allclose(changed[:, ~covered], pixels[:, ~covered], atol=1e-3)


def test_nothing_leaves_the_range_of_grey_values():
    images = crops(300)
    changed = apply(images, pack(draw(300, seed=1, epoch=0)))

    assert changed.min() >= 0 and changed.max() <= 255
    assert changed.is_contiguous(memory_format=torch.channels_last)


def test_a_face_looks_the_same_in_every_batch_and_geometry_stays():
    faces = random_faces(6)
    plain_epoch = draw_epoch(faces, seed=2, epoch=1)
    epoch = draw_epoch(faces, seed=2, epoch=1, photometric_changes=True)
    together, targets = batch(faces, epoch, torch.arange(6))

    assert torch.equal(targets, batch(faces, plain_epoch, torch.arange(6))[1])
    assert torch.equal(epoch.order, plain_epoch.order)

    for face in range(6):
        alone = batch(faces, epoch, torch.tensor([face]))[0]
        assert torch.allclose(alone[0], together[face], atol=1e-4)
