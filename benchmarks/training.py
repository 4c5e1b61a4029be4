"""What a training step and its augmentation cost, beside a straightforward loop's for the same.

    python benchmarks/training.py --data dataset/WFLW256 [--pairs 5] [--parts overhead,speed]

Parts:

    overhead  gathering and warping a batch of 8, beside the whole step
    speed     SepBN's step beside the straightforward loop's: K BatchNorms, PNG decoding and three
              warps a sample in the process, NCHW; fp32 at batch 8, ours in bf16 at batch 32
    augment   an augmented image, in batches of 8 on one thread, beside the straightforward sample
              and its decoding alone

Steps on CUDA are timed by benchmarks/gpu.sh.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from itertools import cycle
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.paired import Run, machine, middle, paired_ratio, take_turns
from benchmarks.sepbn import ManyBatchNorms
from dataset.augment import batch, draw_epoch
from dataset.faces import FaceSet, load_faces
from models import BaselineSepDyBN, VanillaCNN
from training.graph import CapturedStep
from training.processes import Processes
from training.recipe import eager_step
from utils.device import keep_freed_memory
from utils.files import reports_user_errors

PARTS = ("overhead", "speed", "augment")
BATCH, BATCHES = 8, 20  # faces in a batch, batches in a turn of part `augment`


def training_step(
    model: nn.Module, faces: FaceSet, batch_size: int, *, precision: str = "fp32", how: str = ""
) -> Run:
    """A step of the recipe, on the device that the faces lie on; after an epoch's last batch comes
    its first one again.

    Args:
        precision: "fp32" or "bf16".
        how: with "graph" in it as a CUDA graph, with "compiled" in it compiled.
    """
    device, processes = faces.patches.device, Processes()
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    decay: dict[str, Any] = {"momentum": 0.9, "weight_decay": 5e-4}
    rate = torch.zeros((), device=device)
    optimizer = torch.optim.SGD(model.parameters(), rate, fused=True, **decay)
    network = processes.network(model, compiled="compiled" in how, bf16=precision == "bf16")
    step: Any = eager_step(network, optimizer, faces)
    step = CapturedStep(step, model, optimizer) if "graph" in how else step
    draws, batches = draw_epoch(faces, seed=0, epoch=0), cycle(range(len(faces) // batch_size))

    return lambda: step(draws, processes.rows(draws.order, next(batches), batch_size), 1e-6)


def our_step(faces: FaceSet, width: int, batch_size: int, precision: str = "fp32") -> Run:
    """A step of our training with SepBN."""
    model = BaselineSepDyBN(num_landmarks=faces.scheme.num_points, width=width)
    return training_step(model, faces, batch_size, precision=precision)


def augmented_sample(
    path: Path, landmarks: np.ndarray, mirror: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The straightforward pipeline, written from the recipe: decode the PNG, rotate, shear and
    window with one warp each, mirror, scale, transpose.

    Args:
        path: PNG of the 256 patch.
        landmarks: (P, 2) in patch pixels.
        mirror: (P,) mirror permutation.
        random: where the parameters come from.

    Returns:
        (3, 128, 128) float32 image, and (2P,) float32 targets.
    """
    image, points = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB), landmarks

    def transform(matrix: np.ndarray, size: int) -> None:
        nonlocal image, points
        image = cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR)
        points = points @ matrix[:, :2].T + matrix[:, 2]

    if random.random() < 0.5:
        transform(cv2.getRotationMatrix2D((127.5, 127.5), random.uniform(-25, 25), 1.0), 256)
    if random.random() < 0.5:
        a, b = random.uniform(-0.3, 0.3, 2)
        transform(np.array([[1.0, a, 0.0], [b, 1.0, 0.0]]), 256)

    grow = random.uniform(-19.2, 19.2, 2) if random.random() < 0.5 else np.zeros(2)
    scale = 127 / (127 + 2 * grow)
    transform(np.column_stack([np.diag(scale), (grow - 64) * scale]), 128)

    if random.random() < 0.5:
        image = image[:, ::-1]
        points = np.stack([127 - points[mirror, 0], points[mirror, 1]], axis=1)

    pixels = (image.astype(np.float32) - 127.5) / 128

    return np.ascontiguousarray(pixels.transpose(2, 0, 1)), points.astype(np.float32).ravel()


def straightforward_step(faces: FaceSet, width: int, batch_size: int) -> Run:
    """A step of the straightforward loop."""
    model = VanillaCNN(ManyBatchNorms, faces.scheme.num_points, width)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9, weight_decay=5e-4)
    random, mirror = np.random.default_rng(0), np.array(faces.scheme.mirror)
    landmarks = faces.landmarks.numpy()

    def call() -> None:
        chosen = random.integers(0, len(faces), batch_size)
        samples = [augmented_sample(faces.paths[i], landmarks[i], mirror, random) for i in chosen]
        images, targets = (torch.from_numpy(np.stack(part)) for part in zip(*samples, strict=True))
        optimizer.zero_grad()
        loss = F.l1_loss(model(images), targets)
        loss.backward()
        optimizer.step()
        loss.item()

    return call


def report(what: str, first: str, second: str, times: dict[str, np.ndarray]) -> None:
    """All times, and the first over the second."""
    milliseconds = ", ".join(f"{name} {middle(1000 * values)} ms" for name, values in times.items())
    print(f"{what}: {milliseconds}; {first} / {second} {paired_ratio(times[first], times[second])}")


def overhead(faces: FaceSet, width: int, pairs: int) -> None:
    """Gathering and warping, beside the whole step."""
    epoch = draw_epoch(faces, seed=0, epoch=0)
    rows = epoch.order[torch.arange(8) % len(faces)]

    for size, repeats in ((width, 2), (width // 4, 12)):
        runs = {"batch": lambda: batch(faces, epoch, rows), "step": our_step(faces, size, 8)}
        times = take_turns(runs, pairs, repeats=repeats)
        report(f"overhead, width {size}, batch 8", "batch", "step", times)


def step_in_a_process(
    connection: Connection, data: str, width: int, name: str, precision: str, batch_size: int
) -> None:
    """Make one step for every message that comes."""
    faces = load_faces(data, "train")

    if name == "ours":
        keep_freed_memory()  # the straightforward loop has the system's allocator
        step = our_step(faces, width, batch_size, precision)
    else:
        step = straightforward_step(faces, width, batch_size)

    while connection.recv():
        step()
        connection.send(True)


def speed(data: str, width: int, pairs: int, *, precision: str, batch_size: int) -> None:
    """Our step beside the straightforward loop's, each in a process of its own."""
    runs, connections, processes = {}, [], []
    spawn = multiprocessing.get_context("spawn")

    for name in ("straightforward", "ours"):
        here, there = multiprocessing.Pipe()
        arguments = (there, data, width, name, precision, batch_size)
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


def augment(faces: FaceSet, pairs: int) -> None:
    """An augmented image on one thread: ours, the straightforward one, and its decoding."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
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

    runs = {"straightforward": straightforward, "of it decoding": decoding, "ours": ours}
    times = take_turns(runs, pairs)
    times = {name: seconds / len(numbers) for name, seconds in times.items()}
    report("augment, an image", "straightforward", "ours", times)


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
    if "augment" in parts:  # last, for it leaves one thread
        augment(faces, pairs)

    return 0


if __name__ == "__main__":
    sys.exit(main())
