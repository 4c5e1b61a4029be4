"""Face boxes from a user's table."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

from dataset.crop import Box, patch_frame
from utils.files import UserError, read_bytes

BOX_COLUMNS = ("file", "x0", "y0", "x1", "y1")


class BoxTable:
    """Face boxes from a CSV file with the header `file,x0,y0,x1,y1` (more columns do no harm), a
    line a face.

    Edges are whole image px, inclusive. `file` is a picture's path, or any tail of it (`a.jpg`,
    `party/a.jpg`).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # boxes and their lines, by the parts of the path in the column "file"
        self._rows: dict[tuple[str, ...], list[tuple[Box, int]]] = {}
        data = io.BytesIO(read_bytes(path, "table"))
        try:
            reader = csv.DictReader(io.TextIOWrapper(data, "utf-8-sig", newline=""))
            missing = [name for name in BOX_COLUMNS if name not in (reader.fieldnames or [])]
            if missing:
                raise UserError(
                    f"{path}, line 1: no column {', '.join(missing)}; the header must be "
                    f"{','.join(BOX_COLUMNS)}"
                )

            for row in reader:
                self._add(row, reader.line_num)
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{path}: not a CSV text file ({error})") from error

    def _add(self, row: dict, line: int) -> None:
        try:
            left, top, right, bottom = (int(row[name]) for name in BOX_COLUMNS[1:])
            box = (left, top, right, bottom)
            patch_frame(box)  # refuses a box without area
        except (TypeError, ValueError):
            raise UserError(
                f"{self.path}, line {line}: x0, y0, x1, y1 must be four whole numbers"
            ) from None
        except UserError as error:
            raise UserError(f"{self.path}, line {line}: {error}") from None

        if not row["file"]:
            raise UserError(f"{self.path}, line {line}: the file name is missing")

        self._rows.setdefault(Path(row["file"]).parts, []).append((box, line))

    def boxes_of(self, picture: Path) -> list[tuple[Box, int]]:
        """The picture's boxes, each with its line in the table."""
        spellings = {
            Path(path).parts
            for path in (picture, os.path.abspath(picture), os.path.realpath(picture))
        }
        tails = {parts[start:] for parts in spellings for start in range(len(parts))}
        rows = [row for tail in tails for row in self._rows.get(tail, ())]

        return sorted(rows, key=lambda row: row[1])

    def unused(self, pictures: Sequence[Path]) -> list[int]:
        """Lines that name none of the pictures."""
        used = {line for picture in pictures for _, line in self.boxes_of(picture)}
        return [line for rows in self._rows.values() for _, line in rows if line not in used]
