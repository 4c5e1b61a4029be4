"""What networks that are given away can do: NME on several sets, by attribute, by skin tone, and
with a detector's boxes.

    python research/released.py checkpoints/sepbn16.pt checkpoints/bn16.pt \\
        --set "131 WFLW" PREPARED test --set "332 WFLW" PREPARED train \\
        --pictures "131 WFLW" LIST IMAGES --detector YUNET.onnx --tones 2000

Intervals are 95 % percentile bootstraps over faces; differences of two networks, or of two kinds of
boxes, are paired: both see the same faces. A face counts as found where a detection overlaps its
annotated box by an IoU of at least 0.5; the one that overlaps most is taken. Networks with 98
points are tried on sets with 68 on the 60 points that both schemes have.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2
import numpy as np
import torch

from benchmarks.paired import machine
from dataset.annotations import ATTRIBUTES, Annotation, read_official_list
from dataset.crop import face_patch, overlap_ratios
from dataset.detector import FaceDetector, yunet_path
from dataset.faces import FaceSet, load_faces
from dataset.landmarks import COMMON_60, WFLW_98, LandmarkScheme, points_within, scheme_for
from dataset.pictures import read_image
from evaluation.evaluate import bootstrap_means, paired_difference, predict_landmarks
from evaluation.tables import MISSING, markdown_table
from models.checkpoint import LoadedModel, load_model
from prediction.predictor import LandmarkPredictor
from synthetic.face import draw_face
from utils.files import UserError, reports_user_errors
from utils.metrics import nme
from utils.progress import progress

# Individual typology angle of the skin, degrees: lower ends of the usual classes, light to dark.
TONES = {"very light": 55, "light": 41, "intermediate": 28, "tan": 10, "brown": -30, "dark": -90}
TONE_SEED = 20_261_124  # of faces made for nothing else
MIN_IOU = 0.5  # of a detection with the annotated box


def shared_points(
    prediction: np.ndarray, truth: np.ndarray
) -> tuple[np.ndarray, np.ndarray, LandmarkScheme]:
    """The points that (N, P, 2) and (N, Q, 2) share, (N, C, 2) of each, and their scheme."""
    own, annotated = scheme_for(prediction.shape[1]), scheme_for(truth.shape[1])
    common = annotated if own == annotated else COMMON_60
    chosen, true = points_within(own, common), points_within(annotated, common)
    if chosen is None or true is None:
        raise UserError(f"networks with {own.name} cannot be tried on {annotated.name}")

    return prediction[:, list(chosen)], truth[:, list(true)], common


def percent_errors(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """NME of every face, (N,) in %, over the points that (N, P, 2) and (N, Q, 2) have in common."""
    chosen, true, common = shared_points(prediction, truth)
    return 100 * nme(chosen, true, common.outer_eyes)


def without_offsets(prediction: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is left of the errors where points are defined alike.

    Every second face is corrected by each point's median offset over the other faces, and the
    other way round.

    Args:
        prediction: (N, P, 2), crop px.
        truth: (N, Q, 2), crop px.

    Returns:
        NME of every face, (N,) in %, and the median offsets of all faces' common points, (C, 2) in
        % of the distance of the outer eye corners.
    """
    chosen, true, common = shared_points(prediction, truth)
    left, right = common.outer_eyes
    distance = np.linalg.norm(true[:, left] - true[:, right], axis=1)
    offsets = 100 * (chosen - true) / distance[:, None, None]
    rest = np.empty_like(offsets)

    for half, other in (
        (slice(0, None, 2), slice(1, None, 2)),
        (slice(1, None, 2), slice(0, None, 2)),
    ):
        rest[half] = offsets[half] - np.median(offsets[other], axis=0)

    return np.linalg.norm(rest, axis=2).mean(axis=1), np.median(offsets, axis=0)


def set_errors(networks: list[LoadedModel], faces: FaceSet) -> np.ndarray:
    """NME in %, (M, N), of M networks over N faces."""
    truth = faces.crop_landmarks().numpy()
    return np.stack(
        [
            percent_errors(predict_landmarks(network.model, faces, device="cpu"), truth)
            for network in networks
        ]
    )


def cell(mean: float, low: float, high: float) -> str:
    return f"{mean:.2f} ({low:.2f} … {high:.2f})".replace("-", "−")


def row(name: str, errors: np.ndarray) -> list[str]:
    """A table's row for errors (M, N): n, every network's mean, the difference of the first two."""
    if not errors.shape[1]:
        return [name, "0"] + [MISSING] * (len(errors) + (len(errors) > 1))

    means = bootstrap_means(errors)
    bounds = np.percentile(means, (2.5, 97.5), axis=1)  # (2, M)
    cells = [cell(*values) for values in zip(errors.mean(axis=1), *bounds, strict=True)]
    if len(errors) > 1:
        change = paired_difference(means[[1, 0]], errors[[1, 0]])
        cells.append(cell(change["difference"], change["low"], change["high"]))

    return [name, str(errors.shape[1]), *cells]


