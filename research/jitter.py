"""How much landmarks tremble in a video in which nothing moves but the sensor's noise.

    python research/jitter.py --checkpoint FILE

Synthetic faces, 60 frames each, 25 a second, Gaussian noise in every frame. The standard deviation
of every coordinate over the last 50 frames, averaged over points, in px, is measured without and
with smoothing, for a box that stands still and for one that goes with the last landmarks.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks.paired import machine
from prediction.predictor import LandmarkPredictor
from prediction.smoothing import LandmarkSmoother
from prediction.tracking import FaceTracker
from synthetic.face import draw_face
from utils.files import reports_user_errors
from utils.progress import progress

FRAMES, SETTLED, RATE = 60, 10, 25.0
SEED = 20_261_125  # of faces made for nothing else


def measure(
    predictor: LandmarkPredictor, number: int, sigma: float, *, carried: bool
) -> tuple[float, float, int]:
    """One video's jitter as predicted and smoothed, and its face's side, px.

    Args:
        number: of the synthetic face, and of its noise.
        sigma: of the noise, grey levels.
        carried: the box goes with the last landmarks, instead of standing still.
    """
    face, random = draw_face(SEED, "test", number), np.random.default_rng(number)
    tracker = FaceTracker(lambda image: ([list(face.box)], None, [0.0]), FRAMES if carried else 1)
    smoother, landmarks, smoothed = LandmarkSmoother(), [], []

    for i in range(FRAMES):
        noise = random.normal(0, sigma, face.picture.shape)
        frame = np.clip(np.rint(face.picture + noise), 0, 255).astype(np.uint8)
        boxes = tracker.boxes(frame)[0]
        landmarks.append(predictor(frame, boxes))
        smoothed.append(smoother([0], boxes, landmarks[-1], i / RATE))
        tracker.update(landmarks[-1])

    return jitter(landmarks), jitter(smoothed), face.box[2] - face.box[0] + 1


def jitter(landmarks: list[np.ndarray]) -> float:
    """Mean standard deviation over time of a video's coordinates, px, the filter having settled."""
    return float(np.stack(landmarks)[SETTLED:].std(axis=0).mean())


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="How much landmarks tremble with sensor noise.")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE")
    sigma = "of the noise, grey levels (default: 2 5 10)"
    parser.add_argument("--sigma", type=float, nargs="+", default=[2.0, 5.0, 10.0], help=sigma)
    parser.add_argument("--faces", type=int, default=10, metavar="N", help="(default: %(default)s)")
    args = parser.parse_args(argv)

    predictor = LandmarkPredictor(args.checkpoint, device="cpu")
    print(machine())
    print(f"{args.checkpoint}: {predictor.config['arm']}")
    print(f"n = {args.faces} synthetic faces, {FRAMES} frames each; mean std of points, px")
    print("\n| noise | box | as predicted | smoothed | face's side, px |\n|---|---|---|---|---|")

    for sigma in args.sigma:
        for carried in (False, True):
            desc = f"sigma {sigma:g}"
            numbers = progress(range(args.faces), desc=desc, unit="video")
            rows = [measure(predictor, number, sigma, carried=carried) for number in numbers]
            before, after, side = np.mean(rows, axis=0)
            box = "carried" if carried else "still"
            print(f"| {sigma:g} | {box} | {before:.3f} | {after:.3f} | {side:.0f} |")

    return 0


if __name__ == "__main__":
    sys.exit(main())
