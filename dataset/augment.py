"""Augmentation as data: an epoch's order and one affine map a face, drawn at once from (seed,
epoch).

The map takes the 256 patch to the 128 crop. It composes, in this order and each with probability
1/2: rotation about the patch centre, shear about the patch's origin, the sampled window (box
perturbation) and the mirror. A face's map depends on (seed, epoch, index of the face) alone, not on
batch size, number of processes or where a run was resumed.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from dataset import photometric
from dataset.crop import CROP_OFFSET, CROP_SIZE, PATCH_SIZE
from dataset.faces import FaceSet, scale_pixels

MAX_ROTATION = np.deg2rad(25.0)
MAX_SHEAR = 0.3
MAX_WINDOW = 19.2  # patch px by which each edge of the window moves: 0.15 of half the patch
CENTRE = (PATCH_SIZE - 1) / 2
LAST = CROP_SIZE - 1
BLOCK = 4096  # faces whose landmarks are moved at once


class Draws(NamedTuple):
    """One epoch's random numbers for N faces; zeros where a coin said no."""

    rotation: np.ndarray  # (N,) radians
    shear: np.ndarray  # (N, 2): a, b of x' = x + a y, y' = b x + y
    window: np.ndarray  # (N, 2): growth to each side in x and y, patch pixels
    flip: np.ndarray  # (N,) bool


class Epoch(NamedTuple):
    """One epoch of training data for N faces with P landmarks.

    Args:
        order: (N,) int64, the face at each position of the epoch.
        matrices: (N, 2, 3) float32, by face: crop pixel -> patch pixel, for the warp.
        targets: (N, P, 2) float32, by face: augmented landmarks in crop pixels.
        looks: (N, D) float32, by face: photometric parameters; D is 0 where there are none.
    """

    order: torch.Tensor
    matrices: torch.Tensor
    targets: torch.Tensor
    looks: torch.Tensor


def draw(num_faces: int, *, seed: int, epoch: int) -> tuple[np.ndarray, Draws]:
    """Order and augmentation parameters of an epoch -> ((N,) int64, Draws)."""
    random = np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, epoch))))
    order = random.permutation(num_faces)
    coins = random.random((num_faces, 4)) < 0.5
    uniform = random.uniform(-1.0, 1.0, (num_faces, 5))
    draws = Draws(
        rotation=np.where(coins[:, 0], MAX_ROTATION * uniform[:, 0], 0.0),
        shear=np.where(coins[:, 1:2], MAX_SHEAR * uniform[:, 1:3], 0.0),
        window=np.where(coins[:, 2:3], MAX_WINDOW * uniform[:, 3:5], 0.0),
        flip=coins[:, 3],
    )

    return order, draws


def patch_to_crop(
    draws: Draws, *, rotation_centre: float = CENTRE, flip_sum: float = LAST
) -> np.ndarray:
    """The composed map of every face, patch pixel -> crop pixel, as (N, 3, 3) float64 matrices.

    Args:
        draws: the parameters of N faces.
        rotation_centre: coordinate, in x and y, of the point that the rotation leaves in place.
        flip_sum: the mirror is x' = flip_sum - x.
    """
    n = len(draws.flip)

    def matrices(rows: list[list]) -> np.ndarray:
        out = np.zeros((n, 3, 3))
        for i, row in enumerate([*rows, [0.0, 0.0, 1.0]]):
            for j, value in enumerate(row):
                out[:, i, j] = value
        return out

    cos, sin, c = np.cos(draws.rotation), np.sin(draws.rotation), rotation_centre
    rotation = matrices([[cos, -sin, c - cos * c + sin * c], [sin, cos, c - sin * c - cos * c]])
    shear = matrices([[1.0, draws.shear[:, 0], 0.0], [draws.shear[:, 1], 1.0, 0.0]])
    scale = LAST / (LAST + 2.0 * draws.window)  # pixel centres 64 - s .. 191 + s go to 0 .. 127
    offset = (draws.window - CROP_OFFSET) * scale
    window = matrices([[scale[:, 0], 0.0, offset[:, 0]], [0.0, scale[:, 1], offset[:, 1]]])
    sign = np.where(draws.flip, -1.0, 1.0)
    mirror = matrices([[sign, 0.0, np.where(draws.flip, flip_sum, 0.0)], [0.0, 1.0, 0.0]])

    return mirror @ window @ shear @ rotation


