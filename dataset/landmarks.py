"""Landmark schemes: which point is what. Nothing else in the code knows the number of a landmark.

WFLW's 98 and iBUG's 68 points are built in (the files in `schemes/`); any other scheme comes from a
file of the same form (`read_scheme`) and travels with prepared sets and checkpoints as their
``scheme_definition``.

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
    same_as: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def num_points(self) -> int:
        return len(self.mirror)

    @property
    def pupils(self) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """Of the left and of the right pupil, the landmarks whose mean it is: those of WFLW's
        pupils, else all of an eye, as 300W has it; None where the scheme names neither.
        """
        points = {contour.name: contour.points for contour in self.contours}
        for part in ("pupil", "eye"):
            if f"left {part}" in points and f"right {part}" in points:
                return points[f"left {part}"], points[f"right {part}"]

        return None


def scheme_from_definition(content: Any) -> LandmarkScheme:
    """The inverse of :func:`define`; where fields lack, an AttributeError or TypeError."""
    contours = tuple(Contour(**_with_tuples(item)) for item in content.get("contours", ()))
    same_as = _with_tuples(content.get("same_as", {}))

    return LandmarkScheme(**_with_tuples(content) | {"contours": contours, "same_as": same_as})


def _with_tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(value) if isinstance(value, list) else value for k, value in fields.items()}


def _built_in(name: str) -> LandmarkScheme:
    path = Path(__file__).parent / "schemes" / name
    return scheme_from_definition(json.loads(path.read_text()))


WFLW_98, IBUG_68 = _built_in("wflw98.json"), _built_in("ibug68.json")
SCHEMES = {scheme.num_points: scheme for scheme in (WFLW_98, IBUG_68)}
COMMON_60 = _built_in("common60.json")  # iBUG-68 without the eyelids, numbered anew

# iBUG landmark -> the WFLW landmark that is the same point of a face. WFLW's face contour is twice
# as dense; its lids have three points between the corners, iBUG's two, and none of these agree.
WFLW_OF_IBUG = {i: p for i, p in enumerate(IBUG_68.same_as["WFLW-98"]) if p is not None}

# The WFLW landmarks of each lid, from corner to corner, and the two iBUG landmarks on it, which lie
# at a third and at two thirds of the way.
_LIDS = (
    ((60, 61, 62, 63, 64), (37, 38)),
    ((64, 65, 66, 67, 60), (40, 41)),
    ((68, 69, 70, 71, 72), (43, 44)),
    ((72, 73, 74, 75, 68), (46, 47)),
)
EYELIDS_68 = tuple(point for _, pair in _LIDS for point in pair)


def points_within(scheme: LandmarkScheme, wanted: LandmarkScheme) -> tuple[int, ...] | None:
    """Where the landmarks of ``wanted`` stand in ``scheme``; None where they are no part of it."""
    if scheme.name == wanted.name and scheme.num_points == wanted.num_points:
        return tuple(range(scheme.num_points))

    return COMMON_60.same_as.get(scheme.name) if wanted == COMMON_60 else None


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
        return None if definition is None else _checked(definition)


def scheme_of_network(config: Mapping[str, Any], where: Path | str) -> LandmarkScheme:
    """The scheme of the landmarks that a network answers with, from its checkpoint's config."""
    return own_scheme(config, where) or scheme_for(config["num_landmarks"])


def read_scheme(path: str | Path) -> LandmarkScheme:
    """A scheme from a JSON file, which holds what :func:`define` gives.

    Raises:
        UserError: missing, no JSON, or no scheme: names the file and the field.
    """
    content = read_json(path, advice="write it again, see docs/data.md")
    if content is None:
        raise UserError(f"scheme {path} does not exist")

    with about(path):
        return _checked(content)


def _checked(content: Any) -> LandmarkScheme:
    """The scheme of a definition that may be wrong anywhere."""
    try:
        scheme = scheme_from_definition(content)
        wrong = next((message for fine, message in _requirements(scheme) if not fine), None)
    except (AttributeError, TypeError) as error:  # fields that lack, or of another kind
        wrong = f"it is no landmark scheme ({error}); see docs/data.md"

    if wrong:
        raise UserError(wrong)

    return scheme


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
