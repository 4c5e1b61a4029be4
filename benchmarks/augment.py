"""Milliseconds an augmented image, on one core, against the straightforward per-sample pipeline.

    python benchmarks/augment.py --data dataset/WFLW256 [--pairs 15]

Ours gathers, warps and scales batches of 8 from patches in memory; the other decodes each sample's
PNG and warps three times, and is also timed without the decoding. The two run in turn; medians, and
the median of the pairs' ratios.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2
import numpy as np
import torch

from benchmarks.straightforward import augmented_sample
from dataset.augment import batch, draw_epoch
from dataset.faces import FaceSet, load_faces
from utils.files import reports_user_errors
from utils.runtime import describe_machine, keep_freed_memory

BATCH = 8
BATCHES = 20  # timed together


def contenders(faces: FaceSet) -> dict[str, Callable[[], None]]:
    """What is timed, by name: each goes over ``BATCHES`` batches of the faces."""
    epoch = draw_epoch(faces, seed=0, epoch=0)
    random, mirror = np.random.default_rng(0), np.array(faces.scheme.mirror)
    landmarks = faces.landmarks.numpy()

    def ours() -> None:
        for start in range(0, BATCHES * BATCH, BATCH):
            batch(faces, epoch, epoch.order[torch.arange(start, start + BATCH) % len(faces)])

    def theirs() -> None:
        for i in range(BATCHES * BATCH):
            i %= len(faces)
            augmented_sample(faces.paths[i], landmarks[i], mirror, random)

    def decoding() -> None:
        for i in range(BATCHES * BATCH):
            cv2.imread(str(faces.paths[i % len(faces)]))

    return {"ours": ours, "straightforward": theirs, "of it decoding": decoding}


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="dataset/WFLW256", help="prepared folder")
    parser.add_argument(
        "--pairs", type=int, default=15, help=f"timed pairs of {BATCHES} batches each (default: 15)"
    )
    arguments = parser.parse_args(argv)
    keep_freed_memory()  # as in training
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    faces = load_faces(arguments.data, "train", limit=512)
    runs = contenders(faces)
    times: dict[str, list[float]] = {name: [] for name in runs}

    for pair in range(arguments.pairs + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            if pair:  # the first round warms up
                times[name].append(1000 * (time.perf_counter() - began) / (BATCHES * BATCH))

    print({**describe_machine(), "faces": len(faces), "batch": BATCH, "pairs": arguments.pairs})

    for name, values in times.items():
        print(
            f"{name:16} {statistics.median(values):.3f} ms an image ({min(values):.3f} to "
            f"{max(values):.3f})"
        )

    ratios = [
        theirs / ours for ours, theirs in zip(times["ours"], times["straightforward"], strict=True)
    ]
    print(
        f"straightforward / ours, median of {len(ratios)} paired ratios: "
        f"{statistics.median(ratios):.1f}"
    )

    return 0


if __name__ == "__main__":
    sys.exit(main())
