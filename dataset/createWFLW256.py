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
    from dataset.sources import Source

DEFAULT_OUT = Path("dataset/WFLW256")


HELP = {
    "--wflw": "folder with WFLW_images and WFLW_annotations",
    "--images": "instead of --wflw: the folder of the images",
    "--train-list": "with --images: official list for training",
    "--test-list": "with --images: official list for testing",
    "--pts-train": "instead of lists: folders for training whose pictures have .pts files (300W)",
    "--pts-test": "the same for testing",
    "--boxes": "with --pts-train: face boxes, one row per face, header file,x0,y0,x1,y1 (default: "
    "laid about the landmarks as WFLW lays its own)",
    "--detector": "with --pts-train: face boxes from YuNet; faces that it misses are named and "
    "left out",
    "--scheme": "landmark scheme of your own, see docs/data.md (default: WFLW's 98 or iBUG's 68 "
    "points, by their number)",
    "--out": f"output folder, made where missing (default with --wflw: {DEFAULT_OUT}, in the "
    "current folder)",
    "--resample": "how patches are resized: nearest as released, or area with pixel centres "
    "aligned (default: %(default)s)",
    "--box-scale": "what the network sees is the squared face box, grown about its centre to S "
    "times its side, from 0.5 to 3 (default: %(default)s, as released)",
    "--skip-bad": "leave out faces whose picture is missing or damaged or lies outside their box; "
    "they are counted and named, in meta.json too (default: stop at the first)",
    "--workers": "threads (default: one per available core)",
}
# each kind of source, and its options
KINDS = {
    "--wflw": ("wflw",),
    "--images, --train-list, --test-list": ("images", "train_list", "test_list"),
    "--pts-train, --pts-test": ("pts_train", "pts_test"),
}


def read_source(args: argparse.Namespace) -> Source:
    """What the options ask to prepare."""
    from dataset.boxes import detected_boxes, landmark_boxes, table_boxes
    from dataset.landmarks import read_scheme
    from dataset.sources import read_lists, read_pts, wflw_lists

    scheme = None if args.scheme is None else read_scheme(args.scheme)
    eyes = None if scheme is None else scheme.outer_eyes

    if args.wflw is not None:
        return read_lists(*wflw_lists(args.wflw), scheme)
    if args.images is not None:
        return read_lists(args.images, {"train": args.train_list, "test": args.test_list}, scheme)
    if args.boxes is not None:
        rule = table_boxes(args.boxes)
    elif args.detector is not None:
        rule = detected_boxes(args.detector, eyes)
    else:
        rule = landmark_boxes(eyes)

    return read_pts({"train": args.pts_train, "test": args.pts_test}, rule, scheme)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Cut 256 x 256 face patches and write crop lists, from WFLW, from lists in "
        "WFLW's line layout, or from folders of pictures with .pts files."
    )
    boxes = parser.add_mutually_exclusive_group()

    def add(name: str, group: Any = parser, **settings: Any) -> None:
        group.add_argument(name, help=HELP[name], **settings)

    for name in ("--wflw", "--images", "--out"):
        add(name, type=Path, metavar="DIR")
    for name in ("--train-list", "--test-list"):
        add(name, type=Path, metavar="FILE")
    for name in ("--pts-train", "--pts-test"):
        add(name, nargs="+", type=Path, metavar="DIR")

    add("--boxes", boxes, type=Path, metavar="CSV")
    add("--detector", boxes, type=Path, metavar="ONNX")
    add("--scheme", type=Path, metavar="JSON")
    add("--resample", choices=("nearest", "area"), default="nearest")
    add("--box-scale", type=float, default=1.0, metavar="S")
    add("--skip-bad", action="store_true")
    add("--workers", type=int, metavar="N")
    args = parser.parse_args(argv)
    _check(parser, args)

    return args


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """One kind of source, all of its options, and numbers that make sense."""
    given = {kind: [getattr(args, name) for name in names] for kind, names in KINDS.items()}
    begun = [kind for kind, parts in given.items() if any(part is not None for part in parts)]

    if len(begun) != 1:
        parser.error("give one of " + "; ".join(KINDS) + (", not several" if begun else ""))
    if begun != ["--wflw"] and None in (*given[begun[0]], args.out):
        parser.error(f"give all of {begun[0]} and --out")
    if args.pts_train is None and (args.boxes or args.detector):
        parser.error("--boxes and --detector are for --pts-train; lists have boxes of their own")
    if not 0.5 <= args.box_scale <= 3:  # nan neither
        parser.error("--box-scale must be from 0.5 to 3")
    if args.workers is not None and args.workers < 1:
        parser.error("--workers must be at least 1")


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
