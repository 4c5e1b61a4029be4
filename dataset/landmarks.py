"""Landmark schemes: which point is what. Nothing else in the code knows the number of a landmark.

WFLW's 98 and iBUG's 68 points are built in; any other scheme comes from a JSON file (`read_scheme`)
and travels with prepared sets and checkpoints as their ``scheme_definition``.

Pixel convention everywhere: integer coordinates are pixel centres; the mirror of x in a crop w wide
is w - 1 - x.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from utils.files import UserError, about, read_json


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
        outer_eyes: the two landmarks whose distance normalises the NME: the outer eye corners in
            the built-in schemes. Whoever changes them changes every NME that is reported.
        contours: groups of landmarks, together all P of them.
        same_as: name of another scheme -> P of its landmarks that are the same points of a face;
            None where it has none. Fine-tuning starts from them.
    """

    name: str
    mirror: tuple[int, ...]
    outer_eyes: tuple[int, int]
    contours: tuple[Contour, ...]
    same_as: Mapping[str, tuple[int | None, ...]] = field(default_factory=dict)

    @property
    def num_points(self) -> int:
        return len(self.mirror)


def _mirror(num_points: int, *swaps: tuple[list[int], list[int]]) -> tuple[int, ...]:
    """Involution that exchanges the listed landmarks pair by pair and leaves the others."""
    permutation = np.arange(num_points)
    for left, right in swaps:
        permutation[[*left, *right]] = [*right, *left]

    return tuple(permutation.tolist())


def _run(first: int, last: int) -> tuple[int, ...]:
    return tuple(range(first, last + 1))


