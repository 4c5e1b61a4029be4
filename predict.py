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
from typing import TYPE_CHECKING

from utils.files import UserError, reports_user_errors, write_json

if TYPE_CHECKING:
    from prediction.inputs import BoxSource, Inputs
    from prediction.outputs import Results
    from prediction.predictor import LandmarkPredictor


LARGEST_EDGE = 10**9  # px; no picture is as large
VIEWS = range(1, 15)  # as dataset/views.py has it, which brings torch along


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    folders = "folders with all the folders in them"
    checkpoint = (
        "trained network (default: the released SepBN network, checkpoints/sepbn16.pt); a run of "
        "your own is checkpoints/RUN/final.pt"
    )
    device = "auto, cpu, cuda or cuda:N (default: %(default)s)"
    batch_size = "faces at once, over pictures and frames (default: %(default)s)"

    add("inputs", nargs="+", type=Path, metavar="INPUT", help="picture, video, or folder of them")
    add("--recursive", action="store_true", help=folders)
    add("--checkpoint", type=Path, metavar="FILE", help=checkpoint)
    add_box_options(parser)
    add_look_options(parser)
    add_video_options(parser)
    add_output_options(parser)
    add("--device", default="auto", help=device)
    add("--batch-size", type=int, default=64, help=batch_size)

    return parser


def add_box_options(parser: argparse.ArgumentParser) -> None:
    title, default = "where the faces are", "default: YuNet finds them; its file is fetched once"
    group = parser.add_argument_group(title, default)
    source = group.add_mutually_exclusive_group()
    box = (
        "face box in px, edges inclusive, decimals are rounded; may be repeated; holds for every "
        "input and frame"
    )
    boxes = (
        "boxes in a table with the header file,x0,y0,x1,y1 (or with semicolons or tabs); file is a "
        "picture's path or a tail of it"
    )
    whole = "every picture is a face crop: its box is the picture"
    detector = "YuNet of the OpenCV Zoo, face_detection_yunet_2023mar.onnx, in a file of your own"
    angle = (
        "how far the head in a --box is turned clockwise in the picture; the box is turned with it "
        "about its centre; one for each --box (default: upright)"
    )

    edges = ("X0", "Y0", "X1", "Y1")
    source.add_argument("--box", nargs=4, type=float, action="append", metavar=edges, help=box)
    source.add_argument("--boxes", type=Path, metavar="CSV", help=boxes)
    source.add_argument("--whole", action="store_true", help=whole)
    source.add_argument("--detector", type=Path, metavar="ONNX", help=detector)
    group.add_argument("--angle", type=float, action="append", metavar="DEG", help=angle)
    add_detector_options(group)


def add_detector_options(group: argparse._ArgumentGroup) -> None:
    min_face = (
        "side of the smallest faces that YuNet searches for; half of it may take four times as "
        "long (default: 32, or 1/64 of the longer side of a picture of more than 2,048 px)"
    )
    score = "of YuNet's faces, 0 to 1, at least (default: 0.6)"
    largest = "only the largest of YuNet's faces in each picture"

    group.add_argument("--min-face", type=float, metavar="PX", help=min_face)
    group.add_argument("--score", type=float, metavar="S", help=score)
    group.add_argument("--largest", action="store_true", help=largest)


def add_look_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how often the network looks at a face")
    refine = (
        "predict, lay a new box about the landmarks as WFLW lays its own, and predict again: for "
        "boxes that fit badly; YuNet's do well without"
    )
    views = (
        "slightly different crops of each face, up to 14: landmarks are their mean, and "
        "landmarks.json gets their spread in px and says which faces are doubtful (default: "
        "%(default)s)"
    )

    group.add_argument("--refine", action="store_true", help=refine)
    group.add_argument("--views", type=int, default=1, metavar="N", choices=VIEWS, help=views)


