"""What a training step costs, and what a straightforward loop takes for the same.

    python benchmarks/training.py --data dataset/WFLW256 [--pairs 5] [--parts overhead,speed,cuda]

Parts:

    overhead  gathering and warping a batch of 8, beside the whole step on the CPU
    speed     SepBN's step beside the straightforward loop's: K BatchNorms, three warps a sample,
              PNG decoding in the process, NCHW; fp32 at batch 8, ours in bf16 at batch 32
    cuda      a batch-8 step at full width with and without the captured graph, the time of the
              published schedule at that rate, and the share of peak bf16 arithmetic at batch 256;
              left out where there is no CUDA device
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.paired import Run, machine, middle, paired_ratio, synchronised, take_turns
from benchmarks.sepbn import ManyBatchNorms
from benchmarks.straightforward import augmented_sample
from dataset.augment import batch, draw_epoch
from dataset.faces import FaceSet, load_faces
from evaluation.cost import model_cost
from models import BaselineSepDyBN, VanillaCNN
from training.graph import CapturedStep
from training.processes import Processes
from training.recipe import eager_step
from utils.device import keep_freed_memory
from utils.files import reports_user_errors

PARTS = ("overhead", "speed", "cuda")
PUBLISHED_STEPS = 2000 * 937
PEAK_BF16 = 989e12  # dense bf16 FLOP/s of an H100 or H200 SXM by its data sheet


def our_step(
    faces: FaceSet,
    width: int,
    batch_size: int,
    *,
    device: str = "cpu",
    graph: bool = False,
    precision: str = "fp32",
) -> Run:
    """A step of our training with SepBN; after an epoch's last one comes its first one again."""
    faces = faces.to(device)
    model = BaselineSepDyBN(num_landmarks=faces.scheme.num_points, width=width)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    rate = torch.zeros((), device=device)
    settings: dict[str, Any] = {"momentum": 0.9, "weight_decay": 5e-4, "fused": True}
    optimizer = torch.optim.SGD(model.parameters(), rate, **settings)
    step: Any = eager_step(Processes().network(model, bf16=precision == "bf16"), optimizer, faces)
    step = CapturedStep(step, model, optimizer) if graph else step
    draws, batches = draw_epoch(faces, seed=0, epoch=0), count(0)

    def call() -> None:
        i = next(batches) % (len(faces) // batch_size)
        step(draws, Processes().rows(draws.order, i, batch_size), 1e-6)

    return call


def straightforward_step(faces: FaceSet, width: int, batch_size: int) -> Run:
    """A step of the straightforward loop."""
    model = VanillaCNN(ManyBatchNorms, faces.scheme.num_points, width)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9, weight_decay=5e-4)
    random, mirror = np.random.default_rng(0), np.array(faces.scheme.mirror)
    landmarks = faces.landmarks.numpy()

    def call() -> None:
        chosen = random.integers(0, len(faces), batch_size)
        samples = [augmented_sample(faces.paths[i], landmarks[i], mirror, random) for i in chosen]
        images = torch.from_numpy(np.stack([image for image, _ in samples]))
        targets = torch.from_numpy(np.stack([points for _, points in samples]))
        optimizer.zero_grad()
        loss = F.l1_loss(model(images), targets)
        loss.backward()
        optimizer.step()
        loss.item()

    return call


def report(what: str, first: str, second: str, times: dict[str, np.ndarray]) -> None:
    """Both times, and the first over the second."""
    milliseconds = ", ".join(f"{name} {middle(1000 * values)} ms" for name, values in times.items())
    print(f"{what}: {milliseconds}; {first} / {second} {paired_ratio(times[first], times[second])}")


