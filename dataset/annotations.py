"""Reading official WFLW-style lists, reading and writing crop lists. Every error names the file and
the line.

Official line: 2P coordinates (x0 y0 x1 y1 ..., image px), the face box (x_min y_min x_max y_max,
integers, inclusive), six 0/1 attributes, the image's name. P is that of a scheme, or comes from
the number of fields: 98 (WFLW) or 68 (iBUG style). Crop-list line: P x, then P y (px of the 256
patch), then the patch's path, relative to the list or absolute.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dataset.crop import patch_frame
from dataset.landmarks import SCHEMES
from utils.files import UserError, about, atomic_write, read_bytes

# order of the list's flags
ATTRIBUTES = ("largepose", "expression", "illumination", "makeup", "occlusion", "blur")
LARGEST = 10**6  # px; no picture reaches so far
_EXTRA_FIELDS = 4 + len(ATTRIBUTES) + 1  # box, attributes, image name


class Annotation(NamedTuple):
    """One face of an official list."""

    landmarks: np.ndarray  # (P, 2) float64, image px
    box: tuple[int, int, int, int]  # left, top, right, bottom, image px, inclusive
    attributes: tuple[bool, ...]  # six flags in the order of ATTRIBUTES
    image: str  # name relative to the image folder
    line: int  # 1-based line of the list


def read_official_list(
    path: str | Path, data: bytes | None = None, *, num_points: int | None = None
) -> list[Annotation]:
    """The faces of an official list, in its order; an empty list, or lines of different kinds, is a
    UserError.

    Args:
        path: the list.
        data: its bytes, where they were read already; ``path`` is then for messages only.
        num_points: landmarks of a face; None: as many as one of the built-in schemes has.
    """
    path = Path(path)
    faces: list[Annotation] = []

    for number, text in _lines(path, read_bytes(path, "list") if data is None else data):
        with about(f"{path}, line {number}"):
            face = _parse_official(text, number, num_points)
            faces.append(face)
            count, first = len(face.landmarks), len(faces[0].landmarks)
            if count != first:
                raise UserError(f"{count} points, but line {faces[0].line} has {first}")

    if not faces:
        raise UserError(f"{path} is empty: a list needs at least one face")

    return faces


def official_list(folder: Path, split: str) -> Path:
    """The list of a split in a folder of WFLW's own layout."""
    lists = folder / "WFLW_annotations" / "list_98pt_rect_attr_train_test"

    return lists / f"list_98pt_rect_attr_{split}.txt"


def list_path(data: Path, split: str) -> Path:
    """Path of the crop list of a split, or of a test subset, in a prepared folder."""
    return Path(data) / f"WFLW256_{split}.txt"


def read_crop_list(
    path: str | Path, num_points: int | None = None
) -> tuple[np.ndarray, list[Path]]:
    """Landmarks (N, P, 2) float64 in patch px, and the N patches' absolute paths, which are files
    that exist.

    P is ``num_points``, or that of one of the built-in schemes. An empty list (a subset without
    faces) gives an array (0, 0, 2) and no paths.
    """
    path = Path(path)
    folder = path.resolve().parent
    rows: list[np.ndarray] = []  # arrays, since a list takes four times their memory
    patches: list[Path] = []
    points = 0

    for number, text in _lines(path, read_bytes(path, "list")):
        with about(f"{path}, line {number}"):
            points = points or _count_points(text, num_points)
            fields = text.split(maxsplit=2 * points)  # a path may hold spaces

            if len(fields) <= 2 * points:
                raise UserError(
                    f"{len(fields)} fields, expected {2 * points} coordinates and the patch's path"
                )

            rows.append(_numbers(fields[:-1]))
            patch = folder / fields[-1].rstrip()
            if not os.path.isfile(patch):
                raise UserError(f"patch {patch} does not exist")
        patches.append(patch)

    xy = np.array(rows, dtype=np.float64).reshape(len(rows), 2, points)  # x block, then y block

    return np.ascontiguousarray(xy.transpose(0, 2, 1)), patches  # (N, 2, P) -> (N, P, 2)


