"""What a training step costs, against a straightforward loop; and whether killed runs resume bit
for bit.

    python benchmarks/training.py --data dataset/WFLW256 [--pairs 5] [--kills 20] [--parts PARTS]

PARTS are some of overhead,speed,kills,cuda.

overhead  share of a CPU step at batch 8 that is not network, loss or optimizer speed     SepBN
training throughput over the straightforward loop's: K BatchNorms, per-sample three-warp pipeline
with
          PNG decoding in the process, NCHW; fp32 at batch 8, bf16 at batch 32
kills     runs that are killed with SIGKILL at random moments and resumed, compared with one that
was left alone cuda      milliseconds a batch-8 step at full width with and without the captured
graph, the projected time of the
          published schedule, and the share of peak bf16 arithmetic at batch 256; skipped where
          there is no CUDA device

Variants run in turn; ratios are medians over the pairs.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.sepbn import ManyBatchNorms
from benchmarks.straightforward import augmented_sample
from dataset.augment import batch
from dataset.faces import FaceSet, load_faces
from evaluation.cost import model_cost
from models import VanillaCNN
from models.checkpoint import build_model, read
from training.config import TrainConfig
from training.step import TrainingStep
from utils.files import reports_user_errors
from utils.runtime import describe_machine, keep_freed_memory

ROOT = Path(__file__).resolve().parent.parent
SEPBN = {"sets": 3, "groups": 2, "temperature": 30.0}
PARTS = ("overhead", "speed", "kills", "cuda")
PUBLISHED_STEPS = 2000 * 937
PEAK_BF16 = 989e12  # dense bf16 FLOP/s of an H100 or H200 SXM by its data sheet


def our_step(
    faces: FaceSet, *, device: str = "cpu", graph: bool | None = None, **settings
) -> TrainingStep:
    """A SepBN training step, ready to be called."""
    config = TrainConfig(norm="sepbn", **(SEPBN | settings))
    model = build_model(
        {"norm": "sepbn", "num_landmarks": faces.scheme.num_points, "width": config.width, **SEPBN}
    )
    step = TrainingStep(
        model.to(device, memory_format=torch.channels_last), faces, config, graph=graph
    )
    step.start_epoch(0)

    return step


def rewound(step: TrainingStep) -> Callable[[], None]:
    """The step as a function that can be called without end: it starts the epoch over when it is
    through.
    """

    def call() -> None:
        if int(step.position) == step.iterations:
            step.position.zero_()
        step()

    return call


def straightforward_step(faces: FaceSet, *, width: int, batch_size: int) -> Callable[[], None]:
    """One step of the straightforward loop."""
    model = VanillaCNN(ManyBatchNorms, faces.scheme.num_points, width)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9, weight_decay=5e-4)
    draws, mirror, landmarks = (
        np.random.default_rng(0),
        np.array(faces.scheme.mirror),
        faces.landmarks.numpy(),
    )

    def call() -> None:
        chosen = draws.integers(0, len(faces), batch_size)
        samples = [augmented_sample(faces.paths[i], landmarks[i], mirror, draws) for i in chosen]
        images = torch.from_numpy(np.stack([image for image, _ in samples]))
        targets = torch.from_numpy(np.stack([points for _, points in samples]))
        optimizer.zero_grad()
        loss = F.l1_loss(model(images), targets)
        loss.backward()
        optimizer.step()
        loss.item()

    return call


def interleaved(
    runs: dict[str, Callable[[], None]], pairs: int, repeats: int
) -> dict[str, list[float]]:
    """Seconds a call of every variant, pair by pair, after one round of warm-up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for pair in range(pairs + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            for _ in range(repeats):
                run()

            if pair:
                times[name].append((time.perf_counter() - began) / repeats)

    return times


def report(label: str, times: dict[str, list[float]]) -> None:
    """Medians of both variants and the median of first over second."""
    (first, one), (second, other) = times.items()
    ratio = statistics.median(a / b for a, b in zip(one, other, strict=True))
    print(
        f"{label}: {first} {1000 * statistics.median(one):.1f} ms, {second} "
        f"{1000 * statistics.median(other):.1f} ms, "
        f"ratio {ratio:.3f} (median of {len(one)} pairs)",
        flush=True,
    )


def overhead(faces: FaceSet, pairs: int) -> None:
    """Time of gathering, warping and bookkeeping as a share of the whole step."""
    for width, repeats in ((64, 2), (16, 12)):
        step = our_step(faces, width=width)

        def outside(step: TrainingStep = step) -> None:
            rows = step.epoch.order[
                torch.zeros(1, dtype=torch.int64) * step.config.batch_size + step.lane
            ]
            batch(step.faces, step.epoch, rows)
            step.rate.copy_(step.rates[torch.zeros(1, dtype=torch.int64)][0])
            torch.where(torch.isfinite(step.loss_sum), step.first_bad, step.position)

        times = interleaved({"outside": outside, "step": rewound(step)}, pairs, repeats)
        report(f"overhead, width {width}, batch 8", times)


def speed_worker(
    connection: Connection, data: str, ours: bool, bf16: bool, batch_size: int
) -> None:
    """Run one step for every message that comes, and answer with its seconds."""
    if ours:  # as train() does; the straightforward loop has torch's and the system's defaults
        keep_freed_memory()

    faces = load_faces(data, "train")

    if ours:
        run = rewound(our_step(faces, batch_size=batch_size, precision="bf16" if bf16 else "fp32"))
    else:
        run = straightforward_step(faces, width=64, batch_size=batch_size)

    while connection.recv():
        began = time.perf_counter()
        run()
        connection.send(time.perf_counter() - began)


def speed(data: str, pairs: int) -> None:
    """Throughput over the straightforward loop's, each in a process of its own."""
    for bf16, batch_size in ((False, 8), (True, 32)):
        workers, runs = [], {}

        for name in ("straightforward", "ours"):
            here, there = multiprocessing.Pipe()
            arguments = (there, data, name == "ours", bf16, batch_size)
            workers.append(
                multiprocessing.get_context("spawn").Process(target=speed_worker, args=arguments)
            )
            workers[-1].start()

            def run(connection: Connection = here) -> float:
                connection.send(True)
                return connection.recv()

            runs[name] = (run, here)

        times: dict[str, list[float]] = {name: [] for name in runs}

        for pair in range(pairs + 2):
            for name, (run, _) in runs.items():
                seconds = run()
                if pair >= 2:  # the first rounds warm up
                    times[name].append(seconds)

        for (_, connection), worker in zip(runs.values(), workers, strict=True):
            connection.send(False)
            worker.join()

        report(f"speed, ours in {'bf16' if bf16 else 'fp32'}, batch {batch_size}", times)


class Killing:
    """Runs of one short training in a folder of their own."""

    SETTINGS = "--width 4 --epochs 12 --lr 0.02 --limit 64 --save-every 0.002"

    def __init__(self, data: str, folder: str) -> None:
        self.data, self.folder = str(Path(data).resolve()), Path(folder)
        self.quiet = {
            "cwd": folder,
            "env": os.environ | {"OMP_NUM_THREADS": "1"},
            "stdout": subprocess.DEVNULL,
        }

    def command(self, run: str) -> list[str]:
        """The command that starts a run, or goes on with it."""
        script = str(ROOT / "trainBaselineSepDyBN.py")
        where = ["--data", self.data, "--run", run, "--resume"]

        return [sys.executable, script, *self.SETTINGS.split(), *where]

    def finish(self, run: str) -> None:
        """Let a run train to its end."""
        subprocess.run(self.command(run), check=True, **self.quiet)

    def kill(self, run: str, seconds: float) -> bool:
        """Kill a new run after some seconds -> whether it was still at work."""
        process = subprocess.Popen(self.command(run), **self.quiet)
        time.sleep(seconds)
        at_work = process.poll() is None
        process.kill()
        process.wait()

        return at_work

    def ending(self, run: str) -> tuple[dict[str, torch.Tensor], list[list[str]]]:
        """Weights and log of a finished run, the log without its two columns of times."""
        path = self.folder / "checkpoints" / run
        with (path / "log.csv").open() as file:
            rows = [row[:-2] for row in csv.reader(file)]

        return read(path / "final.pt")["model"], rows


def kills(data: str, count: int) -> None:
    """Kill runs at random moments, resume them, compare weights and log with those of an
    undisturbed run.
    """
    moments = random.Random(0)
    equal, landed = 0, 0

    with tempfile.TemporaryDirectory() as folder:
        killing = Killing(data, folder)
        began = time.monotonic()
        killing.finish("alone")
        whole = time.monotonic() - began
        weights, rows = killing.ending("alone")

        for i in range(count):
            landed += killing.kill(f"killed{i}", moments.uniform(0.3, 0.95) * whole)
            killing.finish(f"killed{i}")
            other, other_rows = killing.ending(f"killed{i}")
            same_weights = all(torch.equal(weights[name], other[name]) for name in weights)
            equal += rows == other_rows and same_weights

    print(
        f"kills: {count} runs, {landed} killed while they ran, {equal} ended bit-equal, no "
        "unreadable file",
        flush=True,
    )


def cuda(faces: FaceSet, pairs: int) -> None:
    """Step times, projected schedule and share of peak on a CUDA device."""
    if not torch.cuda.is_available():
        print("cuda: not measured, no CUDA device")
        return

    torch.backends.cudnn.deterministic = True

    def synchronised(step: TrainingStep, repeats: int) -> Callable[[], None]:
        def call() -> None:
            for i in range(repeats):
                if i % step.iterations == 0:
                    step.position.zero_()
                step()
            torch.cuda.synchronize()

        return call

    for precision in ("fp32", "bf16"):
        calls = {
            name: synchronised(
                our_step(faces, device="cuda", graph=graph, precision=precision), 100
            )
            for name, graph in (("eager", False), ("graph", True))
        }

        times = interleaved(calls, pairs, 1)
        times = {name: [value / 100 for value in values] for name, values in times.items()}
        report(f"cuda, {precision}, batch 8", times)
        minutes = statistics.median(times["graph"]) * PUBLISHED_STEPS / 60
        print(
            f"cuda, {precision}: the published schedule of {PUBLISHED_STEPS:,} steps would take "
            f"{minutes:.0f} min"
        )

    step = our_step(faces, device="cuda", batch_size=256, precision="bf16")
    seconds = (
        statistics.median(interleaved({"step": synchronised(step, 20)}, pairs, 1)["step"]) / 20
    )
    # forward, and twice as much backward
    flops = 3 * 2 * model_cost(step.model, step.device)["macs"] * 256
    print(
        f"cuda, bf16, batch 256: {1000 * seconds:.2f} ms a step, "
        f"{flops / seconds / PEAK_BF16:.1%} of peak"
    )


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="dataset/WFLW256", help="prepared folder")
    parser.add_argument("--pairs", type=int, default=5, help="pairs of measurements (default: 5)")
    parser.add_argument("--kills", type=int, default=20, help="runs to kill (default: 20)")
    parser.add_argument(
        "--parts", default=",".join(PARTS), help="what to measure, comma separated (default: all)"
    )
    arguments = parser.parse_args(argv)
    parts = arguments.parts.split(",")
    if not set(parts) <= set(PARTS):
        parser.error(f"--parts: choose from {', '.join(PARTS)}")

    keep_freed_memory()
    faces = load_faces(arguments.data, "train")
    print({**describe_machine(), "faces": len(faces)}, flush=True)
    if "overhead" in parts:
        overhead(faces, arguments.pairs)
    if "speed" in parts:
        speed(arguments.data, arguments.pairs)
    if "kills" in parts:
        kills(arguments.data, arguments.kills)
    if "cuda" in parts:
        cuda(faces, arguments.pairs)

    return 0


if __name__ == "__main__":
    sys.exit(main())
