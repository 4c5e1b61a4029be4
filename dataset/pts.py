"""Folders of pictures with a `.pts` file beside each: 300W and its like.

iBUG's form of a face: ``version: 1``, ``n_points: P``, ``{``, P lines of x and y, ``}``; bare lines
of x and y are read as well. Everything after a ``#`` or ``//`` is a comment. Pixels are counted
from 1 there and from 0 everywhere here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dataset.crop import IMAGE_SUFFIXES
from utils.files import UserError


class PtsFace(NamedTuple):
    """A picture with one face."""

    picture: Path
    pts: Path
    landmarks: np.ndarray  # (P, 2) float64, image px counted from 0
    data: bytes  # of the .pts file


def read_folders(folders: Sequence[Path], num_points: int | None = None) -> list[PtsFace]:
    """The faces of some folders, folder after folder, each sorted by name; subfolders are left out.

    Args:
        folders: every picture in them has a .pts file of its name, and every .pts file a picture.
        num_points: landmarks of every face; None: as many as the first has.
    """
    faces: list[PtsFace] = []

    for folder in folders:
        for picture, pts in _pairs(folder):
            data = _read_bytes(pts)
            landmarks = parse_pts(data, pts)
            like, expected = f"the scheme has {num_points}", num_points
            if num_points is None and faces:
                expected = len(faces[0].landmarks)
                like = f"{faces[0].pts} has {expected}"

            if expected not in (None, len(landmarks)):
                raise UserError(f"{pts}: {len(landmarks)} points, but {like}")

            faces.append(PtsFace(picture, pts, landmarks, data))

    return faces


def _pairs(folder: Path) -> list[tuple[Path, Path]]:
    """(picture, .pts file) of each face of a folder; something without its partner is an error."""
    try:
        files = sorted(path for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise UserError(f"folder {folder} cannot be read: {error.strerror}") from None

    pictures: dict[str, Path] = {}

    for path in files:
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        if path.stem in pictures:
            raise UserError(
                f"{path}: {pictures[path.stem].name} lies beside it, and {path.stem}.pts cannot "
                "belong to both; remove one of the pictures"
            )

        pictures[path.stem] = path

    points = {path.stem: path for path in files if path.suffix.lower() == ".pts"}

    if not points:
        raise UserError(f"folder {folder} holds no .pts file; pictures and .pts must lie in it")

    for stem, path in points.items():
        if stem not in pictures:
            raise UserError(f"{path}: no picture {stem}.jpg, .png, … beside it; add or remove")
    for stem, path in pictures.items():
        if stem not in points:
            raise UserError(f"{path}: no {stem}.pts beside it; add or remove")

    return [(pictures[stem], points[stem]) for stem in sorted(points)]


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def parse_pts(data: bytes, path: Path) -> np.ndarray:
    """Landmarks (P, 2) float64, image px counted from 0, of a .pts file's bytes.

    Raises:
        UserError: names the file (``path``) and the line.
    """
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file (expected lines of x and y)") from None

    header: dict[str, str] = {}
    rows: list[list[float]] = []
    brace = ""  # the latest one

    for number, line in enumerate(lines, start=1):
        text = line.split("#")[0].split("//")[0].strip()

        try:
            if not text:
                continue
            if brace == "}":
                raise UserError(f"{text!r} after the closing brace")

            if text in ("{", "}"):
                if (text == "{") != (brace == "") or (text == "{" and rows):
                    raise UserError(f"{text!r} out of place")
                brace = text
            elif ":" in text and not brace and not rows:
                key, _, value = text.partition(":")
                header[key.strip().lower()] = value.strip()
            else:
                rows.append(_coordinates(text))
        except UserError as error:
            raise UserError(f"{path}, line {number}: {error}") from None

    _require_whole(path, header, rows, brace)

    return np.array(rows) - 1.0


def _coordinates(text: str) -> list[float]:
    fields = text.split()
    if len(fields) != 2:
        raise UserError(f"{len(fields)} fields, expected x and y")

    try:
        values = [float(field) for field in fields]
    except ValueError:
        raise UserError(f"{text!r} is no pair of numbers") from None

    if not all(map(math.isfinite, values)):
        raise UserError(f"{text!r} is not finite")

    return values


def _require_whole(path: Path, header: dict[str, str], rows: list, brace: str) -> None:
    """Refuse a file that was cut, or that holds another number of points than it says."""
    if brace == "{":
        raise UserError(f"{path}: the closing brace is missing; the file was cut, copy it again")
    if len(rows) < 2:
        raise UserError(f"{path}: {len(rows)} points, expected lines of x and y")

    announced = header.get("n_points", str(len(rows)))
    if announced != str(len(rows)):
        raise UserError(f"{path}: n_points is {announced}, but {len(rows)} points follow")
