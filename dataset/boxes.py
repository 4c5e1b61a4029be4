"""Where face boxes come from: the landmarks, a user's table, a face detector."""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import os
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
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


class BoxRow(NamedTuple):
    """A row of a table of boxes."""

    line: int
    box: Box
    angle: float  # degrees by which the box is turned clockwise about its centre
    frame: int | None  # of a video, from 0; None: all of them


class BoxTable:
    """Face boxes from a CSV file with the header `file,x0,y0,x1,y1` (and `angle` and `frame`, where
    they are known; more columns do no harm), one row per face; semicolons or tabs may stand for the
    commas.

    Edges are image px, inclusive; decimals are rounded. `file` is a picture's path, or any tail of
    it (`a.jpg`, `party/a.jpg`, `party\\a.jpg`), however its accents are composed.
    """

    def __init__(self, path: Path) -> None:
        # by the parts of the path in the column "file"
        self._rows: dict[tuple[str, ...], list[BoxRow]] = {}
        text = _text_of(path)
        delimiter = max(",;\t", key=text.partition("\n")[0].count)

        try:
            lines = io.StringIO(text, newline="")
            reader = csv.DictReader(lines, delimiter=delimiter, skipinitialspace=True)
            reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or []]
            lacks = ", ".join(name for name in BOX_COLUMNS if name not in reader.fieldnames)
            if lacks:
                raise UserError(
                    f"{path}, line 1: no column {lacks}; needed: {', '.join(BOX_COLUMNS)}"
                )

            for row in reader:
                with about(f"{path}, line {reader.line_num}"):
                    if any(row[name] for name in BOX_COLUMNS):  # spreadsheets leave bare commas
                        self._add(row, reader.line_num)
        except csv.Error as error:
            raise UserError(f"{path}: not a CSV text file ({error})") from error

    def _add(self, row: dict, line: int) -> None:
        words = [*(row[name] for name in BOX_COLUMNS[1:]), row.get("angle") or "0"]

        try:  # where commas do not separate columns, they may separate decimals
            *edges, angle = (float(word.replace(",", ".")) for word in words)
            x0, y0, x1, y1, _ = map(round, (*edges, angle))  # neither nan nor infinity
        except (AttributeError, OverflowError, ValueError):
            raise UserError("x0, y0, x1, y1 must be four numbers, and angle one") from None

        box, frame = (x0, y0, x1, y1), row.get("frame") or ""
        patch_frame(box)  # refuses a box without area

        name = (row["file"] or "").strip()
        if not name:
            raise UserError("the file name is missing")

        found = BoxRow(line, box, angle, int(frame) if frame.isdecimal() else None)
        self._rows.setdefault(_parts(name), []).append(found)

    def boxes_of(self, picture: Path) -> list[BoxRow]:
        """The picture's rows, in the table's order."""
        paths = picture, os.path.abspath(picture), os.path.realpath(picture)
        spellings = {_parts(path) for path in paths}
        tails = {parts[start:] for parts in spellings for start in range(len(parts))}

        return sorted(row for tail in tails for row in self._rows.get(tail, ()))

    def match_names(self, pictures: Sequence[Path]) -> int:
        """Give rows whose folders lead to none of the pictures, as in a table of another machine,
        to the picture without a row that alone has their file's name; returns how many.
        """
        bare = [picture for picture in pictures if not self.boxes_of(picture)]
        unused = set(self.unused(pictures))
        strays = [parts for parts, rows in self._rows.items() if rows[0].line in unused]
        names = [_parts(picture)[-1] for picture in bare], [parts[-1] for parts in strays]
        found = 0

        for parts in strays:
            if all(some.count(parts[-1]) == 1 for some in names):
                picture = bare[names[0].index(parts[-1])]
                self._rows[_parts(os.path.abspath(picture))] = self._rows[parts]
                found += len(self._rows[parts])

        return found

    def unused(self, pictures: Sequence[Path]) -> list[int]:
        """Lines that name none of the pictures."""
        used = {row for picture in pictures for row in self.boxes_of(picture)}
        return sorted(row.line for rows in self._rows.values() for row in rows if row not in used)


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


def _parts(path: str | Path) -> tuple[str, ...]:
    """Folders and name, whichever slashes stand between them, accents composed."""
    return Path(unicodedata.normalize("NFC", str(path)).replace("\\", "/")).parts


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
        boxes = [row.box for row in table.boxes_of(face.picture)]
        if len(boxes) != face.in_picture:
            rows = f"{len(boxes)} rows for {face.picture.name} in {path}"
            raise UserError(f"{rows}, not {face.in_picture}")

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
