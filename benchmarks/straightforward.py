"""The straightforward input pipeline that the benchmarks compare with, written from the recipe.

Per sample: decode the PNG, rotate, shear and window with one warp each, mirror, scale, transpose.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np


def augmented_sample(
    path: Path, landmarks: np.ndarray, mirror: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """One training sample -> ((3, 128, 128) float32 image, (2P,) float32 targets).

    Args:
        path: PNG of the 256 patch.
        landmarks: (P, 2) in patch pixels.
        mirror: (P,) mirror permutation.
        random: where the parameters come from.
    """
    image, points = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB), landmarks

    def transform(matrix: np.ndarray, size: int) -> None:
        nonlocal image, points
        image = cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR)
        points = points @ matrix[:, :2].T + matrix[:, 2]

    if random.random() < 0.5:
        transform(cv2.getRotationMatrix2D((127.5, 127.5), random.uniform(-25, 25), 1.0), 256)
    if random.random() < 0.5:
        a, b = random.uniform(-0.3, 0.3, 2)
        transform(np.array([[1.0, a, 0.0], [b, 1.0, 0.0]]), 256)

    grow = random.uniform(-19.2, 19.2, 2) if random.random() < 0.5 else np.zeros(2)
    scale = 127 / (127 + 2 * grow)

    transform(
        np.array(
            [[scale[0], 0, (grow[0] - 64) * scale[0]], [0, scale[1], (grow[1] - 64) * scale[1]]]
        ),
        128,
    )

    if random.random() < 0.5:
        image = image[:, ::-1]
        points = np.stack([127 - points[mirror, 0], points[mirror, 1]], axis=1)

    pixels = (image.astype(np.float32) - 127.5) / 128

    return np.ascontiguousarray(pixels.transpose(2, 0, 1)), points.astype(np.float32).ravel()
