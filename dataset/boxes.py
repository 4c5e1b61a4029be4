"""Where face boxes come from: the landmarks, a user's table, a face detector."""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import os
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np

from dataset.crop import Box, overlap_ratios, patch_frame
from dataset.pictures import read_image
from dataset.pts import PtsFace
from utils.files import UserError, about, read_bytes

BOX_COLUMNS = ("file", "x0", "y0", "x1", "y1")
# How WFLW lays its face boxes about its landmarks: the side over the longer extent of the points,
# and how much of that extent the box's centre lies above theirs. Medians over 332 faces of WFLW,
# whose squared boxes were measured: 1.229 (quartiles 1.149 and 1.309) and 0.131 (0.089 and 0.174);
# sideways it is 0.008.
BOX_SIDE, BOX_RISE = 1.23, 0.13
# The side over the distance of the outer eye corners, median of the same faces (quartiles 1.95 and
# 2.56): points of one's own may all lie in the middle of the face.
BOX_EYES = 2.18
MIN_IOU = 0.4  # of a detection with the box about the landmarks, for it to be that face's


class BoxTable:
    """Face boxes from a CSV file with the header `file,x0,y0,x1,y1` (more columns do no harm), one
    row per face; semicolons or tabs may stand for the commas.

    Edges are image px, inclusive; decimals are rounded. `file` is a picture's path, or any tail of
    it (`a.jpg`, `party/a.jpg`, `party\\a.jpg`), however its accents are composed.
    """

    def __init__(self, path: Path) -> None:
        # boxes and their lines, by the parts of the path in the column "file"
        self._rows: dict[tuple[str, ...], list[tuple[Box, int]]] = {}
        self._paths: dict[int, tuple[str, ...]] = {}  # of each line
        text = _text_of(path)
        delimiter = max(",;\t", key=text.partition("\n")[0].count)

        try:
            reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
            reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or []]
            missing = [name for name in BOX_COLUMNS if name not in reader.fieldnames]
            if missing:
                raise UserError(
                    f"{path}, line 1: no column {', '.join(missing)}; the header must be "
                    f"{','.join(BOX_COLUMNS)}"
                )

            for row in reader:
                with about(f"{path}, line {reader.line_num}"):
                    self._add(row, reader.line_num)
        except csv.Error as error:
            raise UserError(f"{path}: not a CSV text file ({error})") from error

    def _add(self, row: dict, line: int) -> None:
        try:  # where commas do not separate columns, they may separate decimals
            x0, y0, x1, y1 = (float(row[name].replace(",", ".")) for name in BOX_COLUMNS[1:])
            box = round(x0), round(y0), round(x1), round(y1)
        except (AttributeError, OverflowError, ValueError):
            raise UserError("x0, y0, x1, y1 must be four numbers") from None

        patch_frame(box)  # refuses a box without area

        name = (row["file"] or "").strip()
        if not name:
            raise UserError("the file name is missing")

        # a backslash may be a part of a name, or stand between names as on Windows
        self._paths[line] = _parts(PureWindowsPath(name))
        for parts in {_parts(Path(name)), self._paths[line]}:
            self._rows.setdefault(parts, []).append((box, line))

    def boxes_of(self, picture: Path) -> list[tuple[Box, int]]:
        """The picture's boxes, each with its line in the table."""
        paths = picture, os.path.abspath(picture), os.path.realpath(picture)
        spellings = {_parts(Path(path)) for path in paths}
        tails = {parts[start:] for parts in spellings for start in range(len(parts))}
        rows = [row for tail in tails for row in self._rows.get(tail, ())]

        return sorted({line: (box, line) for box, line in rows}.values(), key=lambda row: row[1])

    def match_names(self, pictures: Sequence[Path]) -> int:
        """Give rows whose folders lead to none of the pictures, as in a table of another machine,
        to the picture without a row that alone has their file's name; returns how many.
        """
        bare = [picture for picture in pictures if not self.boxes_of(picture)]
        names = [_parts(picture)[-1] for picture in bare]
        strays = {self._paths[line] for line in self.unused(pictures)}
        found = 0

        for parts in strays:
            alone = [other for other in strays if other[-1] == parts[-1]] == [parts]
            if alone and names.count(parts[-1]) == 1:
                picture = bare[names.index(parts[-1])]
                self._rows[_parts(Path(os.path.abspath(picture)))] = self._rows[parts]
                found += len(self._rows[parts])

        return found

    def unused(self, pictures: Sequence[Path]) -> list[int]:
        """Lines that name none of the pictures."""
        used = {line for picture in pictures for _, line in self.boxes_of(picture)}
        return [line for line in self._paths if line not in used]


