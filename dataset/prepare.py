"""Writing a prepared folder: patches, crop lists, meta.json.

An interrupted preparation carries on; a finished one is left alone, and what it has lost since is
written again. ``meta.json`` is written last: where it is, the set is complete.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from dataset.annotations import ATTRIBUTES, list_path, write_crop_list
from dataset.crop import PATCH_SIZE, face_patch, patch_frame
from dataset.landmarks import definition_to_keep
from dataset.pictures import read_image
from dataset.sources import SPLITS, Face, Source
from utils.files import UserError, atomic_write, make_folder, read_json, write_json
from utils.progress import progress

# From this patch side (image px) on, PNGs are stored, not deflated: with it 463 WFLW faces take
# 1.21 times the space of OpenCV's default compression; a set of large faces only would take about
# 1.75 times.
STORED_SIDE = 288
STORED = (cv2.IMWRITE_PNG_COMPRESSION, 0, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE)
DEFLATED = (
    *(cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP),
    *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE),
)
FINISHED, UNFINISHED = "meta.json", ".partial.json"
# what meta.json of an earlier version does not say
IMPLIED = {"scheme_definition": None, "box_scale": 1.0, "boxes": {"from": "list"}}
WORDS = {"resample": "resampling", "boxes": "kind of boxes", "num_points": "number of points"}


class Cut(NamedTuple):
    """How patches are cut."""

    resample: str = "nearest"
    box_scale: float = 1.0  # side of the square that the network sees over that of the face box


def describe_settings(source: Source, cut: Cut) -> dict[str, Any]:
    """What the patches and lists depend on; no folder of this disk in it, so the data may move."""
    return {
        "format": 1,
        "scheme": source.scheme.name,
        "num_points": source.scheme.num_points,
        "scheme_definition": definition_to_keep(source.scheme),
        "resample": cut.resample,
        "box_scale": cut.box_scale,
        "boxes": source.boxes,
        "source": source.origin,
    }


def prepare(
    source: Source, out: Path, cut: Cut, *, workers: int, skip_bad: bool = False
) -> tuple[dict[str, Any], int]:
    """Write the prepared set to ``out``; returns its meta data and how many patches had to be
    written.

    Args:
        source: the faces.
        out: the folder; made where missing.
        cut: how patches are cut.
        workers: threads.
        skip_bad: leave out faces whose picture is missing or damaged or lies outside their box, and
            name them under ``left_out`` in the meta data, by split; otherwise the first one is a
            UserError.
    """
    settings = describe_settings(source, cut)
    finished = _claim_folder(out, settings)
    for split in SPLITS:
        make_folder(out / split)

    written, bad = _write_patches(source, out, cut, workers=workers, skip_bad=skip_bad)
    left_out = {s: [f.name for f in source.faces[s] if f.patch in bad] for s in SPLITS}
    faces = {s: [f for f in source.faces[s] if f.patch not in bad] for s in SPLITS}
    for split in SPLITS:
        if not faces[split]:
            raise UserError(f"no {split} face is left to use: each lacks a picture or a box")

    members = faces | {  # the test subsets too, by the names of their lists
        f"test_{name}": [face for face in faces["test"] if face.annotation.attributes[index]]
        for index, name in enumerate(ATTRIBUTES)
    }
    counts = {name: len(chosen) for name, chosen in members.items()}
    meta = settings | {"counts": counts} | ({"left_out": left_out} if bad else {})
    whole = all(_list_is_whole(list_path(out, name), count) for name, count in counts.items())

    if written or not whole or finished != meta:
        for name, chosen in members.items():
            _write_list(list_path(out, name), chosen, cut)
        write_json(out / FINISHED, meta)
        (out / UNFINISHED).unlink(missing_ok=True)

    return meta, written


def _claim_folder(out: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Make `out` ready for patches of `settings`; returns the meta data of a set that is finished
    already.

    Patches of an unfinished run are kept if they belong to the same settings and removed if not; a
    finished set of other settings, and a folder that is not ours, stay as they are.
    """
    advice = f"delete the folder {out} and run this again, or choose another --out"
    finished, unfinished = (read_json(out / name, advice=advice) for name in (FINISHED, UNFINISHED))

    if finished is not None:
        finished = IMPLIED | finished
        different = [k for k in settings if finished.get(k) != settings[k]]
        if different:
            words = ", ".join(WORDS.get(key, key.replace("_", " ")) for key in different)
            raise UserError(
                f"{out} holds a set of another {words}; choose another --out or delete it"
            )

        return finished

    visible = out.is_dir() and any(not entry.name.startswith(".") for entry in out.iterdir())
    if unfinished is None and visible:
        raise UserError(f"{out} holds other files and no {FINISHED}; choose an empty --out")

    for split in SPLITS:
        for leftover in (out / split).glob(".WFLW*.tmp" if unfinished == settings else "*WFLW*.*"):
            leftover.unlink()

    if unfinished != settings:
        make_folder(out)
        write_json(out / UNFINISHED, settings)

    return None


