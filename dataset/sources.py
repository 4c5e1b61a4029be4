"""What `createWFLW256.py` prepares: the faces of both splits, read and checked before any picture
is cut. They come from official lists, or from folders of pictures with `.pts` files.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dataset.annotations import ATTRIBUTES, Annotation, official_list, read_official_list
from dataset.boxes import BoxRule
from dataset.landmarks import LandmarkScheme, scheme_for
from dataset.pts import PtsFace, read_folders
from utils.files import UserError, about, read_bytes
from utils.progress import progress

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

    points = scheme.num_points if scheme else None
    faces, origin = {}, {}

    for split, path in lists.items():
        data = read_bytes(path, "list")
        faces[split] = [
            Face(
                annotation._replace(image=as_on_disk(images, annotation.image)),
                f"{path}, line {annotation.line}",
                f"{split}/WFLW{index:04d}.png",
                f"{annotation.image} ({split} line {annotation.line})",
            )
            for index, annotation in enumerate(read_official_list(path, data, num_points=points))
        ]
        # a pipe is called otherwise every time
        name = path.name if path.is_file() else "(pipe)"
        origin[split] = {"list": name, "sha256": hashlib.sha256(data).hexdigest()}

    return Source(images, faces, scheme or _scheme_of(faces, lists), origin, {"from": "list"})


def as_on_disk(folder: Path, name: str) -> str:
    """A picture's name as its folder has it: with slashes, its accents composed or not."""
    slashes = name.replace("\\", "/")
    names = (name, *(unicodedata.normalize(form, slashes) for form in ("NFC", "NFD")))

    return next((each for each in names if os.path.isfile(folder / each)), name)


def require_images(source: Source) -> None:
    """Refuse a source of which an image is missing."""
    for face in (*source.faces["train"], *source.faces["test"]):
        image = source.images / face.annotation.image
        if not os.path.isfile(image):
            raise UserError(f"{face.where}: image {image} does not exist")


def read_pts(
    folders: dict[str, Sequence[Path]], rule: BoxRule, scheme: LandmarkScheme | None = None
) -> Source:
    """The faces of folders of pictures with `.pts` files; they have no attributes.

    Args:
        folders: of each split.
        rule: gives each face its box; faces without one are left out, and named in ``boxes``.
        scheme: None: the built-in scheme with as many points.
    """
    points = scheme.num_points if scheme else None
    read = {split: read_folders(folders[split], points) for split in SPLITS}
    no_flags = (False,) * len(ATTRIBUTES)
    faces: dict[str, list[Face]] = {split: [] for split in SPLITS}
    missed: dict[str, list[str]] = {split: [] for split in SPLITS}

    for split in SPLITS:
        for face in progress(read[split], desc=f"{split} face boxes", unit="face"):
            with about(face.pts):
                box = rule.box_of(face)
            if box is None:
                missed[split].append(_short(face.picture))
                continue

            patch = f"{split}/WFLW{len(faces[split]):04d}.png"
            picture, line = str(face.picture), len(faces[split]) + 1
            annotation = Annotation(face.landmarks, box, no_flags, picture, line)
            faces[split].append(Face(annotation, str(face.pts), patch, _short(face.pts)))

        if not faces[split]:
            raise UserError(f"no face of {folders[split][0]} has a box, so none is left to use")

    chosen = scheme or _scheme_of(faces, {split: folders[split][0] for split in SPLITS})
    origin = {split: {"pts": len(found), "sha256": _digest(found)} for split, found in read.items()}
    boxes = rule.description | ({"missed": missed} if any(missed.values()) else {})

    return Source(Path(), faces, chosen, origin, boxes)


def _short(path: Path) -> str:
    """A file and its folder: no more of this disk."""
    return f"{path.parent.name}/{path.name}"


def _scheme_of(faces: dict[str, list[Face]], where: Mapping[str, Path]) -> LandmarkScheme:
    """The built-in scheme of both splits' landmarks."""
    train, test = (len(faces[split][0].annotation.landmarks) for split in SPLITS)
    if train != test:
        raise UserError(f"{where['train']} has {train} points per face, {where['test']} has {test}")

    return scheme_for(train)


def _digest(faces: list[PtsFace]) -> str:
    """Of the names of the pictures and the contents of the .pts files, in their order."""
    digest = hashlib.sha256()
    for face in faces:
        for part in (os.fsencode(face.picture.name), face.data):
            digest.update(len(part).to_bytes(8, "big") + part)

    return digest.hexdigest()
