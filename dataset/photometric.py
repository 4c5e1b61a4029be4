"""Photometric augmentation: what light, a camera and things in the way do to a crop.

Like the geometry, a face's parameters depend on (seed, epoch, index of the face) alone, and are
drawn for the whole epoch at once. They are applied to a batch on its device, in the order in which
they happen before a picture is stored: a rectangle in front of the face, the colours, the lens, the
sensor, the file.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F

from dataset.crop import CROP_SIZE

CHANCE = 0.3  # of each effect, for each face
BRIGHTNESS = 40.0  # grey values added or taken away, at most
CONTRAST = 0.35  # the factor about mid-grey is 1 -+ this
CAST = 0.2  # the factor of each colour channel is 1 -+ this
GAMMA = 0.4  # the exponent lies between exp(-this) and exp(this)
NOISE = 12.0  # standard deviation in grey values, at most
BLOCKS = 16.0  # quantisation step of the lowest frequency in grey values, at most
RECTANGLE = (8.0, 48.0)  # sides, crop pixels

MID_GREY = 127.5
WHITE = 255.0
DARK = 1e-6  # share of white below which light counts as this, for the logarithm
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, of R, G, B
BLOCK = 8  # side of a block, as in JPEG
NOISE_WINDOW = 3 * CROP_SIZE * CROP_SIZE

# Each parameter's columns, as they are where there is no effect.
NEUTRAL = {
    "brightness": (0.0,),
    "contrast": (1.0,),
    "cast": (1.0, 1.0, 1.0),
    "grey": (0.0,),
    "gamma": (1.0,),
    "blur": (0.0,),
    "noise": (0.0,),
    "noise_origin": (0.0,),
    "blocks": (0.0,),
    "rectangle": (0.0,) * 4,  # left, top, right, bottom in crop pixels; the last two are outside
    "colour": (0.0,) * 3,
}


def draw(num_faces: int, *, seed: int, epoch: int) -> dict[str, np.ndarray]:
    """The parameters of every face in an epoch, each (N, its number of columns) float64."""
    # The third number sets these draws apart from the geometry's.
    random = np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, epoch, 1))))

    def between(low: float, high: float, width: int = 1) -> np.ndarray:
        return random.uniform(low, high, (num_faces, width))

    top_left = between(0.0, CROP_SIZE, 2) - RECTANGLE[1] / 2

    drawn = {
        "brightness": between(-BRIGHTNESS, BRIGHTNESS),
        "contrast": between(1.0 - CONTRAST, 1.0 + CONTRAST),
        "cast": between(1.0 - CAST, 1.0 + CAST, 3),
        "grey": between(0.0, 1.0),
        "gamma": np.exp(between(-GAMMA, GAMMA)),
        "blur": between(0.0, 1.0),
        "noise": between(0.0, NOISE),
        "noise_origin": np.floor(between(0.0, NOISE_WINDOW)),
        "blocks": between(0.0, BLOCKS),
        "rectangle": np.concatenate([top_left, top_left + between(*RECTANGLE, 2)], axis=1),
        "colour": between(0.0, WHITE, 3),
    }

    chosen = random.random((num_faces, len(NEUTRAL))) < CHANCE

    return {
        name: np.where(chosen[:, i : i + 1], drawn[name], unchanged)
        for i, (name, unchanged) in enumerate(NEUTRAL.items())
    }


def pack(parameters: dict[str, np.ndarray]) -> torch.Tensor:
    """Parameters by name -> one (N, D) float32 tensor, whose rows a batch selects at once."""
    columns = np.concatenate([parameters[name] for name in NEUTRAL], axis=1)
    return torch.from_numpy(columns.astype(np.float32))


def apply(crops: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
    """Apply photometric parameters to a batch.

    Args:
        crops: (B, 3, 128, 128) float32, grey values 0 to 255.
        packed: (B, D) float32 parameters, see :func:`pack`.

    Returns:
        The changed crops within 0 to 255, in channels-last memory order.
    """
    columns = packed.split([len(each) for each in NEUTRAL.values()], dim=1)
    values = dict(zip(NEUTRAL, columns, strict=True))

    # Planes of one colour each, since factors a face or a channel are quick on whole planes.
    pixels = crops.contiguous()
    pixels = _cover(pixels, values["rectangle"], values["colour"])
    pixels = _colours(pixels, values)
    pixels = torch.lerp(pixels, _smooth(pixels), _each(values["blur"]))
    pixels = torch.addcmul(pixels, _each(values["noise"]), _noise(values["noise_origin"]))
    pixels = _blocks(pixels, values["blocks"])

    return pixels.clamp_(0.0, WHITE).contiguous(memory_format=torch.channels_last)


def _each(values: torch.Tensor) -> torch.Tensor:
    """(B, 1) or (B, 3) -> a factor or summand of (B, 3, H, W)."""
    return values[:, :, None, None]


def _cover(pixels: torch.Tensor, edges: torch.Tensor, colour: torch.Tensor) -> torch.Tensor:
    """Lay a rectangle of one colour over each crop; it is empty where its edges coincide."""
    steps = torch.arange(CROP_SIZE, device=pixels.device)
    left, top, right, bottom = edges[:, :, None].unbind(dim=1)  # each (B, 1)
    rows = (steps >= top) & (steps < bottom)  # (B, H)
    columns = (steps >= left) & (steps < right)  # (B, W)
    inside = (rows[:, None, :, None] & columns[:, None, None, :]).float()  # (B, 1, H, W)

    return torch.lerp(pixels, _each(colour), inside)


def _colours(pixels: torch.Tensor, values: dict[str, torch.Tensor]) -> torch.Tensor:
    """Grey, cast, contrast and brightness, as one affine map of the three channels, then gamma."""
    grey = values["grey"][:, :, None]  # (B, 1, 1)
    identity = torch.eye(3, device=pixels.device)
    mixed = (1.0 - grey) * identity + grey * _luminance(pixels.device)  # (B, 3 out, 3 in)
    factor = values["contrast"] * values["cast"]  # (B, 3 out)
    offset = values["brightness"] + MID_GREY * (1.0 - values["contrast"])  # (B, 1)

    # Light as a share of white, so that the exponent needs no other scaling.
    matrix = factor[:, :, None] * mixed / WHITE
    light = torch.baddbmm(offset[:, :, None] / WHITE, matrix, pixels.flatten(2))
    light = light.clamp_(DARK, 1.0)
    bent = light.log_().mul_(values["gamma"][:, :, None]).exp_().mul_(WHITE)

    return bent.view_as(pixels)


@lru_cache(maxsize=4)
def _luminance(device: torch.device) -> torch.Tensor:
    """(3,) weights; made once, since a CUDA graph may copy nothing from the host."""
    return torch.tensor(LUMINANCE, device=device)


def _smooth(pixels: torch.Tensor) -> torch.Tensor:
    """Convolve with the binomial 1, 4, 6, 4, 1 in both directions; edges count double."""
    for dim, edges in ((2, (0, 0, 1, 1)), (3, (1, 1, 0, 0))):
        for _ in range(2):
            wider = F.pad(pixels, edges, mode="replicate")
            before, after = wider.narrow(dim, 0, CROP_SIZE), wider.narrow(dim, 2, CROP_SIZE)
            pixels = torch.lerp((before + after).mul_(0.5), pixels, 0.5)

    return pixels


def _noise(origin: torch.Tensor) -> torch.Tensor:
    """(B, 1) places in the strip of noise -> (B, 3, H, W) of variance 1."""
    windows = _noise_strip(origin.device).unfold(0, NOISE_WINDOW, 1)  # a view, all of them

    return windows.index_select(0, origin[:, 0].long()).view(-1, 3, CROP_SIZE, CROP_SIZE)


@lru_cache(maxsize=4)
def _noise_strip(device: torch.device) -> torch.Tensor:
    """A line of Gaussian noise, the same on every device; faces take windows of it."""
    generator = torch.Generator().manual_seed(0)

    return torch.randn(2 * NOISE_WINDOW, generator=generator).to(device)


def _blocks(pixels: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """Round the cosine transform of 8 x 8 blocks, the more coarsely the higher the frequency.

    The step at frequency (u, v) is ``step * (1 + u + v) / 2``; 0 leaves a crop as it is.
    """
    basis = _cosines(pixels.device)
    frequency = torch.arange(BLOCK, device=pixels.device)
    coarseness = (1.0 + frequency[:, None] + frequency) / 2.0  # (8, 8)
    across = coarseness.repeat(1, CROP_SIZE // BLOCK)  # (8, 128): one row of blocks
    steps = (step[:, :, None] * across).clamp(min=1e-6)[:, None, None]  # (B, 1, 1, 8, 128)

    rows = pixels.view(len(pixels), 3, CROP_SIZE // BLOCK, BLOCK, CROP_SIZE)
    coefficients = _along_rows(basis @ rows, basis.T)
    rounded = (coefficients / steps).round_().mul_(steps)
    rough = _along_rows(basis.T @ rounded, basis).view_as(pixels)

    return torch.where(_each(step) > 0, rough, pixels)


def _along_rows(values: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Multiply each run of 8 values of the last dimension by ``matrix`` (8, 8)."""
    return (values.reshape(-1, BLOCK) @ matrix).view_as(values)


@lru_cache(maxsize=4)
def _cosines(device: torch.device) -> torch.Tensor:
    """(8, 8) orthonormal basis of the discrete cosine transform II: row u is frequency u."""
    u = torch.arange(BLOCK, dtype=torch.float64)
    basis = torch.cos(math.pi / BLOCK * u[:, None] * (u + 0.5)) * math.sqrt(2.0 / BLOCK)
    basis[0] /= math.sqrt(2.0)

    return basis.float().to(device)