def write_crop_list(path: str | Path, landmarks: np.ndarray, patches: Sequence[str | Path]) -> None:
    """Write landmarks (N, P, 2) in patch px and N patch paths, which stand in the list as they are
    given.

    Numbers are written so that reading them gives back the same float64. The file appears whole or
    not at all.
    """
    with atomic_write(path) as file:
        for points, patch in zip(landmarks, patches, strict=True):
            # (P, 2) -> x0 x1 ... y0 y1 ...
            numbers = np.asarray(points, dtype=np.float64).T.ravel().tolist()
            file.write((" ".join(map(repr, numbers)) + f" {Path(patch).as_posix()}\n").encode())


def _lines(path: Path, data: bytes) -> Iterator[tuple[int, str]]:
    """(1-based number, text) of each line that is not blank."""
    try:
        # Line by line, since the list of 100,000 faces has 350 MB; all three line ends count.
        for number, text in enumerate(io.TextIOWrapper(io.BytesIO(data), "utf-8-sig"), start=1):
            if text.strip():
                yield number, text.rstrip("\n")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text (expected a list of faces)") from None


def _numbers(fields: Sequence[str]) -> np.ndarray:
    """(N,) float64 coordinates in px."""
    try:
        values = np.array(fields, np.float64)  # a fifth faster than word by word
    except ValueError:
        values = np.array([number_of(field) for field in fields])

    wrong = np.flatnonzero(~(np.abs(values) <= LARGEST))  # nan too
    if wrong.size:
        raise UserError(
            f"{fields[wrong[0]]!r} is no coordinate (expected a number up to {LARGEST:,})"
        )

    return values


def number_of(word: str) -> float:
    """The number that a word spells; nan where it spells none."""
    try:
        return float(word)
    except ValueError:
        return math.nan


def _is_number(word: str) -> bool:
    return not math.isnan(number_of(word))


def _parse_official(text: str, number: int, num_points: int | None) -> Annotation:
    fields = _official_fields(text, num_points)
    coordinates = _numbers(fields[:-_EXTRA_FIELDS]).reshape(-1, 2)
    box, flags = _numbers(fields[-_EXTRA_FIELDS:-7]), fields[-7:-1]
    if (box % 1).any():
        raise UserError(f"face box {' '.join(fields[-_EXTRA_FIELDS:-7])} is not in whole pixels")

    left, top, right, bottom = map(int, box)
    patch_frame((left, top, right, bottom))  # refuses a box without area

    for name, flag in zip(ATTRIBUTES, flags, strict=True):
        if flag not in ("0", "1"):
            raise UserError(f"attribute {name} is {flag!r}, expected 0 or 1")

    attributes = tuple(flag == "1" for flag in flags)

    return Annotation(coordinates, (left, top, right, bottom), attributes, fields[-1], number)


def _official_fields(text: str, num_points: int | None) -> list[str]:
    """The fields of an official line; the last, the image's name, may hold spaces."""
    words = len(text.split())

    # More words than fields: only a line whose box and flags are where they belong is taken, since
    # a line with a coordinate too many has more words as well.
    for count in (2 * points + _EXTRA_FIELDS for points in _possible(num_points)):
        fields = text.strip().split(maxsplit=count - 1)
        box, flags = fields[-_EXTRA_FIELDS:-7], fields[-7:-1]
        plausible = {*flags} <= {"0", "1"} and all(map(_is_number, box))
        if words == count or (words > count and plausible):
            return fields

    raise UserError(f"{words} fields, expected {_either(num_points, _EXTRA_FIELDS)}")


def _possible(num_points: int | None) -> tuple[int, ...]:
    """Numbers of landmarks that a face may have."""
    return tuple(SCHEMES) if num_points is None else (num_points,)


def _either(num_points: int | None, more: int) -> str:
    """How many fields were expected, in words: two for each landmark, and ``more``."""
    possible = _possible(num_points)
    return " or ".join(f"{2 * points + more} ({points} points)" for points in possible)


def _count_points(text: str, num_points: int | None) -> int:
    """Number of points of a crop-list line: half the number of leading numbers."""
    count = sum(1 for _ in takewhile(_is_number, text.split()))
    if count % 2 or count // 2 not in _possible(num_points):
        raise UserError(
            f"{count} numbers before the patch's path, expected {_either(num_points, 0)}"
        )

    return count // 2