def table(first: str, networks: list[LoadedModel], rows: list[list[str]]) -> str:
    names = [network.name for network in networks]
    heads = [first, "n", *names]
    heads += [f"{names[0]} − {names[1]}"] if len(names) > 1 else []

    return markdown_table(heads, rows, aligned=False)


def set_tables(networks: list[LoadedModel], sets: Sequence[Sequence[str]]) -> list[str]:
    """NME on every set, and by attribute where a set has any."""
    everything, parts = [], []

    for name, folder, split in sets:
        faces = load_faces(folder, split)
        errors = set_errors(networks, faces)
        everything.append(row(name, errors))
        if faces.attributes.any():
            parts += [
                row(f"{name}, {attribute}", errors[:, faces.attributes[:, column]])
                for column, attribute in enumerate(ATTRIBUTES)
            ]

    tables = [table("NME in %", networks, everything)] if everything else []

    return tables + ([table("by attribute", networks, parts)] if parts else [])


def offset_table(networks: list[LoadedModel], sets: Sequence[Sequence[str]]) -> str:
    """NME on every set with and without the points' median offsets, and the largest of these."""
    rows = []

    for name, folder, split in sets:
        faces = load_faces(folder, split)
        truth = faces.crop_landmarks().numpy()

        for network in networks:
            prediction = predict_landmarks(network.model, faces, device="cpu")
            rest, offsets = without_offsets(prediction, truth)
            before = percent_errors(prediction, truth).mean()
            numbers = (before, rest.mean(), np.linalg.norm(offsets, axis=1).max())
            rows.append([name, str(len(faces)), network.name, *(f"{x:.2f}" for x in numbers)])

    heads = ("set", "n", "network", "NME, %", "without median offsets", "largest offset, %")
    return markdown_table(heads, rows, aligned=False)


def typology_angle(bgr: np.ndarray) -> np.ndarray:
    """Individual typology angle of skin colours (N, 3), BGR 0 to 255, in degrees: (N,)."""
    lab = cv2.cvtColor((bgr[None] / 255).astype(np.float32), cv2.COLOR_BGR2Lab)[0]
    return np.degrees(np.arctan2(lab[:, 0] - 50, lab[:, 2]))


def toned_faces(count: int) -> tuple[FaceSet, np.ndarray]:
    """New synthetic faces, nearly frontal, and the typology angle of their bare skin (N,).

    In profile the eye corners nearly meet, and a few such faces would decide the mean of a tone.
    """
    patches, landmarks, skins, attributes = [], [], [], []

    for index in progress(range(count), desc="synthetic faces", unit="face"):
        face = draw_face(TONE_SEED, "test", index, frozenset({"pose"}))
        patch, frame = face_patch(face.picture, face.box)
        patches.append(cv2.cvtColor(patch, cv2.COLOR_BGR2RGB))
        landmarks.append(frame.to_patch(face.landmarks))
        skins.append(face.skin)
        attributes.append(face.attributes)

    faces = FaceSet(
        patches=torch.from_numpy(np.stack(patches)),
        landmarks=torch.from_numpy(np.stack(landmarks).astype(np.float32)),
        scheme=WFLW_98,
        attributes=np.array(attributes),
        paths=[],
    )

    return faces, typology_angle(np.stack(skins))


def tone_table(networks: list[LoadedModel], count: int) -> str:
    """NME by the tone of the synthetic faces' skin."""
    faces, angles = toned_faces(count)
    errors = set_errors(networks, faces)
    rows, upper = [], np.inf

    for name, lower in TONES.items():
        bounds = (f"> {lower}°" if lower > -90 else f"≤ {upper}°").replace("-", "−")
        rows.append(row(f"{name} ({bounds})", errors[:, (angles > lower) & (angles <= upper)]))
        upper = lower

    return table("nearly frontal synthetic faces, by skin (typology angle)", networks, rows)


