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
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":  # run as a script: the packages lie one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.files import reports_user_errors

if TYPE_CHECKING:
    from dataset.boxes import BoxRule
    from dataset.landmarks import LandmarkScheme
    from dataset.sources import Source

DEFAULT_OUT = Path("dataset/WFLW256")


def box_rule(args: argparse.Namespace, scheme: LandmarkScheme | None) -> BoxRule:
    """How faces of `.pts` folders get their boxes, as the options ask for."""
    from dataset.boxes import detected_boxes, landmark_boxes, table_boxes

    eyes = None if scheme is None else scheme.outer_eyes
    if args.boxes is not None:
        return table_boxes(args.boxes)
    if args.detector is not None:
        return detected_boxes(args.detector, eyes)

    return landmark_boxes(eyes)


def read_source(args: argparse.Namespace) -> Source:
    """What the options ask to prepare."""
    from dataset.landmarks import read_scheme
    from dataset.sources import read_lists, read_pts, wflw_lists

    scheme = None if args.scheme is None else read_scheme(args.scheme)

    if args.pts_train is not None:
        folders = {"train": args.pts_train, "test": args.pts_test}
        return read_pts(folders, box_rule(args, scheme), scheme)
    if args.wflw is not None:
        return read_lists(*wflw_lists(args.wflw), scheme)

    return read_lists(args.images, {"train": args.train_list, "test": args.test_list}, scheme)


def _add_sources(parser: argparse.ArgumentParser) -> None:
    """The options that say what is prepared."""
    boxes = parser.add_mutually_exclusive_group()
    add, add_boxes = parser.add_argument, boxes.add_argument
    folder: dict[str, Any] = {"type": Path, "metavar": "DIR"}
    file: dict[str, Any] = {"type": Path, "metavar": "FILE"}

    add("--wflw", **folder, help="folder with WFLW_images and WFLW_annotations")
    add("--images", **folder, help="instead of --wflw: the folder of the images")
    add("--train-list", **file, help="with --images: official list for training")
    add("--test-list", **file, help="with --images: official list for testing")
    pts = "instead of lists: folders for training whose pictures have .pts files (300W)"
    add("--pts-train", nargs="+", **folder, help=pts)
    add("--pts-test", nargs="+", **folder, help="the same for testing")

    table = (
        "with --pts-train: face boxes, one row per face, header file,x0,y0,x1,y1 (default: laid "
        "about the landmarks as WFLW lays its own, side 1.23 of their longer extent, centre 0.13 "
        "of it higher)"
    )
    add_boxes("--boxes", type=Path, metavar="CSV", help=table)
    yunet = "with --pts-train: face boxes from YuNet; faces that it misses are named and left out"
    add_boxes("--detector", type=Path, metavar="ONNX", help=yunet)

    scheme = (
        "landmark scheme of your own, see docs/data.md (default: WFLW's 98 or iBUG's 68 points, by "
        "their number)"
    )
    add("--scheme", type=Path, metavar="JSON", help=scheme)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Cut 256 x 256 face patches and write crop lists, from WFLW, from lists in "
        "WFLW's line layout, or from folders of pictures with .pts files."
    )
    _add_sources(parser)
    add = parser.add_argument

    out = (
        f"output folder, made where missing (default with --wflw: {DEFAULT_OUT}, in the current "
        "folder)"
    )
    add("--out", type=Path, metavar="DIR", help=out)
    rule = (
        "how patches are resized: nearest as released, or area with pixel centres aligned "
        "(default: %(default)s)"
    )
    add("--resample", choices=("nearest", "area"), default="nearest", help=rule)
    scale = (
        "what the network sees is the squared face box, grown about its centre to S times its "
        "side, from 0.5 to 3 (default: %(default)s, as released)"
    )
    add("--box-scale", type=float, default=1.0, metavar="S", help=scale)
    skip = (
        "leave out faces whose picture is missing or damaged or lies outside their box; they are "
        "counted and named, in meta.json too (default: stop at the first)"
    )
    add("--skip-bad", action="store_true", help=skip)
    add("--workers", type=int, metavar="N", help="threads (default: one per available core)")

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
    from dataset.labels import doubtful_labels
    from dataset.prepare import Cut, prepare
    from dataset.sources import require_images
    from utils.device import available_cores

    out = args.out or DEFAULT_OUT

    try:
        source = read_source(args)
        if not args.skip_bad:
            require_images(source)

        doubts = doubtful_labels(source)
        say_left_out("were not found", source.boxes.get("missed", {}))
        meta, written = prepare(
            source,
            out,
            Cut(args.resample, args.box_scale),
            workers=args.workers or available_cores(),
            skip_bad=args.skip_bad,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; the same command carries on from here") from None

    say_left_out("have a bad picture or box", meta.get("left_out", {}))
    for doubt in doubts:  # told last, so that an error before is the only line
        print(f"warning: {doubt}", file=sys.stderr)

    counts = meta["counts"]
    state = f"{written} patches written" if written else "already complete, nothing to do"
    print(f"{out}: {counts['train']} train + {counts['test']} test faces ({state})")

    return 0


def say_left_out(reason: str, names: dict[str, list[str]]) -> None:
    """Count and name the faces of each split that are left out."""
    for split, left_out in names.items():
        if left_out:
            print(f"{len(left_out)} {split} faces {reason} and are left out: {', '.join(left_out)}")


if __name__ == "__main__":
    sys.exit(main())
