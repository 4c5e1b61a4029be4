"""Milliseconds an augmented image, on one core, against the straightforward per-sample pipeline.

    python benchmarks/augment.py --data dataset/WFLW256 [--pairs 15]

Ours gathers, warps and scales batches of 8 from patches in memory; the other decodes each sample's
PNG and warps three times, and is also timed without the decoding.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2
import numpy as np
import torch

from benchmarks.paired import Run, machine, middle, paired_ratio, take_turns
from benchmarks.straightforward import augmented_sample
from dataset.augment import batch, draw_epoch
from dataset.faces import FaceSet, load_faces
from utils.device import keep_freed_memory
from utils.files import reports_user_errors

BATCH, BATCHES = 8, 20  # faces in a batch, batches in a turn


def contenders(faces: FaceSet) -> dict[str, Run]:
    """What is timed, by name: each goes over ``BATCHES`` batches of the faces."""
    epoch = draw_epoch(faces, seed=0, epoch=0)
    random, mirror = np.random.default_rng(0), np.array(faces.scheme.mirror)
    landmarks = faces.landmarks.numpy()
    numbers = torch.arange(BATCHES * BATCH) % len(faces)

    def ours() -> None:
        for rows in numbers.split(BATCH):
            batch(faces, epoch, epoch.order[rows])

    def straightforward() -> None:
        for i in numbers.tolist():
            augmented_sample(faces.paths[i], landmarks[i], mirror, random)

    def decoding() -> None:
        for i in numbers.tolist():
            cv2.imread(str(faces.paths[i]))

    return {"ours": ours, "straightforward": straightforward, "of it decoding": decoding}


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="dataset/WFLW256", help="prepared folder")
    turns = f"timed pairs of {BATCHES} batches each (default: %(default)s)"
    parser.add_argument("--pairs", type=int, default=15, help=turns)
    arguments = parser.parse_args(argv)

    keep_freed_memory()  # as in training
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    faces = load_faces(arguments.data, "train", limit=512)
    times = take_turns(contenders(faces), arguments.pairs)

    print(f"{machine()}; {len(faces)} faces, batch {BATCH}")
    for name, seconds in times.items():
        print(f"{name:16} {middle(1000 * seconds / (BATCHES * BATCH), 3)} ms an image")
    print(f"straightforward / ours: {paired_ratio(times['straightforward'], times['ours'])}")

    return 0


if __name__ == "__main__":
    sys.exit(main())
