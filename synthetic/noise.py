"""Random fields and colours, the raw material of skin, cloth and backgrounds."""

from __future__ import annotations

import math
from statistics import NormalDist

import cv2
import numpy as np


def smooth_noise(
    rng: np.random.Generator, size: tuple[int, int], cells: tuple[float, float]
) -> np.ndarray:
    """Noise of about unit variance, (height, width) float32, with `cells` (vertical, horizontal)
    bumps over it."""
    rows, columns = max(2, round(cells[0])), max(2, round(cells[1]))
    coarse = rng.standard_normal((rows, columns), dtype=np.float32)
    fine = rows * columns >= 400  # and need not be smooth
    how = cv2.INTER_LINEAR if fine else cv2.INTER_CUBIC

    return cv2.resize(coarse, size[::-1], interpolation=how)


def layered_noise(
    rng: np.random.Generator, size: tuple[int, int], octaves: tuple[float, ...]
) -> np.ndarray:
    """A sum of smooth noises with ever more cells and ever less amplitude, roughly within ±2."""
    # Coarse to fine, each on the grid of the next: only the last sum is stretched to full size.
    result = np.zeros((2, 2), np.float32)
    for k, cells in enumerate(octaves):
        rows, columns = max(2, round(cells)), max(2, round(cells * size[1] / size[0]))
        result = cv2.resize(result, (columns, rows), interpolation=cv2.INTER_CUBIC)
        result += rng.standard_normal((rows, columns), dtype=np.float32) * np.float32(0.6**k)

    how = cv2.INTER_CUBIC if result.size < 400 else cv2.INTER_LINEAR

    return cv2.resize(result, size[::-1], interpolation=how)


# A byte's normal quantile: 256 levels of grain look the same as normal draws and cost a tenth.
_QUANTILES = np.float32([NormalDist().inv_cdf((k + 0.5) / 256) for k in range(256)])


def grain(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Independent noise of unit variance for every pixel, float32."""
    values = np.frombuffer(rng.bytes(math.prod(shape)), np.uint8)
    return _QUANTILES.take(values).reshape(shape)


def combine(
    planes: tuple[np.ndarray, ...], colours: tuple[np.ndarray, ...], base: np.ndarray | float = 0.0
) -> np.ndarray:
    """Sum of planes (H, W), each times its BGR colour, plus a base colour: (H, W, 3) float32."""
    # One channel at a time: numpy is slow on a last axis of three.
    matrix = np.float32(colours).T  # (3, planes)
    channels = []

    for row, start in zip(matrix, np.broadcast_to(np.float32(base), 3), strict=True):
        channel = planes[0] * row[0]
        for plane, share in zip(planes[1:], row[1:], strict=True):
            channel += plane * share

        channels.append(channel + start)

    return cv2.merge(channels)


def grey(plane: np.ndarray) -> np.ndarray:
    """A plane (H, W) as the three channels of a picture, (H, W, 3)."""
    return cv2.merge((plane, plane, plane))


def blend(picture: np.ndarray, colour: np.ndarray, alpha: np.ndarray) -> None:
    """Mix a BGR colour (3,) or a picture (H, W, 3) into a picture, in place; alpha: (H, W) float32,
    0-1."""
    if np.ndim(colour) == 3:
        picture += (colour - picture) * grey(alpha)
    else:
        picture *= grey(1 - alpha)
        picture += combine((alpha,), (colour,))


def random_colour(rng: np.random.Generator, *, saturation: float = 1.0) -> np.ndarray:
    """A BGR colour in 0-255, float32; saturation scales its distance from grey."""
    value = rng.uniform(10, 250)
    colour = value + (rng.uniform(0, 255, 3) - value) * saturation * rng.random() ** 2

    return np.clip(colour, 0, 255).astype(np.float32)


def patterned(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """A piece of cloth or wall, (height, width, 3) float32 BGR: plain, striped, checked, spotted or
    cloudy."""
    height, width = size
    first, second = random_colour(rng), random_colour(rng)
    kind = rng.integers(6)
    y, x = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)[None]

    if kind <= 1:
        mix = np.zeros(size)
    elif kind == 2:
        angle, period = rng.uniform(0, np.pi), rng.uniform(4, 40)
        across = x * np.cos(angle) + y * np.sin(angle)
        mix = across % period < period * rng.uniform(0.2, 0.8)
    elif kind == 3:
        period = rng.uniform(5, 30)
        mix = 0.5 * ((x % period < period / 2).astype(np.float32) + (y % period < period / 2))
    elif kind == 4:
        period = rng.uniform(6, 24)
        radius = period * rng.uniform(0.15, 0.4)
        mix = (x % period - period / 2) ** 2 + (y % period - period / 2) ** 2 < radius**2
    else:
        mix = np.clip(0.5 + 0.5 * layered_noise(rng, size, (3, 8)), 0, 1)

    mix = mix.astype(np.float32)
    weave = smooth_noise(rng, size, (height / 6, width / 6))

    return combine((mix, weave), (second - first, np.full(3, rng.uniform(0, 10))), first)
