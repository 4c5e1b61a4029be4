"""What networks that are given away can do: NME on several sets, by attribute and by skin tone.

    python research/released.py checkpoints/sepbn16.pt checkpoints/bn16.pt \\
        --set "131 WFLW" PREPARED test --set "332 WFLW" PREPARED train --tones 2000

Intervals are 95 % percentile bootstraps over faces; differences of two networks are paired: both
see the same faces. Networks with 98 points are tried on sets with 68 on the 60 points that both
schemes have. What a detector's box costs is said by research/pictures.py.
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
from dataset.annotations import ATTRIBUTES
from dataset.crop import face_patch
from dataset.faces import FaceSet, load_faces
from dataset.landmarks import COMMON_60, WFLW_98, LandmarkScheme, points_within, scheme_for
from evaluation.evaluate import bootstrap_means, paired_difference, predict_landmarks
from evaluation.tables import MISSING, markdown_table
from models.checkpoint import LoadedModel, load_model
from synthetic.face import draw_face
from utils.files import UserError, reports_user_errors
from utils.metrics import nme
from utils.progress import progress

# Individual typology angle of the skin, degrees: lower ends of the usual classes, light to dark.
TONES = {"very light": 55, "light": 41, "intermediate": 28, "tan": 10, "brown": -30, "dark": -90}
TONE_SEED = 20_261_124  # of faces made for nothing else


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
    for half in (0, 1):
        rest[half::2] = offsets[half::2] - np.median(offsets[1 - half :: 2], axis=0)

    return np.linalg.norm(rest, axis=2).mean(axis=1), np.median(offsets, axis=0)


def cell(mean: float, low: float, high: float) -> str:
    return f"{mean:.2f} ({low:.2f} … {high:.2f})".replace("-", "−")


def cells(errors: np.ndarray, *pairs: tuple[int, int]) -> list[str]:
    """Means of errors (M, N) with intervals, then the differences of pairs: second − first."""
    means = bootstrap_means(errors)
    bounds = np.percentile(means, (2.5, 97.5), axis=1)  # (2, M)
    found = [cell(*values) for values in zip(errors.mean(axis=1), *bounds, strict=True)]

    return found + [
        cell(*paired_difference(means[list(pair)], errors[list(pair)]).values()) for pair in pairs
    ]


class Table:
    """Rows of several networks' errors, and of the difference of the first two."""

    def __init__(self, what: str, networks: list[LoadedModel]) -> None:
        names = [network.name for network in networks]
        self.pairs = [(1, 0)] if len(names) > 1 else []
        self.heads = [what, "n", *names, *(f"{names[j]} − {names[i]}" for i, j in self.pairs)]
        self.rows: list[list[str]] = []

    def add(self, name: str, errors: np.ndarray) -> None:
        """A row for errors (M, N)."""
        missing = [MISSING] * (len(self.heads) - 2)
        found = cells(errors, *self.pairs) if errors.shape[1] else missing
        self.rows.append([name, str(errors.shape[1]), *found])

    def __str__(self) -> str:
        return markdown_table(self.heads, self.rows, aligned=False)


