"""What predict.py works on: pictures and videos, told apart by their content, and their boxes."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from dataset.boxes import BoxTable
from dataset.crop import Box
from dataset.detector import MIN_FACE, FaceDetector, Faces, overlaps
from dataset.pictures import IMAGE_SUFFIXES, is_heic
from utils.files import UserError, is_utf8

HEAD = 1 << 16  # bytes of a file that are looked at
NAMED = 3  # files that a note names
MOTION_JPEG = (".mjpeg", ".mjpg")  # JPEGs one after the other: told by the suffix alone

# (path, image) -> boxes [[left, top, right, bottom], ...], their scores, and their angles in
# degrees; the latter None where there are none
BoxSource = Callable[[Path, np.ndarray], tuple]


class Inputs(NamedTuple):
    """Each file once, what was left out of folders, and what is wrong."""

    pictures: list[Path]
    videos: list[Path]
    notes: list[str]
    errors: dict[Path, str]


def find_inputs(entries: Sequence[Path], *, recursive: bool, used: Sequence[Path] = ()) -> Inputs:
    """Files as they are; of folders the pictures and videos in them, sorted by name.

    Args:
        entries: files and folders.
        recursive: subfolders of folders too.
        used: for something else, such as the folder for results: in no folder are they inputs.
    """
    known = {os.path.realpath(entry) for entry in [*entries, *used]}
    kinds: dict[Path, str] = {}
    notes: list[str] = []
    errors: dict[Path, str] = {}

    for entry in entries:
        try:
            if not entry.is_dir():
                kinds[entry] = _kind_of_file(entry)
            elif found := _in_folder(entry, recursive, known, notes):
                kinds |= found
            else:
                errors[entry] = f"{entry}: the folder holds no pictures or videos"
        except UserError as error:
            errors[entry] = str(error)
        except OSError as error:
            errors[entry] = f"{entry}: cannot be read ({error.strerror})"

    pictures, videos = ([p for p in kinds if kinds[p] == kind] for kind in ("picture", "video"))

    return Inputs(pictures, videos, notes, errors)


def _kind_of_file(path: Path) -> str:
    """Of a file that was named: what cannot be a video is taken for a picture."""
    if re.match(r"\w{2,}:/", str(path)):
        raise UserError(f"{path}: an address; download the file, then name it here")
    if not path.exists():
        camera = "; cameras are for the page, python demo.py" if str(path).isdecimal() else ""
        raise UserError(f"{path}: no such file or folder{camera}")

    return kind_of(path) or "picture"


def _in_folder(folder: Path, recursive: bool, known: set[str], notes: list[str]) -> dict[Path, str]:
    """What is in a folder that is not known, and its kind."""
    paths = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    paths = [path for path in paths if os.path.realpath(path) not in known]
    folders = [path for path in paths if path.is_dir()]
    kinds = {path: kind_of(path) for path in paths if not path.is_dir()}
    found = {path: kind for path, kind in kinds.items() if kind}

    if unknown := [path for path in kinds if path not in found]:
        notes.append(f"{folder}: no pictures or videos, left out: {_some(unknown)}")
    if folders and not recursive:
        notes.append(f"{folder}: left out without --recursive: {_some(folders)}")

    for path in folders if recursive else []:
        found |= _in_folder(path, recursive, known, notes)

    return found


def _some(paths: list[Path]) -> str:
    more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""

    return ", ".join(path.name for path in paths[:NAMED]) + more


def kind_of(path: Path) -> str | None:
    """ "picture" or "video", by content first; None: neither, as far as the file tells."""
    named_picture = "picture" if path.suffix.lower() in IMAGE_SUFFIXES else None
    if not path.is_file() or not is_utf8(path):  # a pipe can be read once only
        return "picture"

    with path.open("rb") as file:
        head = file.read(HEAD)

    try:
        if is_heic(head):
            return "picture"
        # pages of a TIFF do not move
        if cv2.imcount(str(path)) > 1 and head[:2] not in (b"II", b"MM"):
            return "video"
        if cv2.haveImageReader(str(path)) and path.suffix.lower() not in MOTION_JPEG:
            return "picture"
        # FFmpeg shows text as a terminal would; Y4M may have no zeros
        if (b"\0" in head or head[:9] == b"YUV4MPEG2") and open_video(path).isOpened():
            return "video"
    except cv2.error:  # a damaged file
        pass

    return named_picture


def open_video(path: Path) -> cv2.VideoCapture:
    # by FFmpeg alone: OpenCV would take picture001.jpg for the first one of a sequence; by its
    # whole path, since FFmpeg would take a:b.mp4 for an address
    return cv2.VideoCapture(os.path.abspath(path), cv2.CAP_FFMPEG)


class Detected:
    """A ``BoxSource``: the faces that a detector finds.

    Args:
        detector: it may say how small the faces are that it searches for.
        largest: only the largest face of each picture.
    """

    def __init__(self, detector: FaceDetector, *, largest: bool = False) -> None:
        self._detector, self._largest = detector, largest
        self._unsearched: dict[Path, float] = {}  # px

    def __call__(self, path: Path, image: np.ndarray) -> tuple[list, list, list]:
        smallest = self._detector.smallest(image)
        if self._detector.min_face is None and smallest > MIN_FACE:
            self._unsearched[path] = smallest

        faces = self._detector(image)
        if self._largest and len(faces.boxes):
            sides = (faces.boxes[:, 2:] - faces.boxes[:, :2]).max(axis=1)
            faces = Faces(*(values[[sides.argmax()]] for values in faces))

        return faces.boxes.tolist(), faces.scores.tolist(), faces.angles.tolist()

    def notes(self) -> list[str]:
        """What was not searched for, without a limit of the user's own."""
        if not self._unsearched:
            return []

        path, smallest = max(self._unsearched.items(), key=lambda item: item[1])
        others = len(self._unsearched) - 1
        where = f"{path} and {others} more large pictures" if others else path

        return [
            f"{where}: faces of less than {smallest:.0f} px were not searched for; --min-face "
            f"{MIN_FACE} finds smaller ones, and takes longer"
        ]


def whole_pictures(path: Path, image: np.ndarray) -> tuple[list[list[int]], None, None]:
    """A ``BoxSource``: every picture is a face crop."""
    return [[0, 0, image.shape[1] - 1, image.shape[0] - 1]], None, None


def table_source(source: Path, inputs: Inputs) -> tuple[BoxSource, list[str]]:
    """The boxes of each input in the table ``source``, and notes about its other lines. Rows that
    name a frame of a video are for that frame alone; frames come in their order.
    """
    paths = inputs.pictures + inputs.videos
    frames: Counter[Path] = Counter()  # of videos, so far
    table = BoxTable(source)
    notes = []
    if count := table.match_names(paths):
        notes.append(f"{source}: rows of other folders, matched by the file's name: {count}")
    if unused := table.unused(paths):
        first = f"{len(unused)}; the first is line {unused[0]}"
        notes.append(f"{source}: lines that name none of the inputs: {first}")

    def from_table(path: Path, image: np.ndarray) -> tuple[list[Box], None, list[float]]:
        rows = table.boxes_of(path)
        if not rows:
            raise UserError(f"{path}: no row in the table {source}")

        if path in inputs.videos:
            rows = [row for row in rows if row.frame in (None, frames[path])]
            frames[path] += 1

        for row in rows:
            if not overlaps(row.box, image):
                raise UserError(f"{path}: box of {source}, line {row.line}, is outside the picture")
        return [row.box for row in rows], None, [row.angle for row in rows]

    return from_table, notes
