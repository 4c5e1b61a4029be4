"""Landmark schemes: which point is what. Nothing else in the code knows the number of a landmark.

Pixel convention everywhere: integer coordinates are pixel centres; the mirror of x in a crop w wide
is w - 1 - x.
"""

from __future__ import annotations

from dataclasses import dataclass

from utils.files import InputError


@dataclass(frozen=True)
class Contour:
    """A named run of landmarks that belongs together, for drawing and for errors by group."""

    name: str
    points: tuple[int, ...]
    closed: bool = False


@dataclass(frozen=True)
class LandmarkScheme:
    """A set of P landmarks.

    Args:
        name: name of the scheme.
        mirror: entry i is the landmark that lands at i when the face is mirrored (an involution).
        outer_eyes: the two outer eye corners; their distance normalises the NME.
        contours: groups of landmarks, together all P of them.
    """

    name: str
    mirror: tuple[int, ...]
    outer_eyes: tuple[int, int]
    contours: tuple[Contour, ...]

    @property
    def num_points(self) -> int:
        return len(self.mirror)


def _mirror(num_points: int, *swaps: tuple[list[int], list[int]]) -> tuple[int, ...]:
    """Involution that exchanges the listed landmarks pair by pair and leaves the others."""
    permutation = list(range(num_points))
    for left, right in swaps:
        for a, b in zip(left, right, strict=True):
            permutation[a], permutation[b] = b, a
    return tuple(permutation)


def _run(first: int, last: int) -> tuple[int, ...]:
    return tuple(range(first, last + 1))


WFLW_98 = LandmarkScheme(
    name="WFLW-98",
    mirror=_mirror(
        98,
        ([*range(0, 17)], [*range(32, 15, -1)]),
        ([33, 34, 35, 36, 37], [46, 45, 44, 43, 42]),
        ([38, 39, 40, 41], [50, 49, 48, 47]),
        ([55, 56], [59, 58]),
        ([60, 61, 62, 63, 64], [72, 71, 70, 69, 68]),
        ([65, 66, 67], [75, 74, 73]),
        ([76, 77, 78], [82, 81, 80]),
        ([83, 84], [87, 86]),
        ([88, 89], [92, 91]),
        ([93], [95]),
        ([96], [97]),
    ),
    outer_eyes=(60, 72),
    contours=(
        Contour("face contour", _run(0, 32)),
        Contour("left brow", _run(33, 41), closed=True),
        Contour("right brow", _run(42, 50), closed=True),
        Contour("nose bridge", _run(51, 54)),
        Contour("nose base", _run(55, 59)),
        Contour("left eye", _run(60, 67), closed=True),
        Contour("right eye", _run(68, 75), closed=True),
        Contour("outer lip", _run(76, 87), closed=True),
        Contour("inner lip", _run(88, 95), closed=True),
        Contour("left pupil", (96,)),
        Contour("right pupil", (97,)),
    ),
)

IBUG_68 = LandmarkScheme(
    name="iBUG-68",
    mirror=_mirror(
        68,
        ([*range(0, 8)], [*range(16, 8, -1)]),
        ([17, 18, 19, 20, 21], [26, 25, 24, 23, 22]),
        ([31, 32], [35, 34]),
        ([36, 37, 38, 39, 40, 41], [45, 44, 43, 42, 47, 46]),
        ([48, 49, 50], [54, 53, 52]),
        ([55, 56], [59, 58]),
        ([60, 61], [64, 63]),
        ([65], [67]),
    ),
    outer_eyes=(36, 45),
    contours=(
        Contour("face contour", _run(0, 16)),
        Contour("left brow", _run(17, 21)),
        Contour("right brow", _run(22, 26)),
        Contour("nose bridge", _run(27, 30)),
        Contour("nose base", _run(31, 35)),
        Contour("left eye", _run(36, 41), closed=True),
        Contour("right eye", _run(42, 47), closed=True),
        Contour("outer lip", _run(48, 59), closed=True),
        Contour("inner lip", _run(60, 67), closed=True),
    ),
)

SCHEMES = {scheme.num_points: scheme for scheme in (WFLW_98, IBUG_68)}


def scheme_for(num_points: int) -> LandmarkScheme:
    """The scheme with ``num_points`` landmarks.

    Raises:
        InputError: no scheme has that many.
    """
    try:
        return SCHEMES[num_points]
    except KeyError:
        known = ", ".join(f"{s.num_points} ({s.name})" for s in SCHEMES.values())
        raise InputError(f"no landmark scheme has {num_points} points; known: {known}") from None
