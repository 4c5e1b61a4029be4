"""Folders of pictures with a `.pts` file for each face: 300W and its like.

iBUG's form of a face: ``version: 1``, ``n_points: P``, ``{``, P lines of x and y, ``}``; bare lines
of x and y are read as well. Everything after a ``#`` or ``//`` is a comment. Pixels are counted
from 1 there and from 0 everywhere here.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

import numpy as np

from dataset.annotations import number_of
from dataset.pictures import IMAGE_SUFFIXES
from utils.files import UserError, read_bytes

FACE_NUMBER = re.compile(r"_face\d+$")


class PtsFace(NamedTuple):
    """A face of a picture."""

    picture: Path
    pts: Path
    landmarks: np.ndarray  # (P, 2) float64, image px counted from 0
    data: bytes  # of the .pts file
    in_picture: int = 1  # number of faces in the picture


def read_folders(folders: Sequence[Path], num_points: int | None = None) -> list[PtsFace]:
    """The faces of some folders, folder after folder, each sorted by name; subfolders are left out.

    Args:
        folders: every picture NAME.jpg (.png, …) in them has a file NAME.pts, or NAME_face0.pts,
            NAME_face1.pts, … where it shows several faces; hidden files are ignored.
        num_points: landmarks of every face; None: as many as the first has.
    """
    faces: list[PtsFace] = []

    for folder in folders:
        pairs = _pairs(folder)
        count = Counter(picture for picture, _ in pairs)

        for picture, pts in pairs:
            data = read_bytes(pts)
            landmarks = parse_pts(data, pts)
            expected = num_points or len(faces[0].landmarks if faces else landmarks)
            if len(landmarks) != expected:
                like = "the scheme" if num_points else faces[0].pts
                raise UserError(f"{pts}: {len(landmarks)} points, but {like} has {expected}")

            faces.append(PtsFace(picture, pts, landmarks, data, count[picture]))

    return faces


def _pairs(folder: Path) -> list[tuple[Path, Path]]:
    """(picture, .pts file) of each face of a folder; something without its partner is an error."""
    visible = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    points = [path for path in visible if path.suffix.lower() == ".pts"]
    pictures = [path for path in visible if path.suffix.lower() in IMAGE_SUFFIXES]
    named: dict[str, list[Path]] = {}

    for path in pictures:
        for name in (path.stem, path.name):
            named.setdefault(normalize("NFC", name), []).append(path)

    if not points:
        raise UserError(f"folder {folder} holds no .pts file; pictures and .pts must lie in it")

    pairs = [(_picture_of(path, named), path) for path in sorted(points, key=lambda p: p.stem)]
    alone = sorted({*pictures} - {picture for picture, _ in pairs})
    if alone:
        raise UserError(f"{alone[0]}: no {alone[0].stem}.pts beside it; add or remove")

    return pairs


def _picture_of(path: Path, named: dict[str, list[Path]]) -> Path:
    """The picture of a .pts file: of its name, or NAME of NAME_face0.pts, as predict.py writes."""
    for name in (path.stem, FACE_NUMBER.sub("", path.stem)):
        found = named.get(normalize("NFC", name), [])
        if len(found) > 1:
            raise UserError(
                f"{found[1]}: {found[0].name} lies beside it, and {path.name} cannot belong to "
                "both; remove one of the pictures"
            )
        if found:
            return found[0]

    raise UserError(f"{path}: no picture {path.stem}.jpg, .png, … beside it; add or remove")


def parse_pts(data: bytes, path: Path) -> np.ndarray:
    """Landmarks (P, 2) float64, image px counted from 0, of a .pts file's bytes.

    Raises:
        UserError: names the file (``path``) and the line.
    """
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file (expected lines of x and y)") from None

    texts = [line.split("#")[0].split("//")[0].strip() for line in lines]
    if "{" in texts and "}" not in texts:
        raise UserError(f"{path}: the closing brace is missing; the file was cut, copy it again")

    announced: str | None = None
    rows: list[list[float]] = []

    for number, text in enumerate(texts, start=1):
        key, colon, value = text.partition(":")
        if colon and not rows:
            announced = value.strip() if key.strip().lower() == "n_points" else announced
        elif text not in ("", "{", "}"):
            point = [number_of(word) for word in text.split()]
            if len(point) != 2 or not all(map(math.isfinite, point)):
                raise UserError(f"{path}, line {number}: {text!r} is no pair of finite numbers")
            rows.append(point)

    if len(rows) < 2:
        raise UserError(f"{path}: {len(rows)} points, expected lines of x and y")
    if announced not in (None, str(len(rows))):
        raise UserError(f"{path}: n_points is {announced}, but {len(rows)} points follow")

    return np.array(rows) - 1.0
