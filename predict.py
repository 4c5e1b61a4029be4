"""Landmarks on your own pictures and videos, in their own pixels.

The face box goes through the same crop as in training: give boxes like those of the training set,
or let YuNet find them. Results: landmarks.json and an overlay of every picture; of a video an
overlay and a .jsonl file, a line a frame.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from utils.files import UserError, atomic_write, make_folder, reports_user_errors, write_json

if TYPE_CHECKING:
    import numpy as np

    from prediction.predictor import LandmarkPredictor, Shot
    from prediction.tracking import VideoShots


LARGEST_EDGE = 10**9  # px; no picture is as large


class Tally:
    """What was done, for the last line and the exit code."""

    def __init__(self) -> None:
        self.pictures = 0  # pictures and video frames
        self.faces = 0
        self.errors: dict[Path, str] = {}  # what is wrong with a file

    def count(self, shot: Shot) -> None:
        self.pictures += 1
        self.faces += len(shot.boxes)

    def refuse(self, path: Path, error: UserError) -> None:
        self.errors[path] = str(error) if str(path) in str(error) else f"{path}: {error}"
        tqdm.write(f"error: {self.errors[path]}", file=sys.stderr)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)

    parser.add_argument(
        "inputs",
        nargs="+",
        type=Path,
        metavar="INPUT",
        help="picture, folder (not its subfolders or videos), or video",
    )

    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="trained network (default: the released SepBN network, checkpoints/sepbn16.pt); "
        "a run of your own is checkpoints/RUN/final.pt",
    )

    add_box_options(parser)
    add_video_options(parser)
    add_output_options(parser)

    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)"
    )

    parser.add_argument(
        "--batch-size",
        type=int,
        default=64,
        help="faces at once, over pictures and frames (default: %(default)s)",
    )

    return parser


def add_box_options(parser: argparse.ArgumentParser) -> None:
    source = parser.add_argument_group(
        "where the faces are", "default: YuNet finds them; its file is fetched once"
    ).add_mutually_exclusive_group()

    source.add_argument(
        "--box",
        nargs=4,
        type=int,
        action="append",
        metavar=("X0", "Y0", "X1", "Y1"),
        help="face box in whole px, edges inclusive; may be repeated; holds for every input "
        "and frame",
    )

    source.add_argument(
        "--boxes",
        type=Path,
        metavar="CSV",
        help="boxes in a table with the header file,x0,y0,x1,y1; file is a picture's path or "
        "a tail of it",
    )

    source.add_argument(
        "--whole", action="store_true", help="every picture is a face crop: its box is the picture"
    )

    source.add_argument(
        "--detector",
        type=Path,
        metavar="ONNX",
        help="YuNet of the OpenCV Zoo, face_detection_yunet_2023mar.onnx, in a file of your own",
    )


def add_video_options(parser: argparse.ArgumentParser) -> None:
    videos = parser.add_argument_group("videos")

    videos.add_argument(
        "--smooth",
        action="store_true",
        help="a One-Euro filter for every point: its cutoff is 1 Hz at rest and grows by 10 Hz "
        "for every face side a second of speed (which is smoothed at 1 Hz); a moving point lags "
        "1.6 %% of the face's side at most",
    )

    videos.add_argument(
        "--detect-every",
        type=int,
        default=1,
        metavar="N",
        help="frames from one search for faces to the next; in between, boxes go with the last "
        "landmarks, and scores are null (default: %(default)s)",
    )


def add_output_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("predictions"),
        metavar="DIR",
        help="results (default: %(default)s)",
    )

    parser.add_argument(
        "--format",
        choices=("json", "pts"),
        default="json",
        help="pts: landmarks.json and a .pts file a face (NAME_face0.pts, …), "
        "pixels counted from 1 as iBUG does (default: %(default)s)",
    )

    parser.add_argument(
        "--points",
        type=int,
        choices=(68,),
        help="iBUG's 68 points of a network with WFLW's 98: 60 are the same points, the eight on "
        "the eyelids are interpolated along the network's lids (default: the network's own points)",
    )


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The options; those that can be wrong without a look at any file leave with a usage error."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.batch_size < 1:
        parser.error("--batch-size must be at least 1")
    if args.detect_every < 1:
        parser.error("--detect-every must be at least 1")
    if args.detect_every > 1 and (args.box or args.boxes or args.whole):
        parser.error("--detect-every is for a detector's boxes; leave out --box, --boxes, --whole")

    for left, top, right, bottom in args.box or []:
        if max(map(abs, (left, top, right, bottom))) > LARGEST_EDGE:
            parser.error(f"--box: an edge lies beyond {LARGEST_EDGE:,} px")
        if right < left or bottom < top:
            parser.error(
                f"--box {left} {top} {right} {bottom} has no area; the order is left, top, right, "
                "bottom"
            )

    return args


def find_inputs(args: argparse.Namespace, tally: Tally) -> list[Path]:
    """Pictures and videos, each once; those that the options do not suit leave with a usage
    error.
    """
    from prediction.inputs import expand_input, is_video

    paths: list[Path] = []
    for entry in args.inputs:
        try:
            paths += expand_input(entry)
        except UserError as error:
            tally.refuse(entry, error)

    paths = list(dict.fromkeys(paths))
    wrong_usage = build_parser().error
    if args.format == "pts" and any(map(is_video, paths)):
        wrong_usage("--format pts is for pictures; a video gets a .jsonl file")

    if (args.smooth or args.detect_every > 1) and paths and not any(map(is_video, paths)):
        wrong_usage("--smooth and --detect-every are for videos; there is none among the inputs")

    if os.path.realpath(args.out) in {os.path.dirname(os.path.realpath(path)) for path in paths}:
        wrong_usage(
            f"--out {args.out} is a folder of the inputs; choose another, so that nothing is "
            "overwritten"
        )

    return paths


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)

    gc.disable()  # imports make many objects and no garbage; a third of their time
    from models.checkpoint import SHIPPED
    from prediction.predictor import LandmarkPredictor
    from utils.runtime import keep_freed_memory

    gc.freeze()  # leaving takes no look at them either
    gc.enable()
    keep_freed_memory()

    tally = Tally()
    paths = find_inputs(args, tally)
    if not paths:
        return 1

    boxes_of = box_source(args, paths)
    checkpoint = args.checkpoint or SHIPPED
    predictor = LandmarkPredictor(
        checkpoint, device=args.device, batch_size=args.batch_size, points=args.points
    )
    print(f"checkpoint {checkpoint}: {predictor.config['arm']}; {predictor.scheme.name}")
    make_folder(args.out)

    started = time.perf_counter()
    entries = predict_all(args, predictor, paths, boxes_of, tally)
    write_summary(args.out, checkpoint, predictor, entries, tally)
    report(tally, time.perf_counter() - started, args)

    return 1 if tally.errors else 0


def predict_all(
    args: argparse.Namespace,
    predictor: LandmarkPredictor,
    paths: list[Path],
    boxes_of: Callable,
    tally: Tally,
) -> list[dict]:
    """Write what belongs to each input; return their entries for landmarks.json."""
    from prediction.inputs import is_video
    from prediction.outputs import output_names
    from prediction.tracking import VideoShots

    outputs = {path: args.out / name for path, name in zip(paths, output_names(paths), strict=True)}
    pictures = {path: output for path, output in outputs.items() if not is_video(path)}
    entries = predict_pictures(predictor, pictures, boxes_of, tally, pts=args.format == "pts")

    for path in filter(is_video, paths):
        try:
            video = VideoShots(predictor, path, boxes_of, every=args.detect_every)
            entries.append(predict_video(video, outputs[path], tally, smooth=args.smooth))
        except UserError as error:
            tally.refuse(path, error)

    return entries


def write_summary(
    out: Path, checkpoint: Path, predictor: LandmarkPredictor, entries: list[dict], tally: Tally
) -> None:
    """Write landmarks.json."""
    described = {entry["file"] for entry in entries}
    refused = [
        {"file": str(path), "error": message}
        for path, message in tally.errors.items()
        if str(path) not in described
    ]

    content = {
        "format": 1,
        **describe_points(predictor),
        "checkpoint": str(checkpoint),
        "arm": predictor.config["arm"],
        "pixels": "x, y; integers are pixel centres, 0, 0 is the upper left; boxes have "
        "inclusive edges",
        "files": entries + refused,
    }

    write_json(out / "landmarks.json", content, indent=None)


def report(tally: Tally, seconds: float, args: argparse.Namespace) -> None:
    # the first batch warms up: it tells nothing about the speed of more
    rate = f" ({tally.faces / seconds:.1f} faces/s)" if tally.faces > args.batch_size else ""

    print(
        f"pictures or frames: {tally.pictures}, faces: {tally.faces}, "
        f"seconds: {seconds:.1f}{rate}; results in {args.out}"
    )


def describe_points(predictor: LandmarkPredictor) -> dict:
    """What the landmarks are, and which of them are not the network's own."""
    from dataset.landmarks import EYELIDS_68

    said = {"scheme": predictor.scheme.name, "box_scale": predictor.box_scale}

    if predictor.scheme != predictor.network_scheme:
        said["made_from"] = predictor.network_scheme.name
        said["interpolated_along_the_eyelids"] = list(EYELIDS_68)

    return said


