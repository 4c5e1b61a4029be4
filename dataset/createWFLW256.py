"""Prepare WFLW, or any set in WFLW's line layout: 256 x 256 face patches, crop lists and meta.json.

    python dataset/createWFLW256.py --wflw DIR
    python dataset/createWFLW256.py --images DIR --train-list FILE --test-list FILE --out DIR

The output folder holds train/WFLW0000.png ..., test/WFLW0000.png ... (numbered by the line's index
in the official list), WFLW256_train.txt, WFLW256_test.txt, one WFLW256_test_<attribute>.txt per
attribute, and meta.json, which is written last: where it is, the set is complete. An interrupted
run carries on when it is started again.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import sys
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if __name__ == "__main__":  # run as a script: the packages lie one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.files import (
    InputError,
    atomic_write,
    describe_os_error,
    make_folder,
    read_json,
    reports_input_errors,
)

if TYPE_CHECKING:
    import numpy as np

    from dataset.annotations import Annotation

DEFAULT_OUT = Path("dataset/WFLW256")
SPLITS = ("train", "test")
# From this patch side (image px) on, PNGs are stored, not deflated: with it 463 WFLW faces take
# 1.21 times the space of OpenCV's default compression; a set of large faces only would take about
# 1.75 times.
STORED_SIDE = 288
# signature, and the first chunk as far as the size, which is 256 x 256
PNG_HEAD = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0\x01\0\0\0\x01\0"
FINISHED, UNFINISHED = "meta.json", ".partial.json"


class Source(NamedTuple):
    """Where a data set comes from: the image folder and the official list of each split."""

    images: Path
    lists: dict[str, Path]


class Lists(NamedTuple):
    """What the official lists say."""

    faces: dict[str, list[Face]]  # of each split
    digests: dict[str, str]  # SHA-256 of each list's bytes


class Face(NamedTuple):
    """One patch to write."""

    annotation: Annotation
    source: Path  # the official list, for messages
    patch: str  # path relative to the output folder


def wflw_source(folder: Path) -> Source:
    """The parts of an unpacked WFLW download."""
    if not folder.is_dir():
        raise InputError(f"WFLW folder {folder} does not exist")

    lists = folder / "WFLW_annotations" / "list_98pt_rect_attr_train_test"

    return Source(
        folder / "WFLW_images",
        {split: lists / f"list_98pt_rect_attr_{split}.txt" for split in SPLITS},
    )


def read_source(source: Source) -> Lists:
    """The faces of both splits, checked as far as it goes without decoding an image.

    Each list is read once, since it may come through a pipe: its digest is of what was parsed.
    """
    from dataset.annotations import read_list_bytes, read_official_list

    if not source.images.is_dir():
        raise InputError(f"image folder {source.images} does not exist")

    data = {split: read_list_bytes(path) for split, path in source.lists.items()}
    faces = {
        split: [
            Face(annotation, path, f"{split}/WFLW{index:04d}.png")
            for index, annotation in enumerate(read_official_list(path, data[split]))
        ]
        for split, path in source.lists.items()
    }

    train, test = (len(faces[split][0].annotation.landmarks) for split in SPLITS)

    if train != test:
        raise InputError(
            f"{source.lists['train']} has {train} points a face, but {source.lists['test']} has "
            f"{test}"
        )

    for face in (*faces["train"], *faces["test"]):
        image = source.images / face.annotation.image
        if not os.path.isfile(image):
            raise InputError(
                f"{face.source}, line {face.annotation.line}: image {image} does not exist"
            )

    return Lists(faces, {split: hashlib.sha256(data[split]).hexdigest() for split in SPLITS})


def describe_settings(source: Source, lists: Lists, resample: str) -> dict[str, Any]:
    """What the patches and lists depend on; no folder of this disk in it, so the data may move."""
    from dataset.landmarks import scheme_for

    num_points = len(lists.faces["train"][0].annotation.landmarks)

    return {
        "format": 1,
        "scheme": scheme_for(num_points).name,
        "num_points": num_points,
        "resample": resample,
        "source": {
            # a pipe is called otherwise every time
            split: {
                "list": path.name if path.is_file() else "(pipe)",
                "sha256": lists.digests[split],
            }
            for split, path in source.lists.items()
        },
    }


def prepare(
    source: Source, out: Path, *, resample: str, workers: int
) -> tuple[dict[str, Any], int]:
    """Write the prepared set to `out`; returns its meta data and how many patches had to be
    written.
    """
    lists = read_source(source)
    faces = lists.faces
    settings = describe_settings(source, lists, resample)
    finished = _claim_folder(out, settings)
    everything = [*faces["train"], *faces["test"]]
    damaged = _damaged([out / face.patch for face in everything], workers)
    missing = [face for face in everything if out / face.patch in damaged]

    members = _with_subsets(faces)
    counts = {name: len(chosen) for name, chosen in members.items()}

    if (
        finished
        and finished.get("counts") == counts
        and not missing
        and all(_list_is_whole(out / _list_name(name), count) for name, count in counts.items())
    ):
        return finished, 0

    for split in SPLITS:
        make_folder(out / split)

    write_patches(missing, source.images, out, resample=resample, workers=workers)
    _write_lists(members, out, resample)
    meta = settings | {"counts": counts}
    _write_json(out / FINISHED, meta)
    (out / UNFINISHED).unlink(missing_ok=True)

    return meta, len(missing)


def write_patches(
    faces: Iterable[Face], images: Path, out: Path, *, resample: str, workers: int
) -> None:
    """Cut and write the patches of `faces`; each image is decoded once, on `workers` threads."""
    from utils.runtime import progress

    by_image: dict[str, list[Face]] = {}
    for face in faces:
        by_image.setdefault(face.annotation.image, []).append(face)

    total = sum(map(len, by_image.values()))
    # Threads suffice: OpenCV lets go of the interpreter while it decodes, resizes and encodes.
    pool = ThreadPoolExecutor(workers)

    try:
        jobs = [
            pool.submit(_write_image_patches, images / name, group, out, resample=resample)
            for name, group in by_image.items()
        ]
        with progress(desc="patches", total=total, unit="face") as bar:
            for job in as_completed(jobs):
                bar.update(job.result())
    finally:
        pool.shutdown(cancel_futures=True)


def encode_png(patch: np.ndarray, side: int) -> bytes:
    """A patch (256, 256, 3) uint8 BGR that was `side` image px wide as PNG, fast rather than small.

    Deflating is most of the work. In an enlarged patch rows repeat, and the filter "up" turns a
    repeated row into
    zeros: faster and smaller than OpenCV's default. Patches of large faces deflate to little more
    than half at best; they are stored as they are, in a tenth of the time.
    """
    import cv2

    if side >= STORED_SIDE:
        settings = [
            cv2.IMWRITE_PNG_COMPRESSION,
            0,
            cv2.IMWRITE_PNG_FILTER,
            cv2.IMWRITE_PNG_FILTER_NONE,
        ]
    else:
        settings = [
            cv2.IMWRITE_PNG_COMPRESSION,
            1,
            cv2.IMWRITE_PNG_STRATEGY,
            cv2.IMWRITE_PNG_STRATEGY_RLE,
        ]

        settings += [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP]

    return cv2.imencode(".png", patch, settings)[1].tobytes()


def _write_image_patches(image_path: Path, faces: list[Face], out: Path, *, resample: str) -> int:
    """Write the patches of all `faces` in one image; returns their number."""
    from dataset.crop import face_patch, read_image

    image = None

    for face in faces:
        try:
            if image is None:
                image = read_image(image_path)

            patch, frame = face_patch(image, face.annotation.box, resample)
        except InputError as error:
            raise InputError(f"{face.source}, line {face.annotation.line}: {error}") from None

        _write_patch(out / face.patch, encode_png(patch, frame.side))

    return len(faces)


def _write_patch(path: Path, png: bytes) -> None:
    """Write a file whole or not at all. Unlike `atomic_write` it does not wait for the disk after
    each of thousands of
    files: what a power cut leaves incomplete, `_is_whole_patch` finds and the next run writes
        again.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(png)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()

        raise describe_os_error(error, path) from error