def try_all(
    networks: list[LoadedModel], faces: FaceSet
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Of M networks: their landmarks (N, P, 2), the true ones, crop px, and NME in %, (M, N)."""
    truth = faces.crop_landmarks().numpy()
    answers = [predict_landmarks(network.model, faces, device="cpu") for network in networks]

    return answers, truth, np.stack([percent_errors(answer, truth) for answer in answers])


def set_tables(
    networks: list[LoadedModel], sets: Sequence[Sequence[str]], *, offsets: bool
) -> list[str]:
    """NME on every set; by attribute where a set has any; and without the points' median offsets,
    with the largest of these.
    """
    whole, parts = Table("NME in %", networks), Table("by attribute", networks)
    without = []

    for name, folder, split in sets:
        faces = load_faces(folder, split)
        answers, truth, errors = try_all(networks, faces)
        whole.add(name, errors)
        if faces.attributes.any():
            for attribute, has_it in zip(ATTRIBUTES, faces.attributes.T, strict=True):
                parts.add(f"{name}, {attribute}", errors[:, has_it])

        for network, answer, before in zip(networks, answers, errors, strict=True):
            rest, moved = without_offsets(answer, truth)
            numbers = before.mean(), rest.mean(), np.linalg.norm(moved, axis=1).max()
            without.append([name, str(len(faces)), network.name, *(f"{x:.2f}" for x in numbers)])

    tables = [str(table) for table in (whole, parts) if table.rows]
    if offsets:
        heads = ("set", "n", "network", "NME, %", "without median offsets", "largest offset, %")
        tables.append(markdown_table(heads, without, aligned=False))

    return tables


def typology_angle(bgr: np.ndarray) -> np.ndarray:
    """Individual typology angle of skin colours (N, 3), BGR 0 to 255, in degrees: (N,)."""
    lab = cv2.cvtColor((bgr[None] / 255).astype(np.float32), cv2.COLOR_BGR2Lab)[0]
    return np.degrees(np.arctan2(lab[:, 0] - 50, lab[:, 2]))


def toned_faces(count: int) -> tuple[FaceSet, np.ndarray]:
    """New synthetic faces, nearly frontal, and the typology angle of their bare skin (N,).

    In profile the eye corners nearly meet, and a few such faces would decide the mean of a tone.
    """
    rows = []

    for index in progress(range(count), desc="synthetic faces", unit="face"):
        face = draw_face(TONE_SEED, "test", index, frozenset({"pose"}))
        patch, frame = face_patch(face.picture, face.box)
        patch = cv2.cvtColor(patch, cv2.COLOR_BGR2RGB)
        rows.append((patch, frame.to_patch(face.landmarks), face.skin, face.attributes))

    patches, landmarks, skins, attributes = map(np.array, zip(*rows, strict=True))
    faces = FaceSet(
        patches=torch.from_numpy(patches),
        landmarks=torch.from_numpy(landmarks.astype(np.float32)),
        scheme=WFLW_98,
        attributes=attributes,
        paths=[],
    )

    return faces, typology_angle(skins)


def tone_table(networks: list[LoadedModel], count: int) -> str:
    """NME by the tone of the synthetic faces' skin."""
    faces, angles = toned_faces(count)
    errors = try_all(networks, faces)[2]
    table = Table("nearly frontal synthetic faces, by skin (typology angle)", networks)
    upper = np.inf

    for name, lower in TONES.items():
        bounds = (f"> {lower}°" if lower > -90 else f"≤ {upper}°").replace("-", "−")
        table.add(f"{name} ({bounds})", errors[:, (angles > lower) & (angles <= upper)])
        upper = lower

    return str(table)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="NME of networks on several sets, by attribute and by skin tone."
    )
    add = parser.add_argument
    add("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT")
    sets: dict[str, Any] = {"nargs": 3, "action": "append", "default": []}
    parts = "a prepared folder's train or test faces; may be repeated"
    add("--set", dest="sets", **sets, metavar=("NAME", "PREPARED", "SPLIT"), help=parts)
    tones = "make N synthetic faces and sort them by the tone of their skin"
    add("--tones", type=int, default=0, metavar="N", help=tones)
    offsets = "also the NME without each point's median offset, a matter of definition"
    add("--offsets", action="store_true", help=offsets)
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
    networks = [load_model(path) for path in args.checkpoints]

    print(machine())
    for path, network in zip(args.checkpoints, networks, strict=True):
        print(f"{network.name}: {path}, {network.config['arm']}")

    for text in set_tables(networks, args.sets, offsets=args.offsets):
        print(f"\n{text}")
    if args.tones:
        print(f"\n{tone_table(networks, args.tones)}")

    return 0


if __name__ == "__main__":
    sys.exit(main())