def box_source(args: argparse.Namespace, paths: list[Path]) -> Callable:
    """(path, image) -> boxes [[left, top, right, bottom], ...], and scores or None, as the options
    ask for.
    """
    from dataset.detector import FaceDetector, yunet_path

    if args.box:
        return lambda path, image: (args.box, None)
    if args.whole:
        return lambda path, image: ([[0, 0, image.shape[1] - 1, image.shape[0] - 1]], None)
    if args.boxes:
        return boxes_from_table(args.boxes, paths)

    detector = FaceDetector(args.detector or yunet_path())

    return lambda path, image: tuple(result.tolist() for result in detector(image))


def boxes_from_table(source: Path, paths: list[Path]) -> Callable:
    """(path, image) -> the boxes of that path in the table ``source``, and None."""
    from dataset.boxes import BoxTable
    from dataset.detector import overlaps

    table = BoxTable(source)

    if unused := table.unused(paths):
        print(
            f"note: {source}: {len(unused)} lines name none of the inputs; the first is line "
            f"{unused[0]}"
        )

    def from_table(path: Path, image: np.ndarray) -> tuple[list[list[int]], None]:
        rows = table.boxes_of(path)
        if not rows:
            raise UserError(f"{path}: no row in the table {source}")

        for box, line in rows:
            if not overlaps(box, image):
                raise UserError(
                    f"{path}: the box in {source}, line {line} lies outside the picture"
                )
        return [list(box) for box, _ in rows], None

    return from_table


