"""One finished synthetic face: a photograph-like picture with its points, box and attributes."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from synthetic.camera import BOX_SIDE, CANVAS
from synthetic.noise import blend, grain, grey
from synthetic.scene import render_head
from synthetic.surroundings import draw_background, draw_occluders

_SPLITS = {"train": 0, "test": 1}


@dataclass(frozen=True)
class SyntheticFace:
    """picture: (H, W, 3) uint8 BGR; landmarks: (98, 2) px; box: left, top, right, bottom px,
    inclusive; attributes: six flags in the order of dataset.annotations.ATTRIBUTES; quality: JPEG
    quality to store it with; skin: (3,) float32 BGR of the bare skin."""

    picture: np.ndarray
    landmarks: np.ndarray
    box: tuple[int, int, int, int]
    attributes: tuple[bool, ...]
    quality: int
    skin: np.ndarray


def draw_face(
    seed: int, split: str, index: int, without: frozenset[str] = frozenset()
) -> SyntheticFace:
    """Face `index` of a split; it depends on nothing but these arguments.

    Args:
        seed: the data set's seed.
        split: "train" or "test".
        index: number of the face in its split, from 0.
        without: variations to leave out, from synthetic.SWITCHES.
    """
    rng = np.random.default_rng([seed, _SPLITS[split], index])
    seen = render_head(rng, without)

    if "backgrounds" in without:
        picture = np.full((CANVAS, CANVAS, 3), 128, np.float32)
    else:
        picture = draw_background(seed, rng)

    alpha = cv2.GaussianBlur(seen.mask.astype(np.float32), (3, 3), 0) * seen.mask
    blend(picture, np.minimum(seen.picture, 255), alpha)
    hidden = seen.hidden.copy()

    if "occluders" not in without and rng.random() < 0.3:
        covered = draw_occluders(picture, seen, seed, rng)
        cell = np.rint(seen.landmarks).astype(int).clip(0, CANVAS - 1)
        hidden |= covered[cell[:, 1], cell[:, 0]]

    occluded = hidden[33:].sum() >= 6 or hidden.sum() >= 16
    picture, blurred = _photograph(picture, rng)
    picture, landmarks, box = _frame(picture, seen.landmarks, seen.box, rng)
    flags = (*seen.facts, bool(occluded), blurred)

    return SyntheticFace(picture, landmarks, box, flags, int(rng.integers(35, 96)), seen.skin)


def _photograph(picture: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, bool]:
    """Lens, sensor and old prints: blur, resolution, tone, noise. The second value: clearly
    blurred."""
    sigmas = [rng.uniform(0.4, 0.9), rng.uniform(0.9, 1.8), rng.uniform(1.8, 3.5)]
    sigma = rng.choice(sigmas, p=[0.6, 0.25, 0.15])
    picture = cv2.GaussianBlur(picture, (0, 0), sigma)
    blurred = sigma > 1.7

    if rng.random() < 0.07:
        length, angle = rng.uniform(4, 12), rng.uniform(0, np.pi)
        kernel = np.zeros((15, 15), np.float32)
        step = np.array([np.cos(angle), np.sin(angle)]) * length / 2
        cv2.line(kernel, *np.rint([7 - step, 7 + step]).astype(int).tolist(), 1.0)
        picture = cv2.filter2D(picture, -1, kernel / kernel.sum())
        blurred |= length > 6

    if rng.random() < 0.25:
        factor = rng.uniform(0.2, 0.6)
        small = cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        small += grain(rng, small.shape) * np.float32(rng.uniform(0, 5))
        smoother = cv2.INTER_NEAREST if rng.random() < 0.15 else cv2.INTER_LINEAR
        picture = cv2.resize(small, (CANVAS, CANVAS), interpolation=smoother)
        blurred |= factor < 0.4

    picture = cv2.transform(picture, _draw_tone(rng))

    if rng.random() < 0.6:
        single = rng.random() < 0.5
        noise = grain(rng, (CANVAS, CANVAS) if single else (CANVAS, CANVAS, 3))
        noise *= np.float32(rng.uniform(0, 6 if rng.random() < 0.8 else 20))
        picture += grey(noise) if single else noise

    return np.clip(picture, 0, 255).astype(np.uint8), bool(blurred)


def _draw_tone(rng: np.random.Generator) -> np.ndarray:
    """Contrast, brightness and saturation as one affine map of BGR, (3, 4) float32; at times black
    and white."""
    contrast, pivot = float(np.exp(rng.normal(0, 0.2))), rng.uniform(60, 160)
    grey = np.tile([0.114, 0.587, 0.299], (3, 1))
    tone, mixed = rng.random(), np.eye(3)

    if tone < 0.1:
        mixed = grey * (rng.uniform(0.7, 1.0, (3, 1)) if rng.random() < 0.3 else 1)
    elif tone < 0.6:
        mixed = grey + (mixed - grey) * rng.uniform(0.3, 1.5)

    shift = mixed.sum(axis=1, keepdims=True) * (pivot * (1 - contrast) + rng.normal(0, 10))

    return np.concatenate((mixed * contrast, shift), axis=1).astype(np.float32)


def _frame(
    picture: np.ndarray,
    landmarks: np.ndarray,
    box: tuple[float, float, float, float],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, tuple[int, int, int, int]]:
    """Final resolution and picture borders; the box becomes whole pixels."""
    scale = np.clip(np.exp(rng.normal(np.log(100), 0.3)), 52, 145) / BOX_SIDE
    size = round(CANVAS * scale)
    scale = size / CANVAS
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    picture = cv2.resize(picture, (size, size), interpolation=how)
    low, high = np.zeros(2, int), np.full(2, size)

    if rng.random() < 0.25:  # the patch reaches over the picture's border
        side = int(rng.integers(4))
        cut = int(rng.uniform(0, 0.27) * size)
        if side < 2:
            low[side] = cut
        else:
            high[side - 2] -= cut

    picture = np.ascontiguousarray(picture[low[1] : high[1], low[0] : high[0]])
    landmarks = (landmarks + 0.5) * scale - 0.5 - low
    left, top = ((np.array(box[:2]) + 0.5) * scale - 0.5 - low).round().astype(int).tolist()
    width, height = (max(2, round(v * scale)) for v in box[2:])

    return picture, landmarks, (left, top, left + width - 1, top + height - 1)