def _damaged(paths: list[Path], workers: int) -> set[Path]:
    """Those of `paths` that are no whole patches; the sums within each file are checked."""
    with ThreadPoolExecutor(workers) as pool:  # reading and summing let go of the interpreter
        whole = list(pool.map(_is_whole_patch, paths))

    return {path for path, fine in zip(paths, whole, strict=True) if not fine}


def _is_whole_patch(path: Path) -> bool:
    """Whether a file is a PNG of 256 x 256 px, undamaged by the CRC of each of its chunks."""
    try:
        data = memoryview(path.read_bytes())
    except OSError:
        return False

    if data[:24] != PNG_HEAD:
        return False

    kind, position = b"", 8

    # a chunk: length of its data (4 bytes), kind (4), data, CRC of kind and data (4)
    while kind != b"IEND":
        length = int.from_bytes(data[position : position + 4], "big")
        body = data[position + 4 : position + 8 + length]
        position += 12 + length

        if position > len(data):
            return False
        if zlib.crc32(body) != int.from_bytes(data[position - 4 : position], "big"):
            return False

        kind = bytes(body[:4])

    return position == len(data)


def _list_is_whole(path: Path, count: int) -> bool:
    """Whether a crop list has a line for each of its faces."""
    try:
        return path.read_bytes().count(b"\n") == count
    except OSError:
        return False