def detected_boxes(
    detector: FaceDetector, image: np.ndarray, boxes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The detection that overlaps each box (N, 4) most, itself where there is none: (N, 4), and
    whether one was found (N,).
    """
    candidates = detector(image).boxes
    if not len(candidates):
        return boxes.copy(), np.zeros(len(boxes), bool)

    ratios = overlap_ratios(boxes, candidates)  # (N, M)
    found = ratios.max(axis=1) >= MIN_IOU

    return np.where(found[:, None], candidates[ratios.argmax(axis=1)], boxes), found


def moved(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Sides and offsets x, y of the centres of ``others`` (N, 4), in sides of ``boxes``: (N, 3)."""
    sides, other_sides = ((b[:, 2:] - b[:, :2] + 1).max(axis=1) for b in (boxes, others))
    offsets = (others[:, :2] + others[:, 2:] - boxes[:, :2] - boxes[:, 2:]) / 2

    return np.column_stack([other_sides, offsets]) / sides[:, None]


def detector_lines(
    predictors: list[LandmarkPredictor],
    detector: FaceDetector,
    name: str,
    source: Path,
    images: Path,
) -> tuple[list[list[str]], str]:
    """Rows with the NME of annotated and of detected boxes, for the faces of a list that were
    found, and how the boxes differ.
    """
    groups: dict[str, list[Annotation]] = {}
    for face in read_official_list(source):
        groups.setdefault(face.image, []).append(face)

    truth, hits, boxes, others = [], [], [], []
    answers: list[list[list[np.ndarray]]] = [[[], []] for _ in predictors]

    for image_name, group in progress(groups.items(), desc=name, unit="picture"):
        image = read_image(images / image_name)
        annotated = np.array([face.box for face in group])
        detected, found = detected_boxes(detector, image, annotated)
        truth += [face.landmarks for face in group]
        hits += found.tolist()
        boxes += annotated.tolist()
        others += detected.tolist()

        for predictor, both in zip(predictors, answers, strict=True):
            both[0] += list(predictor(image, detected))
            both[1] += list(predictor(image, annotated))

    found = np.array(hits)
    rows = []

    for predictor, both in zip(predictors, answers, strict=True):
        # detected first, so that the difference is detected - annotated
        errors = np.stack([percent_errors(np.array(p), np.array(truth))[found] for p in both])
        rows.append(row(f"{name}, {predictor.name}, {len(found)} faces", errors))

    change = moved(np.array(boxes)[found], np.array(others)[found])
    side, x, y = (f"{m:.2f} ± {s:.2f}" for m, s in zip(change.mean(0), change.std(0), strict=True))

    return rows, f"{name}: {found.mean():.1%} found; side {side}, centre off by x {x}, y {y} sides."


def detector_table(
    networks: list[LoadedModel], detector: FaceDetector, pictures: Sequence[Sequence[str]]
) -> str:
    """NME with annotated and with detected boxes on every set of pictures, and the boxes."""
    predictors = [LandmarkPredictor(network, device="cpu") for network in networks]
    rows, notes = [], []

    for name, source, images in pictures:
        lines, note = detector_lines(predictors, detector, name, Path(source), Path(images))
        rows += lines
        notes.append(note)

    heads = ("set, network", "found", "detected boxes", "annotated boxes", "difference")
    return "\n".join([markdown_table(heads, rows, aligned=False), "", *notes])


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="NME of networks on several sets, by attribute, tone and kind of box."
    )
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT")
    several: dict[str, Any] = {"nargs": 3, "action": "append", "default": []}
    names = ("NAME", "PREPARED", "SPLIT")
    parts = "a prepared folder's train or test faces; may be repeated"
    parser.add_argument("--set", dest="sets", **several, metavar=names, help=parts)
    names = ("NAME", "LIST", "IMAGES")
    lists = "an official list and its image folder, for the detector's boxes; may be repeated"
    parser.add_argument("--pictures", **several, metavar=names, help=lists)
    yunet = "YuNet (default: fetched once)"
    parser.add_argument("--detector", type=Path, metavar="ONNX", help=yunet)
    tones = "make N synthetic faces and sort them by the tone of their skin"
    parser.add_argument("--tones", type=int, default=0, metavar="N", help=tones)
    offsets = "also the NME without each point's median offset, a matter of definition"
    parser.add_argument("--offsets", action="store_true", help=offsets)
    args = parser.parse_args(argv)
    if args.tones < 0:
        parser.error("--tones must not be negative")
    for _, _, split in args.sets:
        if split not in ("train", "test"):
            parser.error(f"--set: {split} is neither train nor test")

    return args


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
    networks = [load_model(path) for path in args.checkpoints]

    print(machine())
    for path, network in zip(args.checkpoints, networks, strict=True):
        print(f"{network.name}: {path}, {network.config['arm']}")

    for text in set_tables(networks, args.sets):
        print(f"\n{text}")

    if args.offsets:
        print(f"\n{offset_table(networks, args.sets)}")

    if args.tones:
        print(f"\n{tone_table(networks, args.tones)}")

    if args.pictures:
        detector = FaceDetector(args.detector or yunet_path())
        print(f"\n{detector_table(networks, detector, args.pictures)}")

    return 0


if __name__ == "__main__":
    sys.exit(main())