def add_video_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("videos")
    smooth = (
        "a One-Euro filter for every point: its cutoff is 1 Hz at rest and grows by 10 Hz for "
        "every face side a second of speed (which is smoothed at 1 Hz); a moving point lags 1.6 %% "
        "of the face's side at most"
    )
    every = (
        "frames from one search for faces to the next; in between, boxes go with the last "
        "landmarks, and scores are null (default: %(default)s)"
    )

    group.add_argument("--smooth", action="store_true", help=smooth)
    group.add_argument("--detect-every", type=int, default=1, metavar="N", help=every)


def add_output_options(parser: argparse.ArgumentParser) -> None:
    form = (
        "beside landmarks.json, pts: a .pts file for each face of a picture (a.jpg_face0.pts, …), "
        "pixels counted from 1 as iBUG does; csv: landmarks.csv with one row per face, columns "
        "named as OpenFace names them (default: %(default)s)"
    )
    points = (
        "iBUG's 68 points of a network with WFLW's 98: 60 are the same points, the eight on the "
        "eyelids are interpolated along the network's lids (default: the network's own points)"
    )
    out, forms = Path("predictions"), ("json", "pts", "csv")

    add = parser.add_argument
    add("--out", type=Path, default=out, metavar="DIR", help="results (default: %(default)s)")
    add("--format", choices=forms, default="json", help=form)
    add("--points", type=int, choices=(68,), help=points)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The options; what is wrong with them leaves with a usage error."""
    parser = build_parser()
    args = parser.parse_args(argv)
    boxes, angles, min_face = args.box or [], args.angle or [], args.min_face
    args.box = [[round(edge) if abs(edge) < LARGEST_EDGE else 0 for edge in box] for box in boxes]

    required = {
        "--batch-size must be at least 1": args.batch_size >= 1,
        "--detect-every must be at least 1": args.detect_every >= 1,
        "--min-face must be at least 8 px": min_face is None or 8 <= min_face < LARGEST_EDGE,
        "--score must lie between 0 and 1": args.score is None or 0 < args.score < 1,
        "--angle: give one for each --box, in the same order": len(angles) in (0, len(boxes)),
        "--angle must be a number of degrees": all(map(math.isfinite, angles)),
        f"--box: an edge lies beyond {LARGEST_EDGE:,} px, or is no number": all(
            abs(edge) < LARGEST_EDGE for box in boxes for edge in box
        ),
    }
    required |= {
        f"--box {left} {top} {right} {bottom} has no area; the order is left, top, right, bottom": (
            left <= right and top <= bottom
        )
        for left, top, right, bottom in args.box
    }

    if boxes or args.boxes or args.whole:
        searching = {
            "--detect-every": args.detect_every > 1,
            "--min-face": min_face is not None,
            "--score": args.score is not None,
            "--largest": args.largest,
        }
        where = "is for a detector's boxes; leave out --box, --boxes, --whole"
        required |= {f"{option} {where}": not given for option, given in searching.items()}

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
    from prediction.predictor import LandmarkPredictor
    from utils.device import keep_freed_memory

    gc.freeze()  # nor does leaving look through them
    gc.enable()
    keep_freed_memory()

    used = [args.out, *([args.boxes] if args.boxes else [])]
    inputs = find_inputs(args.inputs, recursive=args.recursive, used=used)
    paths = inputs.pictures + inputs.videos
    refuse_usage(args, inputs)
    for note in inputs.notes:
        print(f"note: {note}")
    if not paths:
        print(*(f"error: {error}" for error in inputs.errors.values()), sep="\n", file=sys.stderr)
        return 1

    boxes_of = box_source(args, paths)
    checkpoint = args.checkpoint or SHIPPED
    names = ("device", "batch_size", "points", "views", "refine")
    predictor = LandmarkPredictor(checkpoint, **{name: getattr(args, name) for name in names})
    print(f"checkpoint {checkpoint}: {predictor.config['arm']}; {predictor.scheme.name}")

    started = time.perf_counter()
    results = Results(args.out, paths, predictor.scheme)
    for path, error in inputs.errors.items():
        results.refuse(path, error)

    predict_all(args, predictor, inputs, boxes_of, results)
    write_summary(results, checkpoint, predictor)
    report(results, time.perf_counter() - started, args.batch_size)
    for note in boxes_of.notes() if isinstance(boxes_of, Detected) else ():
        print(f"note: {note}")

    return 1 if results.errors else 0


def refuse_usage(args: argparse.Namespace, inputs: Inputs) -> None:
    """Options that do not suit the inputs leave with a usage error."""
    if (args.smooth or args.detect_every > 1) and inputs.pictures and not inputs.videos:
        build_parser().error("--smooth and --detect-every are for videos; there is none")

    folders = {os.path.dirname(os.path.realpath(path)) for path in inputs.pictures + inputs.videos}
    if os.path.realpath(args.out) in folders:
        build_parser().error(
            f"--out {args.out} is a folder of the inputs; choose another, so that nothing is "
            "overwritten"
        )


def box_source(args: argparse.Namespace, paths: list[Path]) -> BoxSource:
    """Boxes and scores as the options ask for."""
    from dataset.detector import MIN_SCORE, FaceDetector, yunet_path
    from prediction.inputs import Detected, table_source, whole_pictures

    if args.box:
        return lambda path, image: (args.box, None, args.angle)
    if args.whole:
        return whole_pictures
    if args.boxes:
        source, notes = table_source(args.boxes, paths)
        for note in notes:
            print(f"note: {note}")
        return source

    score = MIN_SCORE if args.score is None else args.score
    otherwise = "name one with --detector, or say where the faces are with --box or --whole"
    yunet = args.detector or yunet_path(otherwise)
    detector = FaceDetector(yunet, min_score=score, min_face=args.min_face)

    return Detected(detector, largest=args.largest)


def predict_all(
    args: argparse.Namespace,
    predictor: LandmarkPredictor,
    inputs: Inputs,
    boxes_of: BoxSource,
    results: Results,
) -> None:
    """Write what belongs to each input."""
    from contextlib import nullcontext

    from prediction.pictures import predict_pictures
    from prediction.video import predict_video

    with results.table() if args.format == "csv" else nullcontext():
        pts = args.format == "pts"
        predict_pictures(predictor, inputs.pictures, boxes_of, results, pts=pts)

        for path in inputs.videos:
            how = {"smooth": args.smooth, "every": args.detect_every}
            try:
                predict_video(predictor, path, boxes_of, results, **how)
            except UserError as error:
                results.refuse(path, error)


def write_summary(results: Results, checkpoint: Path, predictor: LandmarkPredictor) -> None:
    """Write landmarks.json."""
    from dataset.landmarks import EYELIDS_68

    said = {"scheme": predictor.scheme.name, "box_scale": predictor.box_scale}
    if predictor.scheme != predictor.network_scheme:
        said["made_from"] = predictor.network_scheme.name
        said["interpolated_along_the_eyelids"] = list(EYELIDS_68)

    described = {entry["file"] for entry in results.entries}
    refused = [
        {"file": str(path), "error": message}
        for path, message in results.errors.items()
        if str(path) not in described
    ]

    content = {
        "format": 1,
        **said,
        "checkpoint": str(checkpoint),
        "arm": predictor.config["arm"],
        "pixels": "x, y; integers are pixel centres, 0, 0 is the upper left; boxes have "
        "inclusive edges",
        "files": results.entries + refused,
    }

    write_json(results.folder / "landmarks.json", content, indent=None)


def report(results: Results, seconds: float, batch_size: int) -> None:
    # the first batch warms up: it tells nothing about the speed of more
    rate = f" ({results.faces / seconds:.1f} faces/s)" if results.faces > batch_size else ""

    print(
        f"pictures or frames: {results.frames}, faces: {results.faces}, "
        f"seconds: {seconds:.1f}{rate}; results in {results.folder}"
    )

    if results.doubtful:
        first = next(iter(results.doubtful))
        print(
            f"note: {sum(results.doubtful.values())} faces, the first in {first}, are doubtful: "
            "their views differ more than those of faces do"
        )

    if others := results.others():
        print(
            f"note: files in {results.folder} that are not of this call: {len(others)}, "
            f"such as {results.name(others[0])}"
        )


if __name__ == "__main__":
    sys.exit(main())
