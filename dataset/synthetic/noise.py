"""Random fields and colours, the raw material of skin, cloth and backgrounds."""

from __future__ import annotations

import cv2
import numpy as np


def smooth_noise(rng: np.random.Generator, size: tuple[int, int], cells: tuple[float, float]) -> np.ndarray:
    """Noise of about unit variance, (height, width) float32, with `cells` (vertical, horizontal) bumps over it."""
    rows, columns = max(2, round(cells[0])), max(2, round(cells[1]))
    coarse = rng.standard_normal((rows, columns), dtype=np.float32)
    how = cv2.INTER_CUBIC if rows * columns < 400 else cv2.INTER_LINEAR  # fine grain need not be smooth
    return cv2.resize(coarse, size[::-1], interpolation=how)


def layered_noise(rng: np.random.Generator, size: tuple[int, int], octaves: tuple[float, ...]) -> np.ndarray:
    """A sum of smooth noises with ever more cells and ever less amplitude, roughly within ±2."""
    result = np.zeros(size, np.float32)
    for k, cells in enumerate(octaves):
        result += smooth_noise(rng, size, (cells, cells * size[1] / size[0])) * 0.6**k
    return result


def random_colour(rng: np.random.Generator, *, saturation: float = 1.0) -> np.ndarray:
    """A BGR colour in 0-255, float32; saturation scales its distance from grey."""
    value = rng.uniform(10, 250)
    colour = value + (rng.uniform(0, 255, 3) - value) * saturation * rng.random() ** 2
    return np.clip(colour, 0, 255).astype(np.float32)


def patterned(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """A piece of cloth or wall, (height, width, 3) float32 BGR: plain, striped, checked, spotted or cloudy."""
    height, width = size
    first, second = random_colour(rng), random_colour(rng)
    kind = rng.integers(6)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    if kind <= 1:
        mix = np.zeros(size, np.float32)
    elif kind == 2:
        angle, period = rng.uniform(0, np.pi), rng.uniform(4, 40)
        mix = ((x * np.cos(angle) + y * np.sin(angle)) % period < period * rng.uniform(0.2, 0.8)).astype(np.float32)
    elif kind == 3:
        period = rng.uniform(5, 30)
        mix = 0.5 * ((x % period < period / 2).astype(np.float32) + (y % period < period / 2))
    elif kind == 4:
        period = rng.uniform(6, 24)
        mix = (np.hypot(x % period - period / 2, y % period - period / 2) < period * rng.uniform(0.15, 0.4)).astype(
            np.float32
        )
    else:
        mix = np.clip(0.5 + 0.5 * layered_noise(rng, size, (3, 8)), 0, 1)
    cloth = first + mix[..., None] * (second - first)
    cloth += smooth_noise(rng, size, (height / 6, width / 6))[..., None] * rng.uniform(0, 10)
    return cloth
