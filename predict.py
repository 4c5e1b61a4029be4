"""Landmarks on your own pictures and videos, in their own pixels.

The face box goes through the same crop as in training: give boxes like those of the training set,
or let YuNet find them. Results: landmarks.json, an overlay of every picture and video, and for each
video a .jsonl file with one line per frame. docs/predict.md describes them.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.files import reports_user_errors

if TYPE_CHECKING:
    from prediction.inputs import BoxSource, Inputs
    from prediction.outputs import Results


LARGEST_EDGE = 10**9  # px; no picture is as large
VIEWS = range(1, 15)  # as dataset/views.py has it, which brings torch along
HELP = {
    "inputs": "picture, video, or folder of them",
    "--recursive": "folders with all the folders in them",
    "--checkpoint": "trained network (default: our SepBN network, checkpoints/sepbn16.pt);"
    " a run of your own is checkpoints/RUN/final.pt",
    "--device": "auto, cpu, cuda or cuda:N (default: %(default)s)",
    "--batch-size": "faces at once, over pictures and frames (default: %(default)s)",
    "--box": "face box in px, edges inclusive, decimals are rounded; may be repeated; holds for "
    "every input and frame",
    "--boxes": "boxes in a table with the header file,x0,y0,x1,y1 (or with semicolons or tabs); "
    "file is a picture's path or a tail of it",
    "--whole": "every picture is a face crop: its box is the picture",
    "--detector": "YuNet of the OpenCV Zoo, face_detection_yunet_2023mar.onnx, in a file of your "
    "own",
    "--angle": "how far the head in a --box is turned clockwise in the picture; the box is turned "
    "with it about its centre; one for each --box (default: upright)",
    "--min-face": "side of the smallest faces that YuNet searches for; half of it may take four "
    "times as long (default: 32, or 1/64 of the longer side of a picture of more than 2,048 px)",
    "--score": "of YuNet's faces, 0 to 1, at least (default: %(default)s)",
    "--largest": "only the largest of YuNet's faces in each picture",
    "--refine": "predict, lay a new box about the landmarks as WFLW lays its own, and predict "
    "again: for boxes that fit badly; YuNet's do well without",
    "--views": "slightly different crops of each face, up to 14: landmarks are their mean, and "
    "landmarks.json gets their spread in px and says which faces are doubtful (default: "
    "%(default)s)",
    "--smooth": "a One-Euro filter for every point, which lags 1.6 %% of the face's side at most",
    "--detect-every": "frames from one search for faces to the next; in between, boxes go with the "
    "last landmarks, and scores are null (default: %(default)s)",
    "--out": "results (default: %(default)s)",
    "--format": "beside landmarks.json, pts: a .pts file as iBUG's for each face of a picture; "
    "csv: landmarks.csv with one row per face, as OpenFace's is (default: %(default)s)",
    "--points": "iBUG's 68 points of a network with WFLW's 98: 60 are the same points, the eight "
    "on the eyelids are interpolated along the network's lids (default: the network's own points)",
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    default = "default: YuNet finds them; its file is fetched once"
    where = parser.add_argument_group("where the faces are", default)
    looks = parser.add_argument_group("how often the network looks at a face")
    videos, source = parser.add_argument_group("videos"), where.add_mutually_exclusive_group()
    edges = ("X0", "Y0", "X1", "Y1")

    def add(name: str, group: Any = parser, **settings: Any) -> None:
        group.add_argument(name, help=HELP[name], **settings)

    add("inputs", nargs="+", type=Path, metavar="INPUT")
    add("--recursive", action="store_true")
    add("--checkpoint", type=Path, metavar="FILE")
    add("--device", default="auto")
    add("--batch-size", type=int, default=64)
    add("--out", type=Path, default=Path("predictions"), metavar="DIR")
    add("--format", choices=("json", "pts", "csv"), default="json")
    add("--points", type=int, choices=(68,))

    add("--box", source, nargs=4, type=float, action="append", default=[], metavar=edges)
    add("--boxes", source, type=Path, metavar="CSV")
    add("--whole", source, action="store_true")
    add("--detector", source, type=Path, metavar="ONNX")
    add("--angle", where, type=float, action="append", metavar="DEG")
    add("--min-face", where, type=float, metavar="PX")
    add("--score", where, type=float, default=0.6, metavar="S")
    add("--largest", where, action="store_true")

    add("--refine", looks, action="store_true")
    add("--views", looks, type=int, default=1, metavar="N", choices=VIEWS)
    add("--smooth", videos, action="store_true")
    add("--detect-every", videos, type=int, default=1, metavar="N")

    return parser


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The options; what is wrong with them leaves with a usage error."""
    parser = build_parser()
    args = parser.parse_args(argv)
    boxes, angles, min_face = args.box, args.angle or [], args.min_face

    required = {
        "--batch-size must be at least 1": args.batch_size >= 1,
        "--detect-every must be at least 1": args.detect_every >= 1,
        "--min-face must be at least 8 px": min_face is None or 8 <= min_face < LARGEST_EDGE,
        "--score must lie between 0 and 1": 0 < args.score < 1,
        "--angle: give one for each --box, in the same order": len(angles) in (0, len(boxes)),
        "--angle must be a number of degrees": all(map(math.isfinite, angles)),
        f"--box: an edge lies beyond {LARGEST_EDGE:,} px, or is no number": all(
            abs(edge) < LARGEST_EDGE for box in boxes for edge in box
        ),
    }
    required |= {
        f"--box {x0:g} {y0:g} {x1:g} {y1:g} has no area; the order is left, top, right, bottom": (
            x0 <= x1 and y0 <= y1
        )
        for x0, y0, x1, y1 in boxes
    }
    if boxes or args.boxes or args.whole:
        for name in ("detect_every", "min_face", "score", "largest"):
            option = f"--{name.replace('_', '-')}"
            message = f"{option} is for a detector's boxes; leave out --box, --boxes, --whole"
            required[message] = getattr(args, name) == parser.get_default(name)

    for message, fine in required.items():
        if not fine:
            parser.error(message)

    return args


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)

    gc.disable()  # imports make many objects and hardly any garbage
    from models.checkpoint import SHIPPED
    from prediction.inputs import Detected, find_inputs
    from prediction.outputs import Results
    from prediction.pictures import predict_pictures
    from prediction.predictor import LandmarkPredictor
    from prediction.video import predict_video
    from utils.device import keep_freed_memory

    gc.freeze()  # nor does leaving look through them
    gc.enable()
    keep_freed_memory()

    used = [args.out, *([args.boxes] if args.boxes else [])]
    inputs = find_inputs(args.inputs, recursive=args.recursive, used=used)
    paths = inputs.pictures + inputs.videos
    refuse_usage(args, inputs)
    say(inputs.notes)
    if not paths:
        print(*(f"error: {error}" for error in inputs.errors.values()), sep="\n", file=sys.stderr)
        return 1

    boxes_of = box_source(args, inputs)
    names = ("device", "batch_size", "points", "views", "refine")
    options = {name: getattr(args, name) for name in names}
    predictor = LandmarkPredictor(args.checkpoint or SHIPPED, **options)
    print(f"checkpoint {predictor.path}: {predictor.config['arm']}; {predictor.scheme.name}")

    started = time.perf_counter()
    results = Results(args.out, paths, predictor)
    for path, error in inputs.errors.items():
        results.refuse(path, error)

    with results.table(wanted=args.format == "csv"):
        pts, how = args.format == "pts", {"smooth": args.smooth, "every": args.detect_every}
        predict_pictures(predictor, inputs.pictures, boxes_of, results, pts=pts)
        for path in inputs.videos:
            with results.refusing(path):
                predict_video(predictor, path, boxes_of, results, **how)

    results.write_summary()
    report(results, time.perf_counter() - started, args.batch_size)
    say(boxes_of.notes() if isinstance(boxes_of, Detected) else [])

    return 1 if results.errors else 0