WFLW_98 = LandmarkScheme(
    name="WFLW-98",
    mirror=_mirror(
        98,
        ([*range(0, 17)], [*range(32, 15, -1)]),
        ([33, 34, 35, 36, 37, 38, 39, 40, 41], [46, 45, 44, 43, 42, 50, 49, 48, 47]),
        ([55, 56], [59, 58]),
        ([60, 61, 62, 63, 64, 65, 66, 67], [72, 71, 70, 69, 68, 75, 74, 73]),
        ([76, 77, 78, 83, 84], [82, 81, 80, 87, 86]),
        ([88, 89, 93], [92, 91, 95]),
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

# iBUG landmark -> the WFLW landmark that is the same point of a face. WFLW's face contour is twice
# as dense; its lids have three points between the corners, iBUG's two, and none of these agree.
WFLW_OF_IBUG = (
    {i: 2 * i for i in _run(0, 16)}
    | dict(zip(_run(17, 26), (*_run(33, 37), *_run(42, 46)), strict=True))
    | dict(zip(_run(27, 35), _run(51, 59), strict=True))
    | {36: 60, 39: 64, 42: 68, 45: 72}
    | dict(zip(_run(48, 67), _run(76, 95), strict=True))
)

IBUG_68 = LandmarkScheme(
    name="iBUG-68",
    mirror=_mirror(
        68,
        ([*range(0, 8)], [*range(16, 8, -1)]),
        ([17, 18, 19, 20, 21], [26, 25, 24, 23, 22]),
        ([31, 32], [35, 34]),
        ([36, 37, 38, 39, 40, 41], [45, 44, 43, 42, 47, 46]),
        ([48, 49, 50, 55, 56], [54, 53, 52, 59, 58]),
        ([60, 61, 65], [64, 63, 67]),
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
    same_as={"WFLW-98": tuple(WFLW_OF_IBUG.get(i) for i in range(68))},
)

SCHEMES = {scheme.num_points: scheme for scheme in (WFLW_98, IBUG_68)}

# The WFLW landmarks of each lid, from corner to corner, and the two iBUG landmarks on it, which lie
# at a third and at two thirds of the way.
_LIDS = (
    ((60, 61, 62, 63, 64), (37, 38)),
    ((64, 65, 66, 67, 60), (40, 41)),
    ((68, 69, 70, 71, 72), (43, 44)),
    ((72, 73, 74, 75, 68), (46, 47)),
)
EYELIDS_68 = tuple(point for _, pair in _LIDS for point in pair)


def _common_scheme() -> LandmarkScheme:
    """iBUG-68 without the eyelids, its landmarks numbered anew."""
    place = {point: i for i, point in enumerate(WFLW_OF_IBUG)}
    left, right = IBUG_68.outer_eyes

    return LandmarkScheme(
        name="60 common points",
        mirror=tuple(place[IBUG_68.mirror[point]] for point in WFLW_OF_IBUG),
        outer_eyes=(place[left], place[right]),
        contours=tuple(
            Contour(c.name, tuple(place[p] for p in c.points if p in place), c.closed)
            for c in IBUG_68.contours
        ),
    )


COMMON_60 = _common_scheme()


def pupils(scheme: LandmarkScheme) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Of the left and of the right pupil, the landmarks whose mean it is: those of WFLW's pupils,
    else all of an eye, as 300W has it; None where the scheme names neither.
    """
    points = {contour.name: contour.points for contour in scheme.contours}
    for part in ("pupil", "eye"):
        if f"left {part}" in points and f"right {part}" in points:
            return points[f"left {part}"], points[f"right {part}"]

    return None


def points_within(scheme: LandmarkScheme, wanted: LandmarkScheme) -> tuple[int, ...] | None:
    """Where the landmarks of ``wanted`` stand in ``scheme``; None where they are no part of it."""
    if scheme.name == wanted.name and scheme.num_points == wanted.num_points:
        return tuple(range(scheme.num_points))
    if wanted == COMMON_60 and scheme in (WFLW_98, IBUG_68):
        return tuple(WFLW_OF_IBUG.values() if scheme == WFLW_98 else WFLW_OF_IBUG)

    return None


def counterparts(scheme: LandmarkScheme, source: LandmarkScheme) -> tuple[int | None, ...]:
    """For every landmark of ``scheme`` the one of ``source`` that is the same point of a face;
    None where there is none.
    """
    if source.name in scheme.same_as:
        return scheme.same_as[source.name]

    back = source.same_as.get(scheme.name, ())

    return tuple(back.index(i) if i in back else None for i in range(scheme.num_points))


def to_ibug_68(points: np.ndarray) -> np.ndarray:
    """iBUG's 68 landmarks of WFLW's 98, (..., 98, 2) -> (..., 68, 2).

    60 are the same points. The eight of ``EYELIDS_68`` are interpolated along WFLW's five points of
    their lid, a third and two thirds of the way from corner to corner.
    """
    found = np.empty((*points.shape[:-2], 68, 2), points.dtype)
    found[..., list(WFLW_OF_IBUG), :] = points[..., list(WFLW_OF_IBUG.values()), :]

    for lid, pair in _LIDS:
        for place, position in zip(pair, (4 / 3, 8 / 3), strict=True):  # of the lid's 4 steps
            before = int(position)
            a, b = points[..., lid[before], :], points[..., lid[before + 1], :]
            found[..., place, :] = a + (position - before) * (b - a)

    return found


def require_eye_distance(
    landmarks: np.ndarray, scheme: LandmarkScheme, where: Callable[[int], str]
) -> None:
    """Refuse faces (N, P, 2) whose NME is undefined, now and not after days of training.

    Args:
        landmarks: any px.
        scheme: of the P landmarks.
        where: index of a face -> where it comes from, for the message.
    """
    # In float32, as the errors are computed: there two points may coincide that differ in a list.
    left, right = (landmarks[:, eye].astype(np.float32) for eye in scheme.outer_eyes)
    unusable = np.flatnonzero((left == right).all(axis=1))

    if unusable.size:
        raise UserError(
            f"{where(int(unusable[0]))}: the outer eye corners (points {scheme.outer_eyes[0]} and "
            f"{scheme.outer_eyes[1]}) coincide, so the face's NME is undefined; correct or remove "
            "that face"
        )


def scheme_for(num_points: int) -> LandmarkScheme:
    """The built-in scheme with ``num_points`` landmarks.

    Raises:
        UserError: no scheme has that many.
    """
    known = ", ".join(f"{s.num_points} ({s.name})" for s in SCHEMES.values())
    if num_points not in SCHEMES:
        raise UserError(
            f"no landmark scheme has {num_points} points; known: {known}; prepare the faces with "
            "--scheme FILE.json for points of your own"
        )

    return SCHEMES[num_points]


def define(scheme: LandmarkScheme) -> dict[str, Any]:
    """A scheme as plain values, of which :func:`scheme_from_definition` makes it again."""
    lists = json.loads(json.dumps(asdict(scheme)))  # JSON knows no tuples

    return {name: value for name, value in lists.items() if value}  # same_as may be empty


def definition_to_keep(scheme: LandmarkScheme) -> dict[str, Any] | None:
    """What a prepared set keeps of its scheme beside name and number: nothing of a built-in one."""
    return None if scheme in SCHEMES.values() else define(scheme)


def own_scheme(record: Mapping[str, Any], where: Path | str) -> LandmarkScheme | None:
    """The scheme of one's own that a ``meta.json`` or the config of a checkpoint defines; None
    where the scheme is a built-in one. ``where`` is the file, for messages.
    """
    definition = record.get("scheme_definition")
    with about(f"{where}: its scheme_definition is damaged"):
        return None if definition is None else scheme_from_definition(definition)


def scheme_of_network(config: Mapping[str, Any], where: Path | str) -> LandmarkScheme:
    """The scheme of the landmarks that a network answers with, from its checkpoint's config."""
    num_points = config["num_landmarks"]
    own = own_scheme(config, where)

    if own is not None and own.num_points != num_points:
        raise UserError(
            f"{where}: its scheme {own.name} has {own.num_points} points, its network "
            f"{num_points}; it is damaged"
        )

    return own or scheme_for(num_points)


def read_scheme(path: str | Path) -> LandmarkScheme:
    """A scheme from a JSON file, which holds what :func:`define` gives.

    Raises:
        UserError: missing, no JSON, or no scheme: names the file and the field.
    """
    content = read_json(path, advice="write it again, see docs/data.md")
    if content is None:
        raise UserError(f"scheme {path} does not exist")

    with about(path):
        return scheme_from_definition(content)


def scheme_from_definition(content: Any) -> LandmarkScheme:
    """The inverse of :func:`define`, for content that may be wrong anywhere."""
    try:
        contours = tuple(Contour(**_with_tuples(item)) for item in content.get("contours", ()))
        same_as = _with_tuples(content.get("same_as", {}))
        fields = _with_tuples(content) | {"contours": contours, "same_as": same_as}
        scheme = LandmarkScheme(**fields)
        wrong = next((message for fine, message in _requirements(scheme) if not fine), None)
    except (AttributeError, TypeError) as error:  # fields that lack, or of another kind
        wrong = f"it is no landmark scheme ({error}); see docs/data.md"

    if wrong:
        raise UserError(wrong)

    return scheme


def _with_tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(value) if isinstance(value, list) else value for k, value in fields.items()}


def _requirements(scheme: LandmarkScheme) -> Iterator[tuple[bool, str]]:
    """Whether the scheme agrees with itself, point by point, and what to say where it does not."""
    count, known = scheme.num_points, {each.name: each for each in SCHEMES.values()}
    taken = f"name {scheme.name!r} is that of a built-in scheme; choose another"
    yield scheme.name not in (*known, COMMON_60.name), taken

    for name in (scheme.name, *(contour.name for contour in scheme.contours)):
        fine = isinstance(name, str) and bool(name.strip()) and name.isprintable()
        yield fine, f"name {name!r}: it must be a text of one line"

    yield from _all_points("mirror", scheme.mirror, count)
    yield from _all_points("outer_eyes", scheme.outer_eyes, count)
    for number, contour in enumerate(scheme.contours):
        what = f"contours[{number}]"
        yield from _all_points(f"{what}.points", contour.points, count)
        yield isinstance(contour.closed, bool), f"{what}.closed must be true or false"

    for name, points in scheme.same_as.items():
        wanted = f"{count} points, null where there is none, of {' or '.join(known)}"
        fine = name in known and len(points) == count
        yield fine, f"same_as.{name} must be a list of {wanted}"
        named = [point for point in points if point is not None]
        yield from _all_points(f"same_as.{name}", named, known[name].num_points)

    eyes = "outer_eyes must be a list of the two points that normalise the NME"
    yield len(scheme.outer_eyes) == 2, eyes

    held = {point for contour in scheme.contours for point in contour.points}
    for point, other in enumerate(scheme.mirror):
        back = scheme.mirror[other] == point
        yield back, f"mirror is no involution: {point} goes to {other}, but not back"
        yield point in held, f"no contour holds point {point}; every point must be in one"


def _all_points(what: str, points: Sequence[Any], count: int) -> Iterator[tuple[bool, str]]:
    """Landmarks of a scheme with ``count`` of them, each at most once."""
    for point in points:
        known = type(point) is int and 0 <= point < count
        yield known, f"{what} names point {point!r}; points are 0 to {count - 1}"
        yield points.count(point) == 1, f"{what} names point {point} twice"
