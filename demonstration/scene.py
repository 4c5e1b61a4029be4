"""What a visitor shows: a picture, and where its faces are."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataset.boxes import BoxTable
from dataset.crop import PatchFrame, read_image
from dataset.detector import FaceDetector
from demonstration.steering import Answer, SteeredPredictor
from utils.files import UserError

LARGEST_FILE = 20 * 1024 * 1024  # bytes
MOST_PIXELS = 64_000_000
MOST_FACES = 20  # in one picture, the surest first
DETECTED, WHOLE, BOX = "found by YuNet", "the whole picture", "a box I draw"
EXAMPLES = Path(__file__).resolve().parents[1] / "docs" / "examples"

Box = list[int]  # left, top, right, bottom; image px, edges inclusive


@dataclass(frozen=True)
class Cut:
    """The faces of a picture as one network sees them, and its answer with the learnt attention."""

    patches: np.ndarray  # (N, 256, 256, 3) uint8, RGB
    frames: list[PatchFrame]
    learnt: Answer


@dataclass(frozen=True)
class Scene:
    """A picture with its faces, and one `Cut` a network.

    `box` is the one that was drawn, or that came with an example.
    """

    name: str
    image: np.ndarray  # (H, W, 3) uint8, BGR
    box: Box | None
    boxes: list[Box]
    scores: list[float] | None
    cuts: tuple[Cut, ...]


def read_picture(data: bytes, name: str) -> np.ndarray:
    """A file's content as (H, W, 3) uint8 BGR; it is on the disk no longer than this takes.

    Raises:
        UserError: too large, damaged, or no picture.
    """
    if len(data) > LARGEST_FILE:
        raise UserError(f"{name} has more than 20 MB; choose a smaller picture")

    damaged = f"{name} is damaged or no picture; choose another one (JPEG, PNG, WebP, BMP, TIFF)"

    with tempfile.TemporaryDirectory(prefix="sepbn-") as folder:
        path = Path(folder) / "picture"
        path.write_bytes(data)
        width, height = _announced_size(path, damaged)

        if width * height > MOST_PIXELS:
            raise UserError(
                f"{name} has {width} x {height} pixels, more than {MOST_PIXELS // 10**6} million; "
                "choose a smaller picture"
            )

        try:
            return read_image(path)
        except UserError:
            raise UserError(damaged) from None


def _announced_size(path: Path, damaged: str) -> tuple[int, int]:
    """Width and height as a picture's head says, before anything is unpacked."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                return picture.size
    except Image.DecompressionBombError:
        raise UserError(damaged.replace("is damaged or no picture", "is far too large")) from None
    except Exception:  # a damaged file makes readers raise nearly anything
        raise UserError(damaged) from None


def examples() -> dict[str, tuple[Path, Box]]:
    """The drawn faces that come with the code, by name: picture and face box."""
    table = BoxTable(EXAMPLES / "boxes.csv")
    pictures = sorted(EXAMPLES.glob("*.jpg"))

    return {path.stem: (path, list(table.boxes_of(path)[0][0])) for path in pictures}


def drawn_box(corners: Sequence[float], image: np.ndarray) -> Box:
    """The box between two opposite corners x0, y0, x1, y1 in px, kept within the picture.

    Raises:
        UserError: it is smaller than 8 px.
    """
    x0, y0, x1, y1 = (float(value) for value in corners)
    limits = np.array([image.shape[1] - 1, image.shape[0] - 1])
    ends = np.clip(np.array([[x0, y0], [x1, y1]]), 0, limits)
    (left, top), (right, bottom) = np.rint([ends.min(0), ends.max(0)]).astype(int).tolist()

    if min(right - left, bottom - top) + 1 < 8:
        raise UserError("the box is smaller than 8 pixels; drag from one corner to the other")

    return [left, top, right, bottom]


def find_faces(
    image: np.ndarray, how: str, *, detector: FaceDetector | None, box: Box | None
) -> tuple[list[Box], list[float] | None, str]:
    """Boxes, the detector's scores where it was asked, and a sentence for the visitor.

    Where YuNet finds nothing, the face is the box that is known already, else the whole picture.
    """
    whole = [0, 0, image.shape[1] - 1, image.shape[0] - 1]
    otherwise = [box] if box else [whole]

    if how == BOX:
        return ([box], None, "") if box else ([], None, "Drag a box over the face.")
    if how == WHOLE or detector is None:
        return [whole], None, ""

    boxes, scores = detector(image)
    if not len(boxes):
        instead = "the box that came with it" if box else "the whole picture"
        return otherwise, None, f"YuNet finds no face; {instead} is taken, or choose “{BOX}”."

    found = f"YuNet finds {len(boxes)} faces" if len(boxes) > 1 else "YuNet finds one face"
    shown = f"; the {MOST_FACES} surest are shown" if len(boxes) > MOST_FACES else ""

    return boxes[:MOST_FACES].tolist(), scores[:MOST_FACES].tolist(), f"{found}{shown}."


def cut_faces(
    predictors: Sequence[SteeredPredictor], image: np.ndarray, boxes: list[Box]
) -> tuple[Cut, ...]:
    """The faces for each network, with its answer.

    Raises:
        UserError: a box that cannot be cut out of the picture.
    """
    cuts = []
    for predictor in predictors:
        patches, frames = predictor.cut(image, boxes)
        cuts.append(Cut(patches, frames, predictor.answer(patches, frames)))

    return tuple(cuts)