def say(notes: list[str]) -> None:
    for note in notes:
        print(f"note: {note}")


def refuse_usage(args: argparse.Namespace, inputs: Inputs) -> None:
    """Options that do not suit the inputs leave with a usage error."""
    if (args.smooth or args.detect_every > 1) and inputs.pictures and not inputs.videos:
        build_parser().error("--smooth and --detect-every are for videos; there is none")

    folders = {os.path.dirname(os.path.realpath(path)) for path in inputs.pictures + inputs.videos}
    if os.path.realpath(args.out) in folders:
        build_parser().error(f"--out {args.out} holds inputs, which could be overwritten")


def box_source(args: argparse.Namespace, inputs: Inputs) -> BoxSource:
    """Boxes and scores as the options ask for."""
    from dataset.detector import FaceDetector, yunet_path
    from prediction.inputs import Detected, table_source, whole_pictures

    if args.box:
        return lambda path, image: (args.box, None, args.angle)
    if args.whole:
        return whole_pictures
    if args.boxes:
        source, notes = table_source(args.boxes, inputs)
        say(notes)
        return source

    otherwise = "name one with --detector, or say where the faces are with --box or --whole"
    yunet = args.detector or yunet_path(otherwise)
    detector = FaceDetector(yunet, min_score=args.score, min_face=args.min_face)

    return Detected(detector, largest=args.largest)


def report(results: Results, seconds: float, batch_size: int) -> None:
    # the first batch warms up: it tells nothing about the speed of more
    rate = f" ({results.faces / seconds:.1f} faces/s)" if results.faces > batch_size else ""

    print(
        f"pictures or frames: {results.frames}, faces: {results.faces}, "
        f"seconds: {seconds:.1f}{rate}; results in {results.folder}"
    )

    if results.doubtful:
        first = next(iter(results.doubtful))
        which = f"{sum(results.doubtful.values())} faces, the first in {first}, are doubtful"
        say([f"{which}: their views differ more than those of faces do"])

    if others := results.others():
        such = f"{len(others)}, such as {results.name(others[0])}"
        say([f"files in {results.folder} that are not of this call: {such}"])


if __name__ == "__main__":
    sys.exit(main())
