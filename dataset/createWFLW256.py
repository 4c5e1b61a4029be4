"""Prepare WFLW, any set in WFLW's line layout, or folders of pictures with `.pts` files (300W):
256 x 256 face patches, crop lists and meta.json.

    python dataset/createWFLW256.py --wflw DIR
    python dataset/createWFLW256.py --images DIR --train-list FILE --test-list FILE --out DIR
    python dataset/createWFLW256.py --pts-train DIR ... --pts-test DIR ... --out DIR

The output folder holds train/WFLW0000.png ..., test/WFLW0000.png ... (numbered by the line's index
in the official list), WFLW256_train.txt, WFLW256_test.txt, one WFLW256_test_<attribute>.txt per
attribute, and meta.json, which is written last: where it is, the set is complete. An interrupted
run carries on when it is started again.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import sys
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if __name__ == "__main__":  # run as a script: the packages lie one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.files import (
    UserError,
    describe_os_error,
    make_folder,
    read_json,
    reports_user_errors,
    write_json,
)

if TYPE_CHECKING:
    import numpy as np

    from dataset.pts import PtsFace
    from dataset.sources import BoxRule, Face, Source

DEFAULT_OUT = Path("dataset/WFLW256")
# From this patch side (image px) on, PNGs are stored, not deflated: with it 463 WFLW faces take
# 1.21 times the space of OpenCV's default compression; a set of large faces only would take about
# 1.75 times.
STORED_SIDE = 288
# signature, and the first chunk as far as the size, which is 256 x 256
PNG_HEAD = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0\x01\0\0\0\x01\0"
FINISHED, UNFINISHED = "meta.json", ".partial.json"
# what meta.json of an earlier version does not say
IMPLIED = {"scheme_definition": None, "box_scale": 1.0, "boxes": {"from": "list"}}
# how its settings are called
WORDS = {"resample": "resampling", "box_scale": "box scale", "boxes": "kind of boxes"} | (
    dict.fromkeys(("num_points", "scheme_definition"), "scheme")
)
MIN_IOU = 0.4  # of a detection with the box about the landmarks, for it to be that face's


class Cut(NamedTuple):
    """How patches are cut."""

    resample: str = "nearest"
    box_scale: float = 1.0  # side of the square that the network sees over that of the face box


def describe_settings(source: Source, cut: Cut) -> dict[str, Any]:
    """What the patches and lists depend on; no folder of this disk in it, so the data may move."""
    from dataset.landmarks import definition_to_keep

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


def prepare(source: Source, out: Path, cut: Cut, *, workers: int) -> tuple[dict[str, Any], int]:
    """Write the prepared set to `out`; returns its meta data and how many patches had to be
    written.
    """
    from dataset.sources import SPLITS

    faces = source.faces
    settings = describe_settings(source, cut)
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

    write_patches(missing, source.images, out, cut, workers=workers)
    _write_lists(members, out, cut)
    meta = settings | {"counts": counts}
    write_json(out / FINISHED, meta)
    (out / UNFINISHED).unlink(missing_ok=True)

    return meta, len(missing)


def write_patches(
    faces: Iterable[Face], images: Path, out: Path, cut: Cut, *, workers: int
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
            pool.submit(_write_image_patches, images / name, group, out, cut)
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
    repeated row into zeros: faster and smaller than OpenCV's default. Patches of large faces
    deflate to little more than half at best; they are stored as they are, in a tenth of the time.
    """
    import cv2

    if side >= STORED_SIDE:
        settings = {
            cv2.IMWRITE_PNG_COMPRESSION: 0,
            cv2.IMWRITE_PNG_FILTER: cv2.IMWRITE_PNG_FILTER_NONE,
        }
    else:
        settings = {
            cv2.IMWRITE_PNG_COMPRESSION: 1,
            cv2.IMWRITE_PNG_STRATEGY: cv2.IMWRITE_PNG_STRATEGY_RLE,
            cv2.IMWRITE_PNG_FILTER: cv2.IMWRITE_PNG_FILTER_UP,
        }

    options = [number for setting in settings.items() for number in setting]

    return cv2.imencode(".png", patch, options)[1].tobytes()