def draw_epoch(
    faces: FaceSet,
    *,
    seed: int,
    epoch: int,
    released_geometry: bool = False,
    photometric_changes: bool = False,
) -> Epoch:
    """Everything random about one epoch, on the device of the faces.

    Args:
        faces: the training set; its patches are not touched.
        seed: seed of the run.
        epoch: number of the epoch, from 0.
        released_geometry: labels as in the released code: rotated about 128 instead of 127.5 and
            mirrored by 128 - x instead of 127 - x. The pixels stay as they are.
        photometric_changes: also change colours, sharpness and noise, and cover parts.
    """
    order, draws = draw(len(faces), seed=seed, epoch=epoch)
    pixel_maps = patch_to_crop(draws)
    point_maps = pixel_maps
    if released_geometry:
        point_maps = patch_to_crop(draws, rotation_centre=PATCH_SIZE / 2, flip_sum=CROP_SIZE)

    targets = torch.empty_like(faces.landmarks)
    maps = torch.from_numpy(point_maps).to(targets.device)
    flip = torch.from_numpy(draws.flip).to(targets.device)

    # In blocks, since the products in float64 take eight times the memory of the landmarks.
    for start in range(0, len(faces), BLOCK):
        block = slice(start, start + BLOCK)
        points = faces.landmarks[block].double()[:, :, None, :]  # (B, P, 1, 2)
        moved = (maps[block, None, :2, :2] * points).sum(dim=-1) + maps[block, None, :2, 2]
        mirrored = moved[:, list(faces.scheme.mirror)]  # (B, P, 2)
        targets[block] = torch.where(flip[block, None, None], mirrored, moved).float()

    matrices = np.linalg.inv(pixel_maps)[:, :2].astype(np.float32)

    looks = torch.zeros(len(faces), 0)
    if photometric_changes:
        looks = photometric.pack(photometric.draw(len(faces), seed=seed, epoch=epoch))

    return Epoch(
        order=torch.from_numpy(order).to(targets.device),
        matrices=torch.from_numpy(matrices).to(targets.device),
        targets=targets,
        looks=looks.to(targets.device),
    )


def warp(patches: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """Sample crops from patches by bilinear interpolation; what lies outside a patch is black.

    Args:
        patches: (B, 256, 256, 3) uint8, RGB.
        matrices: (B, 2, 3) float32, crop pixel -> patch pixel.

    Returns:
        (B, 3, 128, 128) float32 grey values 0 to 255, in channels-last memory order. Where a matrix
        maps pixel centres to pixel centres, the values are the patch's own, bit for bit.
    """
    # Normalised coordinates of grid_sample without align_corners, (2 x + 1) / 256 - 1, are exact in
    # float32 at pixel centres, because 256 is a power of two.
    steps = torch.arange(CROP_SIZE, device=patches.device, dtype=torch.float32)
    m = matrices * (2.0 / PATCH_SIZE)
    offset = m[:, :, 2] + (1.0 / PATCH_SIZE - 1.0)  # (B, 2)
    along_x = m[:, None, :, 0] * steps[:, None]  # (B, W, 2)
    along_y = m[:, None, :, 1] * steps[:, None] + offset[:, None]  # (B, H, 2)
    grid = along_x[:, None] + along_y[:, :, None]  # (B, H, W, 2)
    # (B, C, 256, 256)
    pixels = patches.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.channels_last)
    crops = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    return crops.contiguous(memory_format=torch.channels_last)


def batch(faces: FaceSet, epoch: Epoch, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One augmented batch.

    Args:
        faces: the training set.
        epoch: the epoch's draws.
        index: (B,) int64 faces.

    Returns:
        (B, 3, 128, 128) float32 input and (B, 2 P) float32 targets x0 y0 x1 y1 ... in crop pixels.
    """
    # index_select copies whole faces; indexing with a tensor took fifteen times as long on a CPU.
    crops = warp(faces.patches.index_select(0, index), epoch.matrices.index_select(0, index))

    if epoch.looks.shape[1]:
        crops = photometric.apply(crops, epoch.looks.index_select(0, index))

    targets = epoch.targets.index_select(0, index).flatten(1)  # (B, P, 2) -> (B, 2P)

    return scale_pixels(crops), targets
