"""Light on the head and on what is worn, computed at the vertices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from synthetic.dressing import Piece
from synthetic.head import Head, vertex_normals

_HARSH = 1.6  # key light over ambient light from which the light counts as harsh


@dataclass(frozen=True)
class Light:
    """ambient: (2, 3) from above and below; directions: (L, 3) unit, camera space, with colours (L,
    3), all as factors on BGR; shadow: a plane (4,) in head space whose far side gets less of the
    first light; exposure: overall brightness, 1 is right; remarkable: the list's illumination
    attribute."""

    ambient: np.ndarray
    directions: np.ndarray
    colours: np.ndarray
    shadow: np.ndarray | None
    exposure: float
    remarkable: bool


def draw_light(rng: np.random.Generator, vary: bool = True) -> Light:
    """Soft to harsh, white to coloured, dark to glaring; one mild frontal light where not
    `vary`."""
    if not vary:
        ambient, colour = np.full((2, 3), 0.6, np.float32), np.full((1, 3), 0.4, np.float32)
        return Light(ambient, np.float32([[0, 0.3, 0.954]]), colour, None, 1.0, False)

    tint = 1 + rng.uniform(-1, 1, 3) * rng.choice([0.05, 0.15, 0.5], p=[0.45, 0.35, 0.2])
    harshness = rng.choice([rng.uniform(0.05, 0.8), rng.uniform(0.8, 3.0)], p=[0.65, 0.35])
    exposure = np.exp(rng.normal(0.0, 0.28))
    if rng.random() < 0.07:
        exposure *= rng.uniform(0.3, 0.6)

    below = tint * rng.uniform(0.5, 1.0) * (1 + rng.uniform(-0.15, 0.15, 3))
    ambient = np.stack((tint, below)) * exposure / (1 + 0.7 * harshness)
    count = int(rng.integers(1, 4))
    directions = rng.normal(0, 1, (count, 3)) + [0, 0.5, 0.4]
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    strengths = np.array([1.0, rng.uniform(0, 0.6), rng.uniform(0, 0.3)])[:count]
    hues = 1 + rng.uniform(-1, 1, (count, 3)) * rng.choice([0.06, 0.2, 0.6], p=[0.55, 0.3, 0.15])
    colours = hues * (strengths * exposure * harshness / (1 + 0.7 * harshness))[:, None] * 1.2
    shadow = None

    if rng.random() < 0.22:
        normal = rng.normal(0, 1, 3) * [1, 1, 0.4]
        shadow = np.float32([*(normal / np.linalg.norm(normal)), rng.uniform(-0.7, 0.7)])

    uneven = harshness > _HARSH and (directions[0, 2] < 0.6 or shadow is not None)
    extreme = exposure < 0.55 or exposure > 1.6 or tint.max() / tint.min() > 1.8

    arrays = (array.astype(np.float32) for array in (ambient, directions, colours))

    return Light(*arrays, shadow, float(exposure), bool(uneven or extreme))


def _harmonics(direction: np.ndarray) -> np.ndarray:
    """Real spherical harmonics up to order 2 of a unit direction: (9,), in the order of
    Head.visibility."""
    x, y, z = direction

    first = (0.282095, 0.488603 * y, 0.488603 * z, 0.488603 * x)
    mixed = (1.092548 * x * y, 1.092548 * y * z, 0.315392 * (3 * z * z - 1), 1.092548 * x * z)

    return np.array([*first, *mixed, 0.546274 * (x * x - y * y)], np.float32)


def shade_head(
    head: Head, vertices: np.ndarray, light: Light, rotation: np.ndarray, shine: float
) -> np.ndarray:
    """Light factors and highlight at the head's vertices, (V, 4): BGR factors, highlight."""
    normals = vertex_normals(vertices, head.triangles)
    openness = head.openness[:, None]
    up = 0.5 + 0.5 * (normals @ rotation[1])[:, None]
    factors = light.ambient[0] * up + light.ambient[1] * (1 - up)
    factors = factors * (0.35 + 0.65 * openness) * np.sqrt(openness + 0.02)
    highlight = np.zeros(len(vertices), np.float32)

    for k, (direction, colour) in enumerate(zip(light.directions, light.colours, strict=True)):
        towards = rotation.T @ direction  # camera space to head space
        seen = np.clip(_harmonics(towards) @ head.visibility * 1.6 - 0.3, 0, 1)

        if k == 0 and light.shadow is not None:
            distance = vertices @ light.shadow[:3] + light.shadow[3]
            seen = seen * (0.15 + 0.85 / (1 + np.exp(-np.clip(distance * 25, -30, 30))))

        lambert = np.clip(normals @ towards, 0, 1) * seen
        factors += lambert[:, None] * colour
        half = towards + rotation[2]
        half /= max(np.linalg.norm(half), 1e-6)
        eighth = np.clip(normals @ half, 0, 1) ** 2  # numpy's own 24th power takes a logarithm
        eighth *= eighth
        eighth *= eighth
        highlight += eighth * eighth * eighth * (seen * float(colour.mean() * shine))

    factors[head.openness < 0.02] *= 0.3  # throat, nostrils, sockets

    return np.concatenate((factors, highlight[:, None]), axis=1).astype(np.float32)


def shade_piece(piece: Piece, light: Light, rotation: np.ndarray) -> np.ndarray:
    """The same for a worn piece under its rotation to camera space: (V, 4), without highlights."""
    normals = vertex_normals(piece.vertices, piece.triangles)
    normals *= np.where((normals * (piece.vertices - piece.inside)).sum(axis=1) < 0, -1, 1)[:, None]
    normals = normals @ rotation.T
    up = 0.5 + 0.5 * normals[:, 1:2]
    factors = light.ambient[0] * up + light.ambient[1] * (1 - up)
    for direction, colour in zip(light.directions, light.colours, strict=True):
        factors += np.clip(normals @ direction, 0, 1)[:, None] * colour

    factors *= piece.shade[:, None]

    return np.concatenate((factors, np.zeros((len(factors), 1))), axis=1).astype(np.float32)
