"""A face seen several times: slightly different crops of one patch, the mean of the landmarks they
give, and their spread, which says how sure a landmark is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from dataset.augment import CENTRE, LAST, Draws, patch_to_crop, warp
from dataset.crop import CROP_OFFSET, CROP_SIZE, PATCH_SIZE
from dataset.faces import central_crops, scale_pixels

# Side of what is seen in sides of the plain crop, shift to the right and down in crop px, turn in
# degrees; each is seen as it is and mirrored.
CHANGES = (
    (1.0, 0.0, 0.0, 0.0),
    (1.0, 0.0, 0.0, 7.0),
    (1.0, 0.0, 0.0, -7.0),
    (1.06, 0.0, 0.0, 0.0),
    (0.95, 0.0, 0.0, 0.0),
    (1.0, 4.0, 4.0, 0.0),
    (1.0, -4.0, -4.0, 0.0),
)
MOST_VIEWS = 2 * len(CHANGES)
DOUBTFUL = 0.04  # of the box's side: nearly all that is no face spreads more, few faces do


@dataclass(frozen=True)
class Views:
    """N views of a face patch; the first is the plain crop.

    Args:
        matrices: (N, 2, 3) float32, crop px -> patch px, for `augment.warp`.
        points: (N, 2, 3) float64, the same for landmarks, as the network learnt to mirror them.
        mirrored: (N,) bool.
    """

    matrices: np.ndarray
    points: np.ndarray
    mirrored: np.ndarray

    def __len__(self) -> int:
        return len(self.mirrored)

    def crops(self, patches: torch.Tensor) -> torch.Tensor:
        """The network's input (B · N, 3, 128, 128) for patches (B, 256, 256, 3): all views of the
        first face, then all of the next. A single view is the central crop, bit for bit.
        """
        if len(self) == 1:
            return central_crops(patches)

        maps = torch.from_numpy(self.matrices).to(patches.device)
        many = patches.repeat_interleave(len(self), dim=0)

        return scale_pixels(warp(many, maps.repeat(len(patches), 1, 1)))

    def back(self, landmarks: np.ndarray, mirror: Sequence[int]) -> np.ndarray:
        """Landmarks (B, N, P, 2), each in crop px of its view, in those of the plain crop; `mirror`
        is the scheme's.
        """
        if len(self) == 1:
            return landmarks

        moved = np.einsum("nij,bnpj->bnpi", self.points[:, :, :2], landmarks)
        moved = moved + self.points[:, None, :, 2] - CROP_OFFSET
        moved[:, self.mirrored] = moved[:, self.mirrored][:, :, list(mirror)]

        return moved


@lru_cache(maxsize=4)
def make_views(count: int, *, released_geometry: bool) -> Views:
    """The first `count` views: 1 is the plain crop, 2 adds its mirror image, and so on."""
    if not 1 <= count <= MOST_VIEWS:
        raise ValueError(f"views must be from 1 to {MOST_VIEWS}, not {count}")

    number = np.arange(count)
    scale, right, down, turn = np.array(CHANGES)[number // 2].T
    draws = Draws(
        rotation=-np.deg2rad(turn),
        shear=np.zeros((count, 2)),
        window=np.repeat((scale - 1)[:, None] * LAST / 2, 2, axis=1),
        flip=number % 2 == 1,
    )

    shift = np.tile(np.eye(3), (count, 1, 1))  # applied to the patch before all else
    shift[:, 0, 2], shift[:, 1, 2] = -right, -down
    centre, flip_sum = (PATCH_SIZE / 2, CROP_SIZE) if released_geometry else (CENTRE, LAST)

    seen = patch_to_crop(draws) @ shift
    learnt = patch_to_crop(draws, rotation_centre=centre, flip_sum=flip_sum) @ shift

    return Views(
        np.linalg.inv(seen)[:, :2].astype(np.float32), np.linalg.inv(learnt)[:, :2], draws.flip
    )


def mean_and_spread(landmarks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean of N views' landmarks (B, N, P, 2), (B, P, 2), and their root mean square distance
    from it, (B, P), both in the unit of the landmarks.
    """
    mean = landmarks.mean(axis=1)
    distances = np.linalg.norm(landmarks - mean[:, None], axis=-1)  # (B, N, P)

    return mean, np.sqrt((distances**2).mean(axis=1))


def is_doubtful(spread: np.ndarray, box: Sequence[int]) -> bool:
    """Whether landmarks with a spread (P,), image px, differ over the views as they do where there
    is no face; `box` is where the face was looked for.
    """
    left, top, right, bottom = box
    return float(spread.mean()) > DOUBTFUL * (max(right - left, bottom - top) + 1)
