"""The painted skin: one small picture over (angle, height) with brows, lids, lips, beard, spots and
make-up on it."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from synthetic.head import Head, SurfacePoints, towards_midline
from synthetic.noise import blend, combine, layered_noise, random_colour, smooth_noise
from synthetic.shape import Person

SIZE = (256, 288)  # rows (height 1.2 to -1.75), columns (angle -1.7 to 1.7)
_TONES = np.array([  # sRGB, light to dark
    (255, 226, 205), (246, 207, 180), (232, 184, 150), (214, 160, 122), (184, 128, 90),
    (146, 96, 64), (108, 68, 45), (78, 50, 36), (54, 37, 30),
], np.float32)[:, ::-1]  # fmt: skip
_HAIR = np.array([
    (18, 16, 15), (40, 28, 20), (75, 50, 32), (125, 85, 50), (190, 150, 95), (225, 200, 150),
    (140, 60, 30), (150, 148, 146), (225, 223, 220),
], np.float32)[:, ::-1]  # fmt: skip


def to_texture(uv: np.ndarray) -> np.ndarray:
    """(angle, height) to texture px (x, y)."""
    return np.stack(
        ((uv[..., 0] + 1.7) * (SIZE[1] / 3.4), (1.2 - uv[..., 1]) * (SIZE[0] / 2.95)), axis=-1
    )


@dataclass(frozen=True)
class Skin:
    """texture: (256, 288, 3) float32 BGR; tone: (3,) BGR of the bare skin; hair: (3,) BGR of hair
    and brows; shine: strength of highlights; beard: (256, 288) 0-1; makeup: whether it is painted
    visibly."""

    texture: np.ndarray
    tone: np.ndarray
    hair: np.ndarray
    shine: float
    beard: np.ndarray
    makeup: bool


def draw_brows(head: Head, rng: np.random.Generator) -> SurfacePoints:
    """The 18 brow points (33-50), each followed by steps towards the midline: surface points (18,
    5)."""
    middle = head.feature_xy[33:51].copy()
    upper, lower = np.array([1, 2, 3, 4, 9, 10, 11, 12]), np.array([8, 7, 6, 5, 17, 16, 15, 14])
    centre = (middle[upper] + middle[lower]) / 2
    half = (middle[upper] - middle[lower]) / 2 * np.clip(rng.normal(0.95, 0.22), 0.5, 1.7)
    inner = (0.85 - np.abs(centre[:, :1])) / 0.65  # 0 at the tail, 1 at the nose
    arch, tilt = rng.normal(0, 0.025), rng.normal(0, 0.03)
    shift = rng.normal(0, 0.03) + tilt * (inner - 0.5) * 2 + arch * (1 - (2 * inner - 1) ** 2)
    middle[upper] = centre + half + shift * [0, 1]
    middle[lower] = centre - half + shift * [0, 1]
    tails = np.array([0, 13])
    middle[tails, 1] += shift[[0, 7], 0] - tilt * 0.4
    middle[tails, 0] *= rng.uniform(0.93, 1.05)

    return head.front.find(towards_midline(middle))


@dataclass(frozen=True)
class _Stain:
    """A soft mask over a part of the picture: its top left corner (x, y) and its strengths (h, w),
    0-1."""

    corner: tuple[int, int]
    mask: np.ndarray

    @property
    def area(self) -> tuple[slice, slice]:
        """The part of the picture."""
        (x, y), (height, width) = self.corner, self.mask.shape
        return slice(y, y + height), slice(x, x + width)

    def cover(self, density: np.ndarray, value: float = 1.0) -> None:
        """Move a density picture (H, W) towards a value, in place."""
        density[self.area] += (value - density[self.area]) * self.mask


def _stain(shape: np.ndarray, blur: float, thickness: int = 0) -> _Stain:
    """A polygon (P, 2) in texture px, filled, or outlined as an open line where a thickness (px) is
    given."""
    margin = int(3 * blur) + thickness + 2
    low = np.maximum(np.floor(shape.min(axis=0)).astype(int) - margin, 0)
    high = np.minimum(np.ceil(shape.max(axis=0)).astype(int) + margin + 1, SIZE[::-1])
    if (high <= low).any():
        return _Stain((0, 0), np.zeros((1, 1), np.float32))

    mask = np.zeros((high[1] - low[1], high[0] - low[0]), np.uint8)
    points = [np.rint((shape - low) * 8).astype(np.int32)]

    if thickness:
        cv2.polylines(mask, points, False, 255, thickness, cv2.LINE_AA, 3)
    else:
        cv2.fillPoly(mask, points, 255, cv2.LINE_AA, 3)

    if blur > 0:
        mask = cv2.GaussianBlur(mask, (0, 0), blur)

    return _Stain((int(low[0]), int(low[1])), mask.astype(np.float32) * np.float32(1 / 255))


def paint_skin(head: Head, person: Person, brows: SurfacePoints, rng: np.random.Generator) -> Skin:
    """The skin of one person, with what grows and what is painted on it."""
    darkness = float(np.clip(person.ancestry @ [0.78, 0.28, 0.2] + rng.normal(0, 0.13), 0, 1))
    darkness *= len(_TONES) - 1
    k = min(int(darkness), len(_TONES) - 2)
    tone = _TONES[k] + (_TONES[k + 1] - _TONES[k]) * (darkness - k)
    tone = np.clip(tone * rng.uniform(0.93, 1.07, 3), 20, 255).astype(np.float32)
    grain = 1 + layered_noise(rng, SIZE, (3, 10, 40)) * rng.uniform(0.01, 0.05)
    redness = smooth_noise(rng, SIZE, (7, 7)) * rng.uniform(0, 0.05)
    texture = combine((grain, redness), (tone, tone * np.float32([-0.6, -0.5, 0.5])))

    hair = _draw_hair_colour(person, darkness, rng)
    points = np.zeros((98, 2), np.float32)  # in texture px; the contour's entries stay unused
    points[33:] = to_texture(head.features.at(head.skin_uv))
    points[33:51] = to_texture(brows.at(head.skin_uv)[:, 0])
    paint = _Painting(texture, tone, hair, points, person, rng)
    if rng.random() < 0.25:
        paint.spots()
    if person.age > 2.3:
        paint.wrinkles()

    makeup = bool(rng.random() < (0.42 if person.male < 0.5 and person.age > 1.3 else 0.04))
    if makeup:
        paint.makeup()
    else:
        lips = np.clip(tone * np.float32([0.72, 0.66, 0.9]) * rng.uniform(0.8, 1.1), 0, 255)
        paint.stain(points[76:88], 0.8, lips, rng.uniform(0.25, 0.95))

    paint.lines(makeup)
    paint.brows()
    beard = paint.beard()

    if rng.random() < 0.03:  # a painted face
        makeup = True
        for _ in range(int(rng.integers(1, 5))):
            corners = rng.uniform((30, 20), (258, 250), (3, 2)) * 0.5
            corners += rng.uniform((30, 20), (258, 250)) * 0.5
            paint.stain(corners, 1.0, random_colour(rng), rng.uniform(0.5, 1))

    shine = float(rng.choice([0.0, rng.uniform(0, 60), rng.uniform(60, 160)], p=[0.3, 0.5, 0.2]))

    return Skin(texture, tone, hair, shine, beard, makeup)


def _draw_hair_colour(person: Person, darkness: float, rng: np.random.Generator) -> np.ndarray:
    if person.age > 2.45 and rng.random() < 0.65:
        choice = int(rng.integers(7, 9))
    elif darkness > 4.5 or person.ancestry[1] > 0.6:
        choice = int(rng.choice([0, 1, 2], p=[0.65, 0.3, 0.05]))
    else:
        choice = int(rng.choice(7, p=[0.12, 0.2, 0.22, 0.18, 0.14, 0.08, 0.06]))

    colour = _HAIR[choice] * rng.uniform(0.75, 1.25)
    if rng.random() < 0.02:
        colour = random_colour(rng)

    return np.clip(colour, 0, 255).astype(np.float32)


@dataclass(frozen=True)
class _Painting:
    """The skin's picture in the making; points: (98, 2) texture px."""

    texture: np.ndarray
    tone: np.ndarray
    hair: np.ndarray
    points: np.ndarray
    person: Person
    rng: np.random.Generator

    def blend(self, stain: _Stain, colour: np.ndarray, strength: float | np.ndarray = 1.0) -> None:
        """Mix a colour into the picture; strength: a number or a picture-sized array."""
        amount = strength[stain.area] if isinstance(strength, np.ndarray) else strength
        blend(self.texture[stain.area], colour, np.clip(stain.mask * amount, 0, 1))

    def stain(
        self,
        shape: np.ndarray,
        blur: float,
        colour: np.ndarray,
        strength: float | np.ndarray,
        thickness: int = 0,
    ) -> None:
        """A coloured polygon or, with a thickness, line; as for :func:`_stain`."""
        self.blend(_stain(shape, blur, thickness), colour, strength)

    def spots(self) -> None:
        """Freckles, moles, blemishes."""
        rng, spots = self.rng, np.zeros(SIZE, np.uint8)
        for x, y in rng.uniform((60, 60), (230, 240), (int(rng.integers(3, 60)), 2)):
            radius, strength = int(rng.integers(1, 3)), int(rng.integers(60, 200))
            cv2.circle(spots, (int(x), int(y)), radius, strength, -1, cv2.LINE_AA)

        self.blend(_Stain((0, 0), spots.astype(np.float32) / 255), self.tone * 0.6)

    def wrinkles(self) -> None:
        """Folds beside the mouth, creases of the forehead."""
        rng, points = self.rng, self.points
        strength = rng.uniform(0.15, 0.7)
        for nose, mouth in ((55, 76), (59, 82)):  # from the nostrils down past the mouth's corners
            start, end = points[nose], points[mouth]
            outward = np.sign(end[0] - start[0]) * np.array([7.0, 0.0])
            middle = (start + end) / 2 + outward
            fold = np.stack((start + outward * 0.4, middle, end + outward * 0.9 + [0, 6]))
            self.stain(fold, 1.5, self.tone * 0.55, strength, 2)

        for height in rng.uniform(0.72, 1.05, int(rng.integers(0, 5))):
            angle = np.linspace(-0.6, 0.6, 8)
            crease = to_texture(np.stack((angle, height + rng.normal(0, 0.012, 8)), 1))
            self.stain(crease, 1.0, self.tone * 0.6, strength, 1)

    def makeup(self) -> None:
        """Lipstick, eye shadow, rouge."""
        rng, points = self.rng, self.points
        lipsticks = np.float32([(60, 40, 190), (110, 70, 210), (50, 20, 110), (120, 120, 220)])
        lipstick = rng.choice(lipsticks) * rng.uniform(0.7, 1.15)
        self.stain(points[76:88], 0.8, lipstick, rng.uniform(0.5, 1))
        shadow = random_colour(rng) * 0.8

        for lid in (points[60:65], points[68:73]):
            raised = (lid - [0, rng.uniform(6, 14)])[::-1]
            self.stain(np.concatenate((lid, raised)), 2.0, shadow, rng.uniform(0.1, 0.8))

        rouge = rng.uniform(0, 0.5)

        for x in (-0.62, 0.62):
            spot = to_texture(np.array([x, -0.1])) + [(-18, 0), (0, -14), (18, 0), (0, 14)]
            self.stain(spot, 7.0, np.float32([110, 90, 220]), rouge)

    def lines(self, makeup: bool) -> None:
        """The dark lines of every face: between the lips, under the nose, lashes, folds above and
        below the eyes."""
        rng, points, tone = self.rng, self.points, self.tone
        mouth = points[[76, 88, 89, 90, 91, 92, 82]]
        self.stain(mouth, 0.6, tone * 0.45, rng.uniform(0.3, 0.9), 1)
        self.stain(points[55:60], 1.0, tone * 0.5, rng.uniform(0, 0.7), 2)
        lash = _HAIR[0] * rng.uniform(0.5, 1.5)
        strength, liner = rng.uniform(0.3, 1), int(makeup and rng.random() < 0.7)

        for first in (60, 68):
            above, below = points[first : first + 5], points[[*range(first + 4, first + 8), first]]
            self.stain(above, 0.6, lash, strength, 2 + liner)
            fainter = strength * rng.uniform(0.1, 0.8 + 0.2 * liner)
            self.stain(below, 0.8, lash, fainter, 1 + liner)
            fold = above - [0, rng.uniform(5, 8)]
            self.stain(fold, 0.8, tone * 0.6, rng.uniform(0, 0.7), 1)
            fold = below + [0, rng.uniform(5, 9)]
            self.stain(fold, 1.5, tone * 0.7, rng.uniform(0, 0.6), 2)

    def brows(self) -> None:
        rng, hair = self.rng, self.hair
        strength = float(np.clip(rng.normal(0.75, 0.25), 0.12, 1))
        strength *= 0.6 if self.person.age < 1 else 1
        # Fair people's brows are often darker than their hair.
        as_hair = hair.mean() < 120 or rng.random() < 0.4
        colour = hair * rng.uniform(0.5, 1.0) if as_hair else self.tone * rng.uniform(0.4, 0.7)
        fibres = np.clip(0.85 + 0.35 * smooth_noise(rng, SIZE, (40, 90)), 0, 1)
        for brow in (self.points[33:42], self.points[42:51]):
            self.stain(brow, rng.uniform(0.8, 2.0), colour, fibres * strength)

    def beard(self) -> np.ndarray:
        """Stubble, moustache, goatee or full beard, on men; the density (H, W) of a full one, which
        stands off the skin."""
        rng, points = self.rng, self.points
        density = np.zeros(SIZE, np.float32)
        if self.person.male < 0.5 or self.person.age < 1.7 or rng.random() < 0.45:
            return density

        kind = rng.choice(["stubble", "full", "moustache", "goatee"], p=[0.42, 0.28, 0.15, 0.15])

        if kind in ("full", "stubble"):
            cheek = rng.uniform(-0.75, -0.35)
            half = np.array(
                [(-1.6, -1.5), (-1.6, 0.1), (-1.25, -0.1), (-0.9, cheek), (-0.45, -0.6)]
            )
            outline = to_texture(np.concatenate((half, half[::-1] * [-1, 1])))
            _stain(outline, rng.uniform(2, 5)).cover(density)

        if kind == "goatee":
            chin = np.array([(-0.4, -0.75), (0.4, -0.75), (0.45, -1.45), (-0.45, -1.45)])
            _stain(to_texture(chin), 3).cover(density)

        if kind != "stubble" or rng.random() < 0.8:
            upper = points[[76, 55, 57, 59, 82, 79]]
            upper = upper + [(-4, 2), (0, 5), (0, 3), (0, 5), (4, 2), (0, 1)]
            upper[1:4] += np.array([0, rng.uniform(1, 5)])
            _stain(upper, 1.5).cover(density)

        _stain(points[76:88], 1.0).cover(density, 0.0)
        strength = rng.uniform(0.1, 0.45) if kind == "stubble" else rng.uniform(0.6, 1)
        grain = np.clip(0.8 + 0.5 * smooth_noise(rng, SIZE, (90, 110)), 0, 1)
        self.blend(_Stain((0, 0), density), self.hair * rng.uniform(0.7, 1.1), strength * grain)

        return density if kind == "full" else density * 0
