"""What is behind a head and in front of it: backgrounds, other people, hands, things."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from synthetic.camera import BOX_SIDE, CANVAS
from synthetic.noise import (
    blend,
    combine,
    grey,
    layered_noise,
    patterned,
    random_colour,
    smooth_noise,
)
from synthetic.scene import Rendering, render_head

_CROWD = 16  # heads that a data set keeps for its backgrounds
_MIDDLE = (CANVAS - 1) / 2
_OCCLUDERS = {
    "hand": 0.23, "hands": 0.1, "thing": 0.33, "bars": 0.12, "strands": 0.1, "person": 0.12,
}  # fmt: skip


@lru_cache(maxsize=1)
def crowd(seed: int) -> tuple[np.ndarray, ...]:
    """Other people for the background, (CANVAS, CANVAS, 4) uint8 BGR and mask; they depend on the
    data set's seed only."""
    heads = [render_head(np.random.default_rng([seed, 2, k])) for k in range(_CROWD)]
    return tuple(
        np.dstack((np.clip(head.picture, 0, 255), head.mask * 255)).astype(np.uint8)
        for head in heads
    )


def draw_background(seed: int, rng: np.random.Generator) -> np.ndarray:
    """(CANVAS, CANVAS, 3) float32 BGR: a wall, a sky, a crowd, a mess, more or less out of
    focus."""
    quarter = (CANVAS // 4, CANVAS // 4)
    base = patterned(rng, quarter)

    if rng.random() < 0.5:
        colour = random_colour(rng)
        blend(base, colour, np.clip(0.5 + 0.6 * layered_noise(rng, quarter, (1.5, 4, 12)), 0, 1))
    if rng.random() < 0.15:
        base = np.full((*quarter, 3), rng.choice([5.0, 250.0, rng.uniform(0, 255)]), np.float32)

    picture = cv2.resize(np.clip(base, 0, 255), (CANVAS, CANVAS), interpolation=cv2.INTER_LINEAR)
    for _ in range(int(rng.integers(0, 14))):
        _draw_thing(picture, rng)

    if rng.random() < 0.45:
        for _ in range(int(rng.integers(1, 4))):
            other = crowd(seed)[int(rng.integers(_CROWD))]
            side = rng.choice([-1, 1])
            where = (side * rng.uniform(0.55, 1.1), rng.uniform(-0.7, 0.7))
            _paste_person(picture, other, where, rng)

    sigma = rng.choice([0.0, rng.uniform(0.5, 2.0), rng.uniform(2.0, 8.0)], p=[0.4, 0.3, 0.3])
    if sigma > 0:
        picture = cv2.GaussianBlur(picture, (0, 0), sigma)
    if rng.random() < 0.3:
        rough = smooth_noise(rng, (CANVAS, CANVAS), (64, 64)) * np.float32(rng.uniform(2, 15))
        picture += grey(rough)

    return np.clip(picture * np.float32(rng.uniform(0.4, 1.1)), 0, 255)


def _draw_thing(picture: np.ndarray, rng: np.random.Generator) -> None:
    """One polygon, ellipse or bar anywhere."""
    colour = random_colour(rng).tolist()
    centre = rng.uniform(0, CANVAS, 2)
    kind = rng.integers(3)

    if kind == 0:
        corners = centre + rng.normal(0, rng.uniform(8, 60), (int(rng.integers(3, 6)), 2))
        cv2.fillPoly(picture, [np.rint(corners).astype(np.int32)], colour, cv2.LINE_AA)
    elif kind == 1:
        axes = rng.uniform(4, 50, 2).astype(int).tolist()
        turn, middle = rng.uniform(0, 180), centre.astype(int).tolist()
        cv2.ellipse(picture, middle, axes, turn, 0, 360, colour, -1, cv2.LINE_AA)
    else:
        ends = np.stack((centre, centre + rng.normal(0, 120, 2))).astype(int).tolist()
        cv2.line(picture, *ends, colour, int(rng.integers(1, 25)), cv2.LINE_AA)


def _paste_person(
    picture: np.ndarray, other: np.ndarray, where: tuple[float, float], rng: np.random.Generator
) -> np.ndarray:
    """Put one of the crowd at `where` (box sides from the middle), in place; its mask comes
    back."""
    height = np.exp(rng.normal(-0.15, 0.3))
    scales = np.array([rng.choice([-1, 1]) * height, height])
    shift = _MIDDLE + np.array(where) * BOX_SIDE - scales * _MIDDLE
    matrix = np.column_stack((np.diag(scales), shift))
    moved = cv2.warpAffine(other, matrix, (CANVAS, CANVAS))
    mask = moved[..., 3]
    picture *= grey(255 - mask) * np.float32(1 / 255)
    picture += moved[..., :3] * np.float32(rng.uniform(0.6, 1.1))

    return mask > 127


def draw_occluders(
    picture: np.ndarray, seen: Rendering, seed: int, rng: np.random.Generator
) -> np.ndarray:
    """Put something in front of the face, in place; the mask (CANVAS, CANVAS) of what it covers
    comes back."""
    kind = rng.choice(list(_OCCLUDERS), p=list(_OCCLUDERS.values()))
    if kind == "person":
        where = (rng.choice([-1, 1]) * rng.uniform(0.5, 0.85), rng.uniform(-0.1, 0.9))
        covered = _paste_person(picture, crowd(seed)[int(rng.integers(_CROWD))], where, rng)
    elif kind == "thing":
        covered = _draw_object(picture, rng)
    elif kind == "bars":
        covered = _draw_strokes(picture, random_colour(rng), (1, 6), (2, 9), rng)
    elif kind == "strands":
        covered = _draw_strokes(picture, seen.tone * rng.uniform(0.2, 0.9), (4, 30), (1, 3), rng)
    else:
        covered = _draw_hand(picture, seen, rng)
        if kind == "hands":
            covered |= _draw_hand(picture, seen, rng)

    np.clip(picture, 0, 255, out=picture)

    return covered


def _towards(angle: float) -> np.ndarray:
    """Unit direction, (2,)."""
    return np.array([np.cos(angle), np.sin(angle)])


def _draw_object(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A sign, a cup, a ball: a patterned quadrangle or ellipse, at times with letters on it."""
    angle = rng.uniform(0, 2 * np.pi) if rng.random() < 0.5 else rng.normal(np.pi / 2, 0.5)
    centre = _MIDDLE + rng.uniform(0.2, 0.65) * BOX_SIDE * _towards(angle)
    half = rng.uniform(0.1, 0.4, 2) * BOX_SIDE
    mask = np.zeros((CANVAS, CANVAS), np.uint8)

    if rng.random() < 0.6:
        corners = cv2.boxPoints((centre.tolist(), (2 * half).tolist(), float(rng.normal(0, 25))))
        corners = corners + rng.normal(0, 3, (4, 2))
        cv2.fillPoly(mask, [np.rint(corners).astype(np.int32)], 255, cv2.LINE_AA)
    else:
        ellipse = (centre.tolist(), (2 * half).tolist(), float(rng.uniform(0, 180)))
        cv2.ellipse(mask, ellipse, 255, -1, cv2.LINE_AA)

    cloth = np.clip(patterned(rng, (CANVAS, CANVAS)) * np.float32(rng.uniform(0.4, 1.1)), 0, 255)

    if rng.random() < 0.3:
        word = "".join(chr(int(c)) for c in rng.integers(65, 91, 6))
        at, size = (int(centre[0] - half[0]), int(centre[1])), rng.uniform(0.4, 1)
        letters = np.zeros((CANVAS, CANVAS), np.uint8)
        cv2.putText(letters, word, at, cv2.FONT_HERSHEY_SIMPLEX, size, 255, 2, cv2.LINE_AA)
        blend(cloth, random_colour(rng), letters.astype(np.float32) / 255)

    blend(picture, cloth, mask.astype(np.float32) / 255)

    return mask > 127


def _draw_strokes(
    picture: np.ndarray,
    colour: np.ndarray,
    count: tuple[int, int],
    width: tuple[int, int],
    rng: np.random.Generator,
) -> np.ndarray:
    """A bundle of lines of one colour, about parallel: the bars of a helmet or a fence, strands of
    hair."""
    mask = np.zeros((CANVAS, CANVAS), np.uint8)
    number = int(rng.integers(*count))
    spread = 30.0 if number < 6 else 7.0  # px; few bars stand apart
    lean = rng.uniform(0, np.pi)
    bundle = _MIDDLE + rng.uniform(-0.45, 0.45, 2) * BOX_SIDE

    for _ in range(number):
        centre = bundle + rng.normal(0, spread, 2)
        tilt = lean + rng.normal(0, 0.08 if rng.random() < 0.7 else 1.0)
        step = _towards(tilt) * rng.uniform(0.3, 1.2) * BOX_SIDE
        curve = np.stack((centre - step, centre + rng.normal(0, 4, 2), centre + step))
        curve, thick = np.rint(curve).astype(np.int32), int(rng.integers(*width))
        cv2.polylines(mask, [curve], False, 255, thick, cv2.LINE_AA)

    shade = 1 + 0.2 * smooth_noise(rng, (CANVAS, CANVAS), (20, 20))
    blend(picture, combine((shade,), (colour,)), mask.astype(np.float32) / 255)

    return mask > 127


def _draw_hand(picture: np.ndarray, seen: Rendering, rng: np.random.Generator) -> np.ndarray:
    """A palm with fingers of the face's tone, reaching in from below or from a side."""
    direction = rng.normal(np.pi / 2, 0.9)  # where the arm comes from; pi/2 is below
    away = _towards(direction)
    palm = _MIDDLE + away * rng.uniform(0.3, 0.75) * BOX_SIDE + rng.normal(0, 6, 2)
    heading = direction + np.pi + rng.normal(0, 0.5)
    size = rng.uniform(0.16, 0.28) * BOX_SIDE
    tone = seen.tone * rng.uniform(0.75, 1.25) + rng.normal(0, 6, 3)
    mask = np.zeros((CANVAS, CANVAS), np.uint8)
    shade = np.ones((CANVAS, CANVAS), np.float32)

    def limb(start: np.ndarray, end: np.ndarray, width: float) -> None:
        ends = [np.rint(p * 8).astype(int).tolist() for p in (start, end)]
        for inset, light in ((0, 0.6), (0.35, 0.9), (0.65, 1.08)):
            cv2.line(shade, *ends, light, max(1, round(width * (1 - inset))), cv2.LINE_8, 3)
        cv2.line(mask, *ends, 255, max(1, round(width)), cv2.LINE_AA, 3)

    limb(palm, palm + away * 2.5 * BOX_SIDE, size * 1.4)
    limb(palm - away * size * 0.2, palm + away * size * 0.5, size * 1.9)
    bend = rng.normal(0, 0.35)
    spread = rng.uniform(0.08, 0.3)

    for k in range(5):
        angle = heading + (k - 2) * spread + (0.5 if k == 4 else 0) * rng.choice([0, 1])
        base = palm + size * 0.85 * _towards(heading + (k - 2) * 0.45)
        joint = base + size * rng.uniform(0.6, 0.9) * _towards(angle)
        tip = joint + size * rng.uniform(0.4, 0.8) * _towards(angle + bend)
        limb(base, joint, size * 0.42)
        limb(joint, tip, size * 0.38)

    alpha = cv2.GaussianBlur(mask, (3, 3), 0).astype(np.float32) / 255
    blend(picture, combine((cv2.GaussianBlur(shade, (0, 0), 1.5),), (tone,)), alpha)

    return mask > 127
