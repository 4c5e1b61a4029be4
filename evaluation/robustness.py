"""How much a model loses when the face box is elsewhere: shifted, or of another size."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from dataset.crop import CROP_SIZE, PATCH_SIZE
from dataset.faces import FaceSet, scale_pixels
from evaluation.evaluate import errors_of, predict_landmarks, spread
from utils.progress import progress

SHIFTS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)  # of the box side, in a random direction
SCALES = (0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4)  # perturbed box side / box side
ROBUSTNESS_FACES = 500  # at most: the curves take 14 passes over them


def perturbed_crops(patches: torch.Tensor, shift: torch.Tensor, scale: float) -> torch.Tensor:
    """What the network would see if the face box were elsewhere: the patch resampled (bilinear) in
    a moved window.

    Args:
        patches: (B, 256, 256, 3) uint8.
        shift: (B, 2) displacement x, y of the box centre as a fraction of the box side.
        scale: side of the perturbed box / side of the box.

    Returns:
        (B, 3, 128, 128) float32, scaled like every network input; (0, 0) and 1 give the central
        crop.
    """
    size = len(patches)
    # Half a patch is one box side, so in normalised coordinates (edges at -1 and 1) a shift is its
    # own translation.
    theta = torch.zeros(size, 2, 3, device=patches.device)
    theta[:, 0, 0] = theta[:, 1, 1] = scale * CROP_SIZE / PATCH_SIZE
    theta[:, :, 2] = shift
    grid = F.affine_grid(theta, [size, 3, CROP_SIZE, CROP_SIZE], align_corners=False)
    pixels = patches.permute(0, 3, 1, 2).float()  # (B, 256, 256, 3) -> (B, 3, 256, 256)

    crops = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    return scale_pixels(crops)


def to_nominal_crop(points: np.ndarray, shift: np.ndarray, scale: float) -> np.ndarray:
    """Window pixels of :func:`perturbed_crops` -> crop pixels of the unperturbed box; (N, P, 2)
    float64.
    """
    centre = CROP_SIZE / 2
    # integers are pixel centres
    points = (np.asarray(points, np.float64) + 0.5 - centre) * scale + centre - 0.5

    return points + CROP_SIZE * np.asarray(shift, np.float64)[:, None, :]


def robustness(
    model: nn.Module, faces: FaceSet, *, device: torch.device | str, batch_size: int = 64
) -> dict[str, dict[float, float]]:
    """Mean NME (percent) when the face box is shifted in a seeded random direction, or scaled.

    At most ``ROBUSTNESS_FACES`` faces, evenly spaced over the set; each has its own direction, the
    same for every model and distance. Errors are measured in the unperturbed crop's pixels, so all
    numbers compare with the plain NME.
    """
    faces = faces.select(spread(len(faces), ROBUSTNESS_FACES))
    angles = np.random.default_rng(0).uniform(0, 2 * np.pi, len(faces))
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)  # (N, 2)
    passes = len(SHIFTS) + len(SCALES) - 1

    def mean_nme(distance: float, scale: float) -> float:
        shift = distance * directions
        shifts = torch.from_numpy(shift)

        def crops(patches: torch.Tensor, rows: slice) -> torch.Tensor:
            return perturbed_crops(patches, shifts[rows].to(patches.device), scale)

        run: dict[str, Any] = {"device": device, "batch_size": batch_size, "bar": bar}
        seen = to_nominal_crop(predict_landmarks(model, faces, crops=crops, **run), shift, scale)

        return 100 * float(errors_of(seen, faces).mean())

    with progress(total=passes * len(faces), desc="box perturbation", unit="face") as bar:
        by_shift = {distance: mean_nme(distance, 1.0) for distance in SHIFTS}
        by_scale = {scale: mean_nme(0.0, scale) for scale in SCALES if scale != 1.0}

    # shift 0 and scale 1 are the same
    return {"shift": by_shift, "scale": dict(sorted((by_scale | {1.0: by_shift[0.0]}).items()))}