def _claim_folder(out: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Make `out` ready for patches of `settings`; returns the meta data of a set that is finished
    already.

    Patches of an unfinished run are kept if they belong to the same settings and removed if not; a
    finished set of other settings, and a folder that is not ours, stay as they are.
    """
    finished, unfinished = _read_json(out / FINISHED), _read_json(out / UNFINISHED)

    if finished is not None:
        if {key: finished.get(key) for key in settings} != settings:
            raise InputError(
                f"{out} holds a set of another source or resampling; choose another --out or "
                "delete it"
            )

        return finished

    try:
        if (
            unfinished is None
            and out.is_dir()
            and any(not entry.name.startswith(".") for entry in out.iterdir())
        ):
            raise InputError(
                f"{out} holds other files and no {FINISHED}; choose an empty folder for --out"
            )

        for split in SPLITS:
            for leftover in (out / split).glob(
                ".WFLW*.tmp" if unfinished == settings else "*WFLW*.*"
            ):
                leftover.unlink()
    except OSError as error:
        raise describe_os_error(error, out) from error

    if unfinished != settings:
        make_folder(out)
        _write_json(out / UNFINISHED, settings)

    return None


def _with_subsets(faces: dict[str, list[Face]]) -> dict[str, list[Face]]:
    """The faces of both splits and of the test subsets, by the names of their lists."""
    from dataset.annotations import ATTRIBUTES

    members = dict(faces)

    for index, name in enumerate(ATTRIBUTES):
        members[f"test_{name}"] = [
            face for face in faces["test"] if face.annotation.attributes[index]
        ]

    return members


def _write_lists(members: dict[str, list[Face]], out: Path, resample: str) -> None:
    """Write the crop list of each split and test subset."""
    import numpy as np

    from dataset.annotations import write_crop_list
    from dataset.crop import patch_frame

    for name, chosen in members.items():
        points = [
            patch_frame(f.annotation.box, resample).to_patch(f.annotation.landmarks) for f in chosen
        ]
        write_crop_list(out / _list_name(name), np.array(points), [face.patch for face in chosen])


def _list_name(name: str) -> str:
    """File of the crop list of a split or of a test subset."""
    return f"WFLW256_{name}.txt"


def _read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where the file is missing."""
    return read_json(
        path, advice=f"delete the folder {path.parent} and run this again, or choose another --out"
    )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with atomic_write(path, "w") as file:
        file.write(json.dumps(content, indent=2) + "\n")


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Cut 256 x 256 face patches and write crop lists, from WFLW or from lists "
        "in WFLW's line layout."
    )
    parser.add_argument(
        "--wflw", type=Path, metavar="DIR", help="folder with WFLW_images and WFLW_annotations"
    )
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="instead of --wflw: the folder of the images"
    )
    parser.add_argument(
        "--train-list", type=Path, metavar="FILE", help="with --images: official list for training"
    )
    parser.add_argument(
        "--test-list", type=Path, metavar="FILE", help="with --images: official list for testing"
    )

    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help=f"output folder, made where missing (default with --wflw: {DEFAULT_OUT}, in the "
        "current folder)",
    )

    parser.add_argument(
        "--resample",
        choices=("nearest", "area"),
        default="nearest",
        help="how patches are resized: nearest as released, or area with pixel centres "
        "aligned (default: nearest)",
    )

    parser.add_argument(
        "--workers", type=int, metavar="N", help="threads (default: one per available core)"
    )
    args = parser.parse_args(argv)
    custom = (args.images, args.train_list, args.test_list)
    if args.wflw is not None and any(part is not None for part in custom):
        parser.error("--wflw and --images/--train-list/--test-list exclude each other")
    if args.wflw is None and not all(part is not None for part in (*custom, args.out)):
        parser.error("give --wflw DIR, or all of --images, --train-list, --test-list and --out")
    if args.workers is not None and args.workers < 1:
        parser.error("--workers must be at least 1")

    return args


@reports_input_errors
def main(argv: list[str] | None = None) -> int:
    args = _parse(argv)
    from utils.runtime import available_cores

    if args.wflw is not None:
        source = wflw_source(args.wflw)
    else:
        source = Source(args.images, {"train": args.train_list, "test": args.test_list})

    out = args.out or DEFAULT_OUT

    try:
        meta, written = prepare(
            source, out, resample=args.resample, workers=args.workers or available_cores()
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; the same command carries on from here") from None

    counts = meta["counts"]
    state = f"{written} patches written" if written else "already complete, nothing to do"
    print(f"{out}: {counts['train']} train + {counts['test']} test faces ({state})")

    return 0


if __name__ == "__main__":
    sys.exit(main())
