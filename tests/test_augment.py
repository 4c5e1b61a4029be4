"""Augmentation: pixels and landmarks move together, parameters span their ranges, and nothing
depends on the batch.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import centres_of_light, painted_dots

from dataset import augment
from dataset.augment import Draws, batch, draw, draw_epoch, patch_to_crop, warp
from dataset.faces import FaceSet, central_crops, scale_pixels
from dataset.landmarks import WFLW_98


def no_draws(count: int = 1) -> dict[str, np.ndarray]:
    return {
        "rotation": np.zeros(count),
        "shear": np.zeros((count, 2)),
        "window": np.zeros((count, 2)),
        "flip": np.zeros(count, dtype=bool),
    }


def crops_and_points(
    draws: Draws, patches: torch.Tensor, points: np.ndarray
) -> tuple[torch.Tensor, np.ndarray]:
    """Pixels through ``warp`` and points (N, P, 2) through the forward matrix."""
    maps = patch_to_crop(draws)
    crops = warp(patches, torch.from_numpy(np.linalg.inv(maps)[:, :2].astype(np.float32)))
    crops = scale_pixels(crops)

    return crops, np.einsum("nij,npj->npi", maps[:, :2, :2], points) + maps[:, None, :2, 2]


def random_faces(count: int = 6, seed: int = 0) -> FaceSet:
    random = np.random.default_rng(seed)
    return FaceSet(
        patches=torch.from_numpy(random.integers(0, 256, (count, 256, 256, 3), dtype=np.uint8)),
        landmarks=torch.from_numpy(random.uniform(64, 192, (count, 98, 2)).astype(np.float32)),
        scheme=WFLW_98,
        attributes=np.zeros((count, 6), dtype=bool),
        paths=[],
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rotation", np.array([0.4])),
        ("rotation", np.array([-0.4])),
        ("shear", np.array([[0.3, 0.0]])),
        ("shear", np.array([[-0.1, 0.15]])),
        ("window", np.array([[19.2, 0.0]])),
        ("window", np.array([[-19.2, 7.3]])),
        ("flip", np.array([True])),
    ],
    ids=str,
)
def test_a_painted_dot_lands_on_its_landmark(name, value):
    # (dots, 1, 2), patch pixels
    dots = np.array([[[120.0, 131.0]], [[95.0, 100.0]], [[142.0, 96.0]]])
    patches = torch.from_numpy(painted_dots((256, 256), dots))
    draws = Draws(**(no_draws(3) | {name: np.repeat(value, 3, axis=0)}))
    crops, points = crops_and_points(draws, patches, dots)
    found = centres_of_light(crops[:, 0] + 127.5 / 128)  # black is -127.5 / 128
    np.testing.assert_allclose(found, points[:, 0], atol=0.05)


def test_single_maps_against_their_formulas():
    point = np.array([[[150.0, 100.0]]])

    def moved(**values):
        maps = patch_to_crop(Draws(**(no_draws() | values)))[0]
        return (maps @ [*point[0, 0], 1.0])[:2]

    assert moved() == pytest.approx([86, 36], abs=1e-12)
    assert moved(flip=np.array([True])) == pytest.approx([127 - 86, 36], abs=1e-12)

    angle = 0.3
    turned = 127.5 + np.array(
        [np.cos(angle) * 22.5 + np.sin(angle) * 27.5, np.sin(angle) * 22.5 - np.cos(angle) * 27.5]
    )

    assert moved(rotation=np.array([angle])) == pytest.approx(turned - 64, abs=1e-12)
    assert moved(shear=np.array([[0.2, -0.1]])) == pytest.approx(
        [150 + 20 - 64, 100 - 15 - 64], abs=1e-12
    )

    window = moved(window=np.array([[10.0, -5.0]]))
    assert window == pytest.approx([(150 - 54) * 127 / 147, (100 - 69) * 127 / 117], abs=1e-12)


def test_the_order_is_rotation_shear_window_flip():
    one_by_one = np.eye(3)
    values = {"rotation": [0.3], "shear": [[0.2, -0.1]], "window": [[10.0, -5.0]], "flip": [True]}
    crop = np.array([[1.0, 0, -64], [0, 1, -64], [0, 0, 1]])

    for name, value in values.items():
        single = patch_to_crop(Draws(**(no_draws() | {name: np.array(value)})))[0]
        if name in ("rotation", "shear"):  # taken back to patch pixels
            single = np.linalg.inv(crop) @ single
        if name == "flip":  # the mirror in crop pixels
            single = single @ np.linalg.inv(crop)

        one_by_one = single @ one_by_one

    together = patch_to_crop(Draws(**{name: np.array(value) for name, value in values.items()}))[0]
    assert together == pytest.approx(one_by_one, abs=1e-9)


def test_without_draws_the_crop_is_the_central_one_bit_for_bit():
    faces = random_faces()
    crops, _ = crops_and_points(Draws(**no_draws(6)), faces.patches, np.zeros((6, 1, 2)))
    assert torch.equal(crops, central_crops(faces.patches))
    pixels = faces.patches[:, 64:192, 64:192].permute(0, 3, 1, 2).float()
    assert torch.equal(crops, (pixels - 127.5) / 128)


def only_flips(count: int, **_: object) -> tuple[np.ndarray, Draws]:
    return np.arange(count), Draws(**(no_draws(count) | {"flip": np.ones(count, bool)}))


def test_flipped_targets_are_mirrored_and_permuted(monkeypatch):
    faces = random_faces()
    monkeypatch.setattr(augment, "draw", only_flips)
    targets = draw_epoch(faces, seed=0, epoch=0).targets
    points = faces.crop_landmarks()[:, list(WFLW_98.mirror)]

    assert torch.allclose(targets[..., 0], 127 - points[..., 0], atol=1e-4)
    assert torch.allclose(targets[..., 1], points[..., 1], atol=1e-4)

    released = draw_epoch(faces, seed=0, epoch=0, released_geometry=True).targets
    assert torch.allclose(released[..., 0], 128 - points[..., 0], atol=1e-4)
    assert torch.allclose(released[..., 1], points[..., 1], atol=1e-4)


def test_released_geometry_changes_labels_alone_and_rotates_them_about_128():
    faces = random_faces(64)
    ours, theirs = (
        draw_epoch(faces, seed=3, epoch=2, released_geometry=flag) for flag in (False, True)
    )
    assert torch.equal(ours.matrices, theirs.matrices) and torch.equal(ours.order, theirs.order)

    _, draws = draw(64, seed=3, epoch=2)
    shift = (theirs.targets - ours.targets).numpy()
    plain = (draws.rotation == 0) & ~draws.flip
    assert np.abs(shift[plain]).max() < 1e-4

    only_flip = draws.flip & (draws.rotation == 0)
    assert np.allclose(shift[only_flip], [1, 0], atol=1e-4)

    turned = (
        (draws.rotation != 0)
        & ~draws.flip
        & (draws.shear == 0).all(axis=1)
        & (draws.window == 0).all(axis=1)
    )

    assert turned.any()

    for angle, moved in zip(draws.rotation[turned], shift[turned], strict=True):
        by = np.array([[1 - np.cos(angle), np.sin(angle)], [-np.sin(angle), 1 - np.cos(angle)]]) @ [
            0.5,
            0.5,
        ]
        assert np.allclose(moved, by, atol=1e-4)


def test_a_sample_does_not_depend_on_the_batch_it_is_in():
    faces = random_faces(8)
    epoch = draw_epoch(faces, seed=1, epoch=4)
    images, targets = batch(faces, epoch, torch.arange(8))

    for size in (1, 3, 5):
        for start in range(0, 8, size):
            index = torch.arange(start, min(start + size, 8))
            some, points = batch(faces, epoch, index)
            assert torch.equal(some, images[index]) and torch.equal(points, targets[index])

    again = draw_epoch(faces, seed=1, epoch=4)
    assert torch.equal(again.order, epoch.order) and torch.equal(again.targets, epoch.targets)


def test_epochs_and_seeds_differ_and_every_face_comes_once():
    faces = random_faces(16)
    first, second, other = (draw_epoch(faces, seed=s, epoch=e) for s, e in ((0, 0), (0, 1), (1, 0)))
    for drawn in (first, second, other):
        assert sorted(drawn.order.tolist()) == list(range(16))
    assert not torch.equal(first.matrices, second.matrices)
    assert not torch.equal(first.matrices, other.matrices)


def test_parameters_span_the_stated_ranges_with_probability_one_half():
    _, draws = draw(40_000, seed=0, epoch=0)

    for values, limit in (
        (draws.rotation, np.deg2rad(25)),
        (draws.shear, 0.3),
        (draws.window, 19.2),
    ):
        used = values[values != 0]
        assert np.abs(used).max() <= limit
        assert used.max() > 0.999 * limit and used.min() < -0.999 * limit
        assert abs(used.mean()) < 0.02 * limit
        assert used.std() == pytest.approx(limit / np.sqrt(3), rel=0.02)
        assert np.mean(values != 0) == pytest.approx(0.5, abs=0.01)

    assert draws.flip.mean() == pytest.approx(0.5, abs=0.01)

    # One coin for both draws, which are independent of each other.
    for pair in (draws.shear, draws.window):
        assert ((pair[:, 0] != 0) == (pair[:, 1] != 0)).all()
        assert abs(np.corrcoef(pair[pair[:, 0] != 0].T)[0, 1]) < 0.03

    coins = np.stack(
        [draws.rotation != 0, draws.shear[:, 0] != 0, draws.window[:, 0] != 0, draws.flip]
    )
    assert np.abs(np.corrcoef(coins) - np.eye(4)).max() < 0.03


def test_outside_the_patch_is_black():
    white = torch.full((1, 256, 256, 3), 255, dtype=torch.uint8)
    far = torch.tensor([[[1.0, 0.0, 300.0], [0.0, 1.0, 0.0]]])
    assert torch.equal(warp(white, far), torch.zeros(1, 3, 128, 128))
    inside = warp(white, torch.tensor([[[1.0, 0.0, 10.0], [0.0, 1.0, 10.0]]]))
    assert torch.equal(inside, torch.full((1, 3, 128, 128), 255.0))