def overhead(faces: FaceSet, width: int, pairs: int) -> None:
    """Gathering and warping, beside the whole step."""
    epoch = draw_epoch(faces, seed=0, epoch=0)
    rows = epoch.order[torch.arange(8) % len(faces)]

    for size, repeats in ((width, 2), (width // 4, 12)):
        runs = {
            "batch": lambda: batch(faces, epoch, rows),
            "step": our_step(faces, size, 8),
        }
        times = take_turns(runs, pairs, repeats=repeats)
        report(f"overhead, width {size}, batch 8", "batch", "step", times)


def step_in_a_process(
    connection: Connection, data: str, width: int, ours: bool, precision: str, batch_size: int
) -> None:
    """Make one step for every message that comes."""
    faces = load_faces(data, "train")

    if ours:  # the straightforward loop has the system's allocator
        keep_freed_memory()
        step = our_step(faces, width, batch_size, precision=precision)
    else:
        step = straightforward_step(faces, width, batch_size)

    while connection.recv():
        connection.send(step())


def speed(data: str, width: int, pairs: int, *, precision: str, batch_size: int) -> None:
    """Our step beside the straightforward loop's, each in a process of its own."""
    runs, connections, processes = {}, [], []
    spawn = multiprocessing.get_context("spawn")

    for name in ("straightforward", "ours"):
        here, there = multiprocessing.Pipe()
        arguments = (there, data, width, name == "ours", precision, batch_size)
        processes.append(spawn.Process(target=step_in_a_process, args=arguments))
        processes[-1].start()
        there.close()  # so that a process that fails is not waited for
        connections.append(here)
        runs[name] = lambda here=here: (here.send(True), here.recv())

    times = take_turns(runs, pairs, warm_up=2)
    for connection, process in zip(connections, processes, strict=True):
        connection.send(False)
        process.join()

    what = f"speed, ours in {precision}, width {width}, batch {batch_size}"
    report(what, "straightforward", "ours", times)


def cuda(faces: FaceSet, width: int, pairs: int) -> None:
    """Steps with and without the graph, the published schedule, the share of peak."""
    device = torch.device("cuda")
    torch.backends.cudnn.deterministic = True

    for precision in ("fp32", "bf16"):
        runs = {
            name: synchronised(
                our_step(
                    faces, width, 8, device="cuda", graph=name == "graph", precision=precision
                ),
                device,
            )
            for name in ("eager", "graph")
        }
        times = take_turns(runs, pairs, repeats=100)
        report(f"cuda, {precision}, batch 8", "eager", "graph", times)
        minutes = np.median(times["graph"]) * PUBLISHED_STEPS / 60
        print(f"cuda, {precision}: the {PUBLISHED_STEPS:,} published steps take {minutes:.0f} min")

    step = our_step(faces, width, 256, device="cuda", graph=True, precision="bf16")
    seconds = np.median(take_turns({"step": synchronised(step, device)}, pairs, repeats=20)["step"])
    network = BaselineSepDyBN(num_landmarks=faces.scheme.num_points, width=width)
    flops = (
        3 * 2 * 256 * model_cost(network, torch.device("cpu"))["macs"]
    )  # backward: twice forward
    share = flops / seconds / PEAK_BF16
    print(f"cuda, bf16, batch 256: {1000 * seconds:.2f} ms a step, {share:.1%} of peak")


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="dataset/WFLW256", help="prepared folder")
    parser.add_argument("--pairs", type=int, default=5, help="pairs of measurements (default: 5)")
    parser.add_argument("--width", type=int, default=64, help="of the network (default: 64)")
    parser.add_argument("--parts", default=",".join(PARTS), help="what to measure (default: all)")
    arguments = parser.parse_args(argv)
    parts, width, pairs = arguments.parts.split(","), arguments.width, arguments.pairs
    if not set(parts) <= set(PARTS):
        parser.error(f"--parts: choose from {', '.join(PARTS)}")

    keep_freed_memory()
    faces = load_faces(arguments.data, "train")
    print(f"{machine()}; {len(faces)} faces", flush=True)

    if "overhead" in parts:
        overhead(faces, width, pairs)
    if "speed" in parts:
        speed(arguments.data, width, pairs, precision="fp32", batch_size=8)
        speed(arguments.data, width, pairs, precision="bf16", batch_size=min(32, len(faces)))
    if "cuda" in parts and torch.cuda.is_available():
        cuda(faces, width, pairs)

    return 0


if __name__ == "__main__":
    sys.exit(main())