def _write_image_patches(image_path: Path, faces: list[Face], out: Path, cut: Cut) -> int:
    """Write the patches of all `faces` in one image; returns their number."""
    from dataset.crop import face_patch, read_image

    image = None

    for face in faces:
        try:
            if image is None:
                image = read_image(image_path)

            patch, frame = face_patch(image, face.annotation.box, *cut)
        except UserError as error:
            raise UserError(f"{face.where}: {error}") from None

        _write_patch(out / face.patch, encode_png(patch, frame.side))

    return len(faces)


def _write_patch(path: Path, png: bytes) -> None:
    """Write a file whole or not at all.

    Unlike `atomic_write` it does not wait for the disk after each of thousands of files: what a
    power cut leaves incomplete, `_is_whole_patch` finds and the next run writes again.
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
    from dataset.sources import SPLITS

    finished, unfinished = _read_json(out / FINISHED), _read_json(out / UNFINISHED)

    if unfinished is not None:
        unfinished = IMPLIED | unfinished

    if finished is not None:
        different = [k for k in settings if (IMPLIED | finished).get(k) != settings[k]]
        if different:
            words = dict.fromkeys(WORDS.get(key, key) for key in different)
            raise UserError(
                f"{out} holds a set of another {', '.join(words)}; choose another --out or "
                "delete it"
            )

        return finished

    try:
        if (
            unfinished is None
            and out.is_dir()
            and any(not entry.name.startswith(".") for entry in out.iterdir())
        ):
            raise UserError(
                f"{out} holds other files and no {FINISHED}; choose an empty folder for --out"
            )

        for split in SPLITS:
            stale = ".WFLW*.tmp" if unfinished == settings else "*WFLW*.*"
            for leftover in (out / split).glob(stale):
                leftover.unlink()
    except OSError as error:
        raise describe_os_error(error, out) from error

    if unfinished != settings:
        make_folder(out)
        write_json(out / UNFINISHED, settings)

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


def _write_lists(members: dict[str, list[Face]], out: Path, cut: Cut) -> None:
    """Write the crop list of each split and test subset."""
    import numpy as np

    from dataset.annotations import write_crop_list
    from dataset.crop import patch_frame

    for name, chosen in members.items():
        points = [
            patch_frame(f.annotation.box, *cut).to_patch(f.annotation.landmarks) for f in chosen
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


def box_rule(args: argparse.Namespace) -> BoxRule:
    """How faces of `.pts` folders get their boxes, as the options ask for."""
    from dataset.sources import BoxRule, landmark_boxes

    if args.boxes is not None:
        return BoxRule(table_boxes(args), _name_and_digest("table", args.boxes))
    if args.detector is not None:
        box_of = detected_boxes(args.detector)
        return BoxRule(box_of, _name_and_digest("detector", args.detector))

    return landmark_boxes()


def table_boxes(args: argparse.Namespace) -> Callable[[PtsFace], Any]:
    """The box of each face from a table like predict.py's, which must have a row for it."""
    from dataset.boxes import BoxTable

    table = BoxTable(args.boxes)

    def box_of(face: PtsFace) -> Any:
        rows = table.boxes_of(face.picture)
        if len(rows) != 1:
            raise UserError(f"{len(rows)} rows for {face.picture.name} in {args.boxes}, not one")

        return rows[0][0]

    return box_of


def detected_boxes(path: Path) -> Callable[[PtsFace], Any]:
    """YuNet's box of each face: the one that fits the landmarks best, None where none fits."""
    import cv2
    import numpy as np

    from dataset.crop import overlap_ratios, read_image
    from dataset.detector import FaceDetector
    from dataset.pts import landmark_box

    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
    detector = FaceDetector(path)

    def box_of(face: PtsFace) -> Any:
        candidates, _ = detector(read_image(face.picture))
        (overlap,) = overlap_ratios(np.array([landmark_box(face.landmarks)]), candidates)
        if overlap.max(initial=0) < MIN_IOU:
            return None

        return tuple(candidates[overlap.argmax()].tolist())

    return box_of