def _text_of(path: Path) -> str:
    """A table's text: UTF-8, UTF-16 with its mark, or else as Excel saves it in Western Europe."""
    data = read_bytes(path, "table")
    marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))

    for encoding in ("utf-16",) if marked else ("utf-8-sig", "cp1252"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue

    raise UserError(f"{path}: not a CSV text file")


def _parts(path: PurePath) -> tuple[str, ...]:
    return tuple(unicodedata.normalize("NFC", part) for part in path.parts)


class BoxRule(NamedTuple):
    """How a face of a `.pts` folder gets its box."""

    box_of: Callable[[PtsFace], Box | None]  # None: there is none, the face is left out
    description: dict[str, Any]  # for meta.json


def landmark_box(landmarks: np.ndarray, eyes: tuple[int, int] | None = None) -> Box:
    """A square face box about landmarks (P, 2), laid as WFLW lays its own; whole px, inclusive.

    Args:
        landmarks: image px.
        eyes: the outer eye points of a scheme whose points may not reach the edges of a face; the
            side is then at least ``BOX_EYES`` times their distance.
    """
    low, high = landmarks.min(axis=0), landmarks.max(axis=0)
    extent = float((high - low).max())
    if not extent > 0:
        raise UserError("all landmarks lie in one place, so no face box can be laid about them")

    length = BOX_SIDE * extent
    if eyes is not None:
        one, other = landmarks[list(eyes)]
        length = max(length, BOX_EYES * float(np.linalg.norm(one - other)))

    side = 2 * max(1, round(length / 2))  # even, so that cutting need not change it
    centre = (low + high) / 2 - (0, BOX_RISE * extent)
    left, top = (round(float(value)) for value in centre - (side - 1) / 2)

    return left, top, left + side - 1, top + side - 1


def landmark_boxes(eyes: tuple[int, int] | None = None) -> BoxRule:
    """Boxes about the landmarks; ``eyes`` as for :func:`landmark_box`."""
    description: dict[str, Any] = {"from": "landmarks", "side": BOX_SIDE, "rise": BOX_RISE}
    description |= {} if eyes is None else {"eyes": BOX_EYES}

    return BoxRule(lambda face: landmark_box(face.landmarks, eyes), description)


def table_boxes(path: Path) -> BoxRule:
    """Boxes from a table like predict.py's, which must have a row for each face: of a picture's
    rows, a face takes the one that overlaps its landmarks most.
    """
    table = BoxTable(path)

    def box_of(face: PtsFace) -> Box:
        boxes = [box for box, _ in table.boxes_of(face.picture)]
        if len(boxes) != face.in_picture:
            wanted = "one" if face.in_picture == 1 else str(face.in_picture)
            raise UserError(f"{len(boxes)} rows for {face.picture.name} in {path}, not {wanted}")

        about = np.concatenate([face.landmarks.min(axis=0), face.landmarks.max(axis=0)])

        return boxes[int(overlap_ratios(about, np.array(boxes)).argmax())]

    return BoxRule(box_of, _name_and_digest("table", path))


def detected_boxes(path: Path, eyes: tuple[int, int] | None = None) -> BoxRule:
    """YuNet's boxes: the one that fits a face's landmarks best, None where none fits; ``eyes`` as
    for :func:`landmark_box`.
    """
    from dataset.detector import FaceDetector  # brings torch along

    detector = FaceDetector(path)

    def box_of(face: PtsFace) -> Box | None:
        candidates = detector(read_image(face.picture)).boxes
        expected = landmark_box(face.landmarks, eyes)
        (overlap,) = overlap_ratios(np.array([expected]), candidates)
        if overlap.max(initial=0) < MIN_IOU:
            return None

        return tuple(candidates[overlap.argmax()].tolist())

    return BoxRule(box_of, _name_and_digest("detector", path))


def _name_and_digest(kind: str, path: Path) -> dict[str, str]:
    """What meta.json says of a file that boxes come from."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()

    return {"from": kind, "file": path.name, "sha256": digest}
