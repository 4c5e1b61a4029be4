"""Landmark metrics: arrays in, numbers out, everything in float64.

The NME of a face is a fraction here (0.05 = 5 %); whoever prints it multiplies by 100.
"""

from __future__ import annotations

import numpy as np

from utils.files import UserError

THRESHOLD = 0.1  # of FR@0.1 and AUC@0.1, as a fraction of the inter-ocular distance
STRICTER = 0.08  # the threshold of 300W's tables


def point_errors(
    prediction: np.ndarray, target: np.ndarray, outer_eyes: tuple[int, int]
) -> np.ndarray:
    """Distance of every predicted point to the true one, divided by the face's inter-ocular
    distance.

    Args:
        prediction: (N, P, 2), in any isotropic pixel unit.
        target: (N, P, 2), in the same unit.
        outer_eyes: indices of the two outer eye corners, whose distance in ``target`` is the
            normaliser; callers take them from the faces' ``LandmarkScheme``.

    Returns:
        (N, P) float64, fractions of the inter-ocular distance.
    """
    prediction, target = np.asarray(prediction, np.float64), np.asarray(target, np.float64)

    if prediction.shape != target.shape or target.ndim != 3 or target.shape[-1] != 2:
        raise ValueError(
            f"two (N, P, 2) arrays of one shape expected, got {prediction.shape} and {target.shape}"
        )

    left, right = outer_eyes
    interocular = np.linalg.norm(target[:, left] - target[:, right], axis=-1)  # (N,)
    unusable = np.flatnonzero(~(interocular > 0))  # NaN counts as unusable too

    if unusable.size:
        raise UserError(
            f"face {unusable[0]}: the outer eye corners (points {left} and {right}) coincide or "
            "are not numbers, so its NME is undefined; correct or remove that annotation"
        )

    return np.linalg.norm(prediction - target, axis=-1) / interocular[:, None]


def nme(prediction: np.ndarray, target: np.ndarray, outer_eyes: tuple[int, int]) -> np.ndarray:
    """Normalised mean error of every face: (N, P, 2) twice -> (N,) float64 fractions; see
    :func:`point_errors`.
    """
    return point_errors(prediction, target, outer_eyes).mean(axis=1)


def normalisers(
    target: np.ndarray,
    outer_eyes: tuple[int, int],
    pupils: tuple[tuple[int, ...], tuple[int, ...]] | None,
) -> dict[str, np.ndarray]:
    """What other conventions divide a face's point errors by.

    Args:
        target: (N, P, 2), in any isotropic pixel unit.
        outer_eyes: indices of the two outer eye corners.
        pupils: of each pupil, the points whose mean it is; None leaves ``interpupil`` out.

    Returns:
        (N,) float64 each: ``interocular``, the distance of the outer eye corners; ``interpupil``,
        that of the pupils; ``box``, √(width · height) of the box about the points.
    """
    target = np.asarray(target, np.float64)
    left, right = outer_eyes
    found = {
        "interocular": np.linalg.norm(target[:, left] - target[:, right], axis=-1),
        "box": np.sqrt(np.ptp(target, axis=1).prod(axis=-1)),
    }

    if pupils is not None:
        centres = [target[:, list(points)].mean(axis=1) for points in pupils]
        found["interpupil"] = np.linalg.norm(centres[0] - centres[1], axis=-1)

    return found


def failure_rate(errors: np.ndarray, threshold: float = THRESHOLD) -> float:
    """Share of faces with an NME strictly above ``threshold``; NaN errors are failures, no face
    gives NaN.
    """
    errors = np.asarray(errors, np.float64)
    return float(np.mean(~(errors <= threshold))) if errors.size else float("nan")


def auc(errors: np.ndarray, threshold: float = THRESHOLD) -> float:
    """Area under the cumulative error curve up to ``threshold``, divided by it; no face gives NaN.

    The curve is a step function, so its integral is exact: 1 - mean(min(NME_i, t)) / t. NaN errors
    are failures.
    """
    errors = np.asarray(errors, np.float64)
    return float(np.fmax(1 - errors / threshold, 0).mean()) if errors.size else float("nan")