def _name_and_digest(kind: str, path: Path) -> dict[str, str]:
    """What meta.json says of a file that boxes come from."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()

    return {"from": kind, "file": path.name, "sha256": digest}


def read_source(args: argparse.Namespace) -> Source:
    """What the options ask to prepare."""
    from dataset.landmarks import read_scheme
    from dataset.sources import read_lists, read_pts, wflw_lists

    scheme = None if args.scheme is None else read_scheme(args.scheme)

    if args.pts_train is not None:
        return read_pts({"train": args.pts_train, "test": args.pts_test}, box_rule(args), scheme)
    if args.wflw is not None:
        return read_lists(*wflw_lists(args.wflw), scheme)

    return read_lists(args.images, {"train": args.train_list, "test": args.test_list}, scheme)


def _add_sources(parser: argparse.ArgumentParser) -> None:
    """The options that say what is prepared."""
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
        "--pts-train",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="instead of lists: folders for training whose pictures have a .pts file each (300W)",
    )
    parser.add_argument(
        "--pts-test", type=Path, nargs="+", metavar="DIR", help="the same for testing"
    )

    boxes = parser.add_mutually_exclusive_group()
    boxes.add_argument(
        "--boxes",
        type=Path,
        metavar="CSV",
        help="with --pts-train: face boxes, a line a picture, header file,x0,y0,x1,y1 (default: "
        "laid about the landmarks as WFLW lays its own, side 1.23 of their longer extent, centre "
        "0.13 of it higher)",
    )
    boxes.add_argument(
        "--detector",
        type=Path,
        metavar="ONNX",
        help="with --pts-train: face boxes from YuNet; faces that it misses are named and left out",
    )

    parser.add_argument(
        "--scheme",
        type=Path,
        metavar="JSON",
        help="landmark scheme of your own, see docs/data.md (default: WFLW's 98 or iBUG's 68 "
        "points, by their number)",
    )


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Cut 256 x 256 face patches and write crop lists, from WFLW, from lists in "
        "WFLW's line layout, or from folders of pictures with .pts files."
    )
    _add_sources(parser)

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
        "--box-scale",
        type=float,
        default=1.0,
        metavar="S",
        help="what the network sees is the squared face box, grown about its centre to S times "
        "its side, from 0.5 to 3 (default: 1.0, as released)",
    )

    parser.add_argument(
        "--workers", type=int, metavar="N", help="threads (default: one per available core)"
    )
    args = parser.parse_args(argv)
    _check_sources(parser, args)

    if not 0.5 <= args.box_scale <= 3:  # nan neither
        parser.error("--box-scale must be from 0.5 to 3")
    if args.workers is not None and args.workers < 1:
        parser.error("--workers must be at least 1")

    return args


def _check_sources(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """One kind of source, and all of its options."""
    kinds = {
        "--wflw": (args.wflw,),
        "--images, --train-list, --test-list": (args.images, args.train_list, args.test_list),
        "--pts-train, --pts-test": (args.pts_train, args.pts_test),
    }
    begun = [name for name, parts in kinds.items() if any(part is not None for part in parts)]

    if len(begun) != 1:
        parser.error("give one of " + "; ".join(kinds) + (", not several" if begun else ""))
    if begun != ["--wflw"] and None in (*kinds[begun[0]], args.out):
        parser.error(f"give all of {begun[0]} and --out")
    if args.pts_train is None and (args.boxes or args.detector):
        parser.error("--boxes and --detector are for --pts-train; lists have boxes of their own")


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    args = _parse(argv)
    from utils.runtime import available_cores

    out = args.out or DEFAULT_OUT

    try:
        source = read_source(args)
        for split, names in source.boxes.get("missed", {}).items():
            print(f"{len(names)} {split} faces were not found and are left out: {' '.join(names)}")

        cut = Cut(args.resample, args.box_scale)
        meta, written = prepare(source, out, cut, workers=args.workers or available_cores())
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; the same command carries on from here") from None

    counts = meta["counts"]
    state = f"{written} patches written" if written else "already complete, nothing to do"
    print(f"{out}: {counts['train']} train + {counts['test']} test faces ({state})")

    return 0


if __name__ == "__main__":
    sys.exit(main())