def _is_whole_patch(path: Path) -> bool:
    """Whether a file is a PNG of 256 x 256 px, undamaged by the sums within it."""
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            picture.verify()
            return picture.size == (PATCH_SIZE, PATCH_SIZE)
    except (OSError, SyntaxError):  # as Pillow calls what is damaged
        return False


def _write_patches(
    source: Source, out: Path, cut: Cut, *, workers: int, skip_bad: bool
) -> tuple[int, set[str]]:
    """Cut and write the patches that are missing or damaged; each image is decoded once at most, on
    ``workers`` threads.

    Returns:
        How many were written, and the patches that could not be cut, which is a UserError unless
        they are to be skipped.
    """
    by_image: dict[str, list[Face]] = {}
    for face in (*source.faces["train"], *source.faces["test"]):
        by_image.setdefault(face.annotation.image, []).append(face)

    def write(name: str) -> tuple[int, list[str]]:
        return _write_image_patches(source.images / name, by_image[name], out, cut, skip_bad)

    written, bad = 0, set()
    # Threads suffice: OpenCV lets go of the interpreter while it decodes, resizes and encodes.
    pool = ThreadPoolExecutor(workers)

    try:
        total = sum(map(len, by_image.values()))
        with progress(desc="patches", total=total, unit="face") as bar:
            for faces, done in zip(by_image.values(), pool.map(write, by_image), strict=True):
                written += done[0]
                bad.update(done[1])
                bar.update(len(faces))
    finally:
        pool.shutdown(cancel_futures=True)

    return written, bad


def _write_image_patches(
    path: Path, faces: list[Face], out: Path, cut: Cut, skip_bad: bool
) -> tuple[int, list[str]]:
    """Write what is missing of the patches in one image; returns how many, and those that cannot be
    cut.
    """
    missing = [face for face in faces if not _is_whole_patch(out / face.patch)]
    bad, image = [], None

    for face in missing:
        try:
            image = read_image(path) if image is None else image
            patch, frame = face_patch(image, face.annotation.box, *cut)
        except UserError as error:
            if not skip_bad:
                raise UserError(f"{face.where}: {error}") from None

            bad.append(face.patch)
            continue

        # what a power cut leaves incomplete, the next run finds and writes again
        with atomic_write(out / face.patch, wait=False) as file:
            file.write(encode_png(patch, frame.side))

    return len(missing) - len(bad), bad


def encode_png(patch: np.ndarray, side: int) -> bytes:
    """A patch (256, 256, 3) uint8 BGR that was `side` image px wide as PNG, fast rather than small.

    Deflating is most of the work. In an enlarged patch rows repeat, and the filter "up" turns a
    repeated row into zeros: faster and smaller than OpenCV's default. Patches of large faces
    deflate to little more than half at best; they are stored as they are, in a tenth of the time.
    """
    return cv2.imencode(".png", patch, STORED if side >= STORED_SIDE else DEFLATED)[1].tobytes()


def _write_list(path: Path, faces: list[Face], cut: Cut) -> None:
    """Write a crop list."""
    frames = [patch_frame(face.annotation.box, *cut) for face in faces]
    points = [f.to_patch(face.annotation.landmarks) for f, face in zip(frames, faces, strict=True)]
    write_crop_list(path, np.array(points), [face.patch for face in faces])


def _list_is_whole(path: Path, count: int) -> bool:
    """Whether a crop list has a line for each of its faces."""
    return path.is_file() and path.read_bytes().count(b"\n") == count
