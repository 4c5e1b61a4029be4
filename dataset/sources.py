"""What `createWFLW256.py` prepares: the faces of both splits, read and checked before any picture
is cut. They come from official lists, or from folders of pictures with `.pts` files.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dataset.annotations import (
    ATTRIBUTES,
    Annotation,
    official_list,
    read_list_bytes,
    read_official_list,
)
from dataset.boxes import BoxRule
from dataset.crop import Box, patch_frame
from dataset.landmarks import LandmarkScheme, scheme_for
from dataset.pts import PtsFace, read_folders
from utils.files import UserError
from utils.runtime import progress

SPLITS = ("train", "test")


class Face(NamedTuple):
    """One patch to write."""

    annotation: Annotation
    where: str  # file and line of the annotation, for messages
    patch: str  # path relative to the output folder
    name: str  # for meta.json: no folder of this disk in it


class Source(NamedTuple):
    """Everything that there is to prepare."""

    images: Path  # what the pictures' names are relative to
    faces: dict[str, list[Face]]  # of each split
    scheme: LandmarkScheme
    origin: dict[str, Any]  # of each split: names and SHA-256, for meta.json
    boxes: dict[str, Any]  # where the face boxes come from, for meta.json


def wflw_lists(folder: Path) -> tuple[Path, dict[str, Path]]:
    """Image folder and lists of an unpacked WFLW download."""
    if not folder.is_dir():
        raise UserError(f"WFLW folder {folder} does not exist")

    return folder / "WFLW_images", {split: official_list(folder, split) for split in SPLITS}


def read_lists(
    images: Path, lists: dict[str, Path], scheme: LandmarkScheme | None = None
) -> Source:
    """The faces of official lists, checked as far as it goes without decoding an image.

    Each list is read once, since it may come through a pipe: its digest is of what was parsed.

    Args:
        images: folder of the images.
        lists: the list of each split.
        scheme: None: the built-in scheme with as many points.
    """
    if not images.is_dir():
        raise UserError(f"image folder {images} does not exist")

    data = {split: read_list_bytes(path) for split, path in lists.items()}
    points = scheme.num_points if scheme else None
    faces = {
        split: [
            Face(
                annotation,
                f"{path}, line {annotation.line}",
                f"{split}/WFLW{index:04d}.png",
                f"{annotation.image} ({split} line {annotation.line})",
            )
            for index, annotation in enumerate(
                read_official_list(path, data[split], num_points=points)
            )
        ]
        for split, path in lists.items()
    }

    _require_same_count(faces, lists["train"], lists["test"])

    origin = {
        # a pipe is called otherwise every time
        split: {
            "list": path.name if path.is_file() else "(pipe)",
            "sha256": hashlib.sha256(data[split]).hexdigest(),
        }
        for split, path in lists.items()
    }

    return Source(images, faces, scheme or _scheme_of(faces), origin, {"from": "list"})


def require_images(source: Source) -> None:
    """Refuse a source of which an image is missing."""
    for face in (*source.faces["train"], *source.faces["test"]):
        image = source.images / face.annotation.image
        if not os.path.isfile(image):
            raise UserError(f"{face.where}: image {image} does not exist")


def read_pts(
    folders: dict[str, Sequence[Path]], rule: BoxRule, scheme: LandmarkScheme | None = None
) -> Source:
    """The faces of folders of pictures with a `.pts` file each; they have no attributes.

    Args:
        folders: of each split.
        rule: gives each face its box; faces without one are left out, and named in ``boxes``.
        scheme: None: the built-in scheme with as many points.
    """
    points = scheme.num_points if scheme else None
    read = {split: read_folders(folders[split], points) for split in SPLITS}
    faces: dict[str, list[Face]] = {}
    missed: dict[str, list[str]] = {}

    with progress(desc="face boxes", total=sum(map(len, read.values())), unit="face") as bar:
        for split, found in read.items():
            boxes = []
            for face in found:
                boxes.append(_box_of(face, rule))
                bar.update()

            faces[split] = _with_boxes(split, found, boxes)
            missed[split] = [
                f"{face.picture.parent.name}/{face.picture.name}"
                for face, box in zip(found, boxes, strict=True)
                if box is None
            ]

    for split in SPLITS:
        if not faces[split]:
            raise UserError(f"no face of {folders[split][0]} has a box, so nothing is left to use")

    _require_same_count(faces, folders["train"][0], folders["test"][0])
    origin = {split: {"pts": len(found), "sha256": _digest(found)} for split, found in read.items()}
    boxes_said = rule.description | ({"missed": missed} if any(missed.values()) else {})

    return Source(Path(), faces, scheme or _scheme_of(faces), origin, boxes_said)


def _with_boxes(split: str, found: list[PtsFace], boxes: list[Box | None]) -> list[Face]:
    """The faces that have a box, numbered in their order."""
    chosen = [(face, box) for face, box in zip(found, boxes, strict=True) if box is not None]
    flags = (False,) * len(ATTRIBUTES)

    return [
        Face(
            Annotation(face.landmarks, box, flags, str(face.picture), index + 1),
            str(face.pts),
            f"{split}/WFLW{index:04d}.png",
            f"{face.pts.parent.name}/{face.pts.name}",
        )
        for index, (face, box) in enumerate(chosen)
    ]


def _box_of(face: PtsFace, rule: BoxRule) -> Box | None:
    try:
        box = rule.box_of(face)
        if box is not None:
            patch_frame(box)  # refuses a box without area, or a gigantic one
    except UserError as error:
        raise UserError(f"{face.pts}: {error}") from None

    return box


def _require_same_count(faces: dict[str, list[Face]], train: Path, test: Path) -> None:
    counts = [len(faces[split][0].annotation.landmarks) for split in SPLITS]
    if counts[0] != counts[1]:
        raise UserError(f"{train} has {counts[0]} points a face, but {test} has {counts[1]}")


def _scheme_of(faces: dict[str, list[Face]]) -> LandmarkScheme:
    return scheme_for(len(faces["train"][0].annotation.landmarks))


def _digest(faces: list[PtsFace]) -> str:
    """Of the names of the pictures and the contents of the .pts files, in their order."""
    digest = hashlib.sha256()
    for face in faces:
        for part in (os.fsencode(face.picture.name), face.data):
            digest.update(len(part).to_bytes(8, "big") + part)

    return digest.hexdigest()
