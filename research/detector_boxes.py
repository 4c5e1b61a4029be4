"""What a face detector's boxes cost against the annotated ones: share of faces found, and NME with
either box.

    python research/detector_boxes.py --wflw DIR --detector YUNET.onnx --checkpoint FILE

A face counts as found if a detection overlaps its annotated box by an IoU of at least 0.5; the best
one is taken. DIR is in WFLW's layout; the test list is used.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2
import numpy as np

from dataset.annotations import Annotation, official_list, read_official_list
from dataset.crop import overlap_ratios, read_image
from dataset.detector import FaceDetector
from prediction.predictor import LandmarkPredictor
from utils.files import reports_user_errors
from utils.metrics import nme
from utils.runtime import describe_machine, progress

MIN_IOU = 0.5


def detected_boxes(
    detector: FaceDetector, image: np.ndarray, boxes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The detection that overlaps each box (N, 4) most, itself where there is none: (N, 4), and
    whether one was found (N,).
    """
    candidates, _ = detector(image)
    if not len(candidates):
        return boxes.copy(), np.zeros(len(boxes), bool)

    ratios = overlap_ratios(boxes, candidates)  # (N, M)
    found = ratios.max(axis=1) >= MIN_IOU

    return np.where(found[:, None], candidates[ratios.argmax(axis=1)], boxes), found


def shift(box: np.ndarray, other: np.ndarray) -> list[float]:
    """The other box's side, and the offset of its centre (x, y), in sides of ``box``."""
    side = (box[2:] - box[:2] + 1).max()
    centre = (other[:2] + other[2:] - box[:2] - box[2:]) / 2 / side

    return [(other[2:] - other[:2] + 1).max() / side, *centre.tolist()]


def by_image(faces: list[Annotation]) -> dict[str, list[Annotation]]:
    """The faces of each image, in the list's order."""
    groups: dict[str, list[Annotation]] = {}
    for face in faces:
        groups.setdefault(face.image, []).append(face)

    return groups


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Share of faces that a detector finds, and NME with its boxes."
    )
    parser.add_argument(
        "--wflw", type=Path, required=True, metavar="DIR", help="folder in WFLW's layout"
    )
    parser.add_argument("--detector", type=Path, required=True, metavar="ONNX", help="YuNet")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE")
    parser.add_argument("--device", default="auto")

    return parser.parse_args(argv)


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
    faces = read_official_list(official_list(args.wflw, "test"))
    groups = by_image(faces)
    detector = FaceDetector(args.detector)
    predictor = LandmarkPredictor(args.checkpoint, device=args.device)
    truth, annotated, detected, found, shifts = [], [], [], [], []

    for name, group in progress(groups.items(), desc="pictures", unit="picture"):
        image = read_image(args.wflw / "WFLW_images" / name)
        boxes = np.array([face.box for face in group])
        chosen, hits = detected_boxes(detector, image, boxes)

        annotated += list(predictor(image, boxes))
        detected += list(predictor(image, chosen))
        truth += [face.landmarks for face in group]
        found += hits.tolist()
        shifts += list(map(shift, boxes, chosen))

    hit = np.array(found)
    with_annotated, with_detected = (
        nme(np.array(p), np.array(truth), predictor.scheme.outer_eyes)
        for p in (annotated, detected)
    )
    ratio, x, y = np.array(shifts)[hit].T

    machine = describe_machine()
    print(", ".join(f"{key} {value}" for key, value in machine.items() if value is not None))
    print(f"checkpoint {args.checkpoint}: {predictor.config['arm']}")
    print(
        f"n = {len(faces)} test faces in {len(groups)} images, "
        f"found (IoU >= {MIN_IOU}): {hit.sum()} ({hit.mean():.1%})"
    )
    print(
        f"detected / annotated side {ratio.mean():.2f} ± {ratio.std():.2f}, centre offset in "
        f"sides: x {x.mean():+.3f} ± {x.std():.3f}, y {y.mean():+.3f} ± {y.std():.3f}"
    )
    print(f"NME, annotated boxes, all faces      {with_annotated.mean():.2%}")
    print(f"NME, annotated boxes, faces found    {with_annotated[hit].mean():.2%}")
    print(f"NME, detector's boxes, faces found   {with_detected[hit].mean():.2%}")

    return 0


if __name__ == "__main__":
    sys.exit(main())