def predict_pictures(
    predictor: LandmarkPredictor,
    outputs: dict[Path, Path],
    boxes_of: Callable,
    tally: Tally,
    *,
    pts: bool,
) -> list[dict]:
    """Write overlays (and .pts files) of {picture: output without suffix}; return entries for
    landmarks.json.
    """
    from dataset.crop import read_image
    from prediction.outputs import draw_faces, write_jpeg, write_pts
    from prediction.predictor import cut_faces
    from utils.runtime import progress

    def shots() -> Iterator[Shot]:
        for path in progress(outputs, desc="pictures", unit="picture"):
            try:
                yield cut_faces(predictor, path, read_image(path), boxes_of)
            except UserError as error:
                tally.refuse(path, error)

    entries = []

    for shot, landmarks in predictor.stream(shots()):
        tally.count(shot)
        entry = {
            "file": str(shot.path),
            "width": shot.image.shape[1],
            "height": shot.image.shape[0],
            "faces": describe_faces(shot, landmarks),
        }
        entries.append(entry)

        if not shot.boxes:
            tqdm.write(f"{shot.path}: no face")
            continue

        output = outputs[shot.path]
        overlay = draw_faces(shot.image, landmarks, predictor.scheme, boxes=shot.boxes)

        # The landmarks are there, whatever becomes of the files beside them.
        try:
            write_jpeg(output.with_name(f"{output.name}_overlay.jpg"), overlay)
            for index, points in enumerate(landmarks if pts else []):
                write_pts(output.with_name(f"{output.name}_face{index}.pts"), points)
        except UserError as error:
            tally.refuse(shot.path, error)
            entry["error"] = tally.errors[shot.path]

    return entries


def predict_video(shots: VideoShots, output: Path, tally: Tally, *, smooth: bool) -> dict:
    """Write a video's overlay and its rows, one a frame; return its entry for landmarks.json."""
    from prediction.outputs import atomic_video, draw_faces
    from prediction.smoothing import LandmarkSmoother

    rate = shots.video.fps
    smoother = LandmarkSmoother(rate) if smooth else None
    rows = output.with_name(f"{output.name}.jsonl")
    count = faces = 0

    with (
        atomic_write(rows, "w") as file,
        atomic_video(output.with_name(f"{output.name}_overlay.mp4"), rate) as overlay,
    ):
        for shot, landmarks in shots:
            if smoother is not None:
                landmarks = smoother(shot.boxes, landmarks)

            file.write(
                json.dumps({"frame": count, "faces": describe_faces(shot, landmarks)}) + "\n"
            )
            overlay.write(draw_faces(shot.image, landmarks, shots.scheme, boxes=shot.boxes))
            tally.count(shot)
            count += 1
            faces += len(landmarks)

    if not faces:
        tqdm.write(f"{shots.path}: no face")

    height, width = shot.image.shape[:2]

    return {
        "file": str(shots.path),
        "width": width,
        "height": height,
        "rows": rows.name,
        "frames": count,
        "frames_per_second": rate,
    }


def describe_faces(shot: Shot, landmarks: np.ndarray) -> list[dict]:
    scores: Sequence[float | None] = shot.scores or [None] * len(shot.boxes)
    return [
        {"box": box, "score": score, "landmarks": points.astype(float).round(4).tolist()}
        for box, score, points in zip(shot.boxes, scores, landmarks, strict=True)
    ]


if __name__ == "__main__":
    sys.exit(main())
