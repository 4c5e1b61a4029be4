"""A model over a set of faces: predictions, per-face errors, subsets, uncertainty, robustness to the face box."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from dataset.annotations import ATTRIBUTES
from dataset.crop import CROP_SIZE, PATCH_SIZE
from dataset.faces import FaceSet, central_crops, scale_pixels
from engine.checkpoint import LoadedModel
from utils.files import InputError
from utils.metrics import auc, failure_rate, nme
from utils.runtime import progress as progress_bar

SHIFTS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)  # of the box side, in a random direction
SCALES = (0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4)  # perturbed box side / box side
ROBUSTNESS_FACES = 500  # at most: the curves take 14 passes over them
RESAMPLES = 10_000  # of the bootstrap


def require_same_points(loaded: LoadedModel, faces: FaceSet) -> None:
    """Refuse a model that was trained for another number of landmarks than the data has."""
    expected, found = loaded.config["num_landmarks"], faces.landmarks.shape[1]
    if expected != found:
        raise InputError(
            f"{loaded.path}: the model predicts {expected} landmarks, the data has {found} ({faces.scheme.name}); "
            "evaluate it on data of its own scheme"
        )


def predict_landmarks(
    model: nn.Module, faces: FaceSet, *, device: torch.device | str, batch_size: int = 64, progress: bool = False
) -> np.ndarray:
    """Landmarks of every face, in evaluation mode (the model's own mode is restored afterwards).

    The model is moved to ``device``, the faces batch by batch.

    Returns:
        (N, P, 2) float32 in crop pixels. Not clipped: landmarks outside the 128x128 crop are legitimate.
    """

    def crops(patches: torch.Tensor, rows: slice) -> torch.Tensor:
        return central_crops(patches)

    with progress_bar(total=len(faces), desc="predict", unit="face") if progress else nullcontext() as bar:
        return _predict(model, faces, crops, device=device, batch_size=batch_size, bar=bar)


def face_errors(model: nn.Module, faces: FaceSet, *, device: torch.device | str, batch_size: int = 64) -> np.ndarray:
    """NME of every face, (N,) float64 fractions of the inter-ocular distance."""
    prediction = predict_landmarks(model, faces, device=device, batch_size=batch_size)
    return nme(prediction, _numpy(faces.crop_landmarks()), faces.scheme.outer_eyes)


def subsets(faces: FaceSet) -> dict[str, np.ndarray]:
    """Name -> (N,) mask of the faces: ``full`` and one subset per attribute (which may be empty)."""
    masks = {"full": np.ones(len(faces), dtype=bool)}
    return masks | {name: faces.attributes[:, i] for i, name in enumerate(ATTRIBUTES)}


def summarize(errors: np.ndarray, masks: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Per subset: number of faces, NME and FR@0.1 in percent, AUC@0.1 in 0..1; NaN where a subset is empty."""

    def row(chosen: np.ndarray) -> dict[str, float]:
        mean = 100 * float(chosen.mean()) if chosen.size else float("nan")
        rates = {"fr_percent": 100 * failure_rate(chosen), "auc": auc(chosen)}
        return {"faces": int(chosen.size), "nme_percent": mean, **rates}

    return {name: row(errors[mask]) for name, mask in masks.items()}


def bootstrap_means(errors: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Mean error of every model over the same faces drawn with replacement.

    All models see the same draws, so differences between rows are *paired*: what makes a face hard cancels out.

    Args:
        errors: (M, N), one row a model.

    Returns:
        (M, resamples) float64.
    """
    errors = np.ascontiguousarray(np.asarray(errors, np.float64).T)  # (M, N) -> (N, M): one gather fetches all models
    rng = np.random.default_rng(seed)
    chunk = max(1, 2_000_000 // errors.size)
    means = []
    for start in range(0, resamples, chunk):
        draws = rng.integers(0, len(errors), size=(min(chunk, resamples - start), len(errors)))
        means.append(errors[draws].mean(axis=1))  # (chunk, N, M) -> (chunk, M)
    return np.concatenate(means).T


def paired_difference(means: np.ndarray, errors: np.ndarray) -> dict[str, float]:
    """Difference of two models' mean errors with its 95 % percentile interval.

    Args:
        means: (2, resamples) of :func:`bootstrap_means`.
        errors: (2, N) per-face errors.

    Returns:
        ``difference`` (second - first: negative where the second is better), ``low``, ``high``, in the errors' unit.
    """
    low, high = np.percentile(means[1] - means[0], (2.5, 97.5))
    return {"difference": float(np.mean(errors[1] - errors[0])), "low": float(low), "high": float(high)}


def perturbed_crops(patches: torch.Tensor, shift: torch.Tensor, scale: float) -> torch.Tensor:
    """What the network would see if the face box were elsewhere: the patch resampled (bilinear) in a moved window.

    Args:
        patches: (B, 256, 256, 3) uint8.
        shift: (B, 2) displacement x, y of the box centre as a fraction of the box side.
        scale: side of the perturbed box / side of the box.

    Returns:
        (B, 3, 128, 128) float32, scaled like every network input; (0, 0) and 1 give the central crop.
    """
    size = len(patches)
    # Half a patch is one box side, so in normalised coordinates (edges at -1 and 1) a shift is its own translation.
    theta = torch.zeros(size, 2, 3, device=patches.device)
    theta[:, 0, 0] = theta[:, 1, 1] = scale * CROP_SIZE / PATCH_SIZE
    theta[:, :, 2] = shift
    grid = F.affine_grid(theta, [size, 3, CROP_SIZE, CROP_SIZE], align_corners=False)
    pixels = patches.permute(0, 3, 1, 2).float()  # (B, 256, 256, 3) -> (B, 3, 256, 256)
    return scale_pixels(F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False))


def to_nominal_crop(points: np.ndarray, shift: np.ndarray, scale: float) -> np.ndarray:
    """Window pixels of :func:`perturbed_crops` -> crop pixels of the unperturbed box; (N, P, 2) float64."""
    centre = CROP_SIZE / 2
    points = (np.asarray(points, np.float64) + 0.5 - centre) * scale + centre - 0.5  # integers are pixel centres
    return points + CROP_SIZE * np.asarray(shift, np.float64)[:, None, :]


def robustness(
    model: nn.Module,
    faces: FaceSet,
    *,
    device: torch.device | str,
    batch_size: int = 64,
    limit: int = ROBUSTNESS_FACES,
    seed: int = 0,
) -> dict[str, dict[float, float]]:
    """Mean NME (percent) when the face box is shifted in a seeded random direction, or scaled.

    At most ``limit`` faces, evenly spaced over the set; each has its own direction, the same for every model and
    distance. Errors are measured in the unperturbed crop's pixels, so all numbers compare with the plain NME.
    """
    faces = _rows(faces, spread(len(faces), limit))
    angles = np.random.default_rng(seed).uniform(0, 2 * np.pi, len(faces))
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)  # (N, 2)
    target = _numpy(faces.crop_landmarks())
    passes = len(SHIFTS) + len(SCALES) - 1  # shift 0 and scale 1 are the same

    def mean_nme(distance: float, scale: float) -> float:
        shift = distance * directions
        shifts = torch.from_numpy(shift)

        def crops(patches: torch.Tensor, rows: slice) -> torch.Tensor:
            return perturbed_crops(patches, shifts[rows].to(patches.device), scale)

        seen = _predict(model, faces, crops, device=device, batch_size=batch_size, bar=bar)
        return 100 * float(nme(to_nominal_crop(seen, shift, scale), target, faces.scheme.outer_eyes).mean())

    with progress_bar(total=passes * len(faces), desc="box perturbation", unit="face") as bar:
        by_shift = {distance: mean_nme(distance, 1.0) for distance in SHIFTS}
        by_scale = {scale: by_shift[0.0] if scale == 1.0 else mean_nme(0.0, scale) for scale in SCALES}
    return {"shift": by_shift, "scale": by_scale}


def spread(count: int, wanted: int) -> np.ndarray:
    """At most ``wanted`` row indices, evenly spaced over ``count`` rows."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).round().astype(int))


@torch.no_grad()
def _predict(
    model: nn.Module, faces: FaceSet, crops: Callable, *, device: torch.device | str, batch_size: int, bar: Any
) -> np.ndarray:
    """Predictions (N, P, 2) float32 from ``crops(patches on the device, rows)``."""
    training = model.training
    model = model.to(device).eval()
    output = []
    try:
        for start in range(0, len(faces), batch_size):
            rows = slice(start, start + batch_size)
            points = model(crops(faces.patches[rows].to(device), rows)).float().cpu()
            output.append(points.unflatten(1, (-1, 2)))  # (B, 2P) -> (B, P, 2)
            if bar is not None:
                bar.update(len(points))
    finally:
        model.train(training)
    return torch.cat(output).numpy()


def _rows(faces: FaceSet, rows: np.ndarray) -> FaceSet:
    return replace(
        faces,
        patches=faces.patches[rows],
        landmarks=faces.landmarks[rows],
        attributes=faces.attributes[rows],
        paths=[faces.paths[i] for i in rows],
    )


def _numpy(points: torch.Tensor) -> np.ndarray:
    return points.double().cpu().numpy()
