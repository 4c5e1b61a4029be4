"""The parts of benchmarks/gpu.sh, which says what they are, when, and what they leave behind."""

import argparse
import csv
import hashlib
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch import nn

from benchmarks.paired import machine, synchronised, take_turns
from benchmarks.sepbn import ManyBatchNorms
from benchmarks.training import training_step
from dataset.faces import FaceSet, load_faces
from models import SepBatchNorm2d, VanillaCNN
from models.checkpoint import read, save
from research.pack import pack
from utils.device import available_cores
from utils.files import UserError, reports_user_errors

BEGAN, ROOT = time.monotonic(), Path(__file__).resolve().parent.parent
PIECE = 15 * 2**20  # bytes of a file that is left behind
START = 30  # seconds of a training before its first and after its last step
TUNED_RATE, HIGHEST_RATE = 3e-2 / 16, 0.25  # learning rate a face of the batch, and its cap
TWINS = {
    "sepbn": ("trainBaselineSepDyBN.py", "--groups", "1", "--temperature", "5"),
    "bn": ("trainBaseline.py",),
}
COLUMNS = "how precision batch width norm ms over_batchnorm peak_mib hours_published".split()


class Sizes(NamedTuple):
    """What --quick makes small; of the table and of the twins, the width and the batches."""

    device: str
    minutes: float
    ways: tuple[str, ...]
    table: tuple[int, tuple[int, ...]]
    twins: tuple[int, tuple[int, ...]]
    most_faces: int  # 120,000 are 24 GB as patches
    most_epochs: int


WAYS = ("graph", "eager", "compiled graph")
FULL = Sizes("cuda", 9, WAYS, (64, (32, 8, 256)), (32, (64, 128, 256)), 120_000, 10_000)
QUICK = Sizes("cpu", 3, WAYS[1:2], (4, (4,)), (4, (4, 8)), 30, 3)


def say(text: str) -> None:
    print(f"[{time.monotonic() - BEGAN:5.1f} s] {text}", flush=True)


def make_faces(folder: Path, count: int, workers: int) -> tuple[Path, float]:
    """Render and prepare faces -> the prepared folder, and the seconds that it took."""
    began = time.monotonic()
    pictures, prepared = folder / f"pictures{count}", folder / f"prepared{count}"
    numbers = f"--train {count} --test {min(1 + count // 20, 500)} --seed 9 --workers {workers}"
    rendering = [ROOT / "synthetic/createSynthetic.py", "--out", pictures, *numbers.split()]
    preparing = [ROOT / "dataset/createWFLW256.py", "--wflw", pictures, "--out", prepared]

    for command in (rendering, preparing):
        subprocess.run([sys.executable, *command], check=True)
        say(f"{Path(command[0]).name}, {count} faces: {time.monotonic() - began:.1f} s so far")

    load_faces(prepared, "train")  # decodes the patches into the file that trainings map

    return prepared, time.monotonic() - began


class ReleasedWay(ManyBatchNorms):
    """K BatchNorms, and their attention copied to the host in every pass, as the released code."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.attention.register_forward_hook(lambda module, inputs, output: self.copy(output))

    def copy(self, attention: torch.Tensor) -> None:
        attention.detach().cpu()


NORMS: dict[str, Callable[[int], nn.Module] | None] = {
    "BatchNorm": nn.BatchNorm2d,
    "SepBN": partial(SepBatchNorm2d, num_sets=3, groups=1, temperature=5.0),
    "none": None,
    "released way": ReleasedWay,
}
TIMED = {"compiled graph": 2, "graph": 3, "eager": 4}  # norms; the released way waits for the host


def measure(faces: FaceSet, how: str, precision: str, batch: int, width: int) -> list[tuple]:
    """Rows of the table: medians, and medians of ratios to BatchNorm, round by round."""
    device, cuda = faces.patches.device, faces.patches.is_cuda
    steps, peaks = {}, {}

    for norm in list(NORMS)[: TIMED[how]]:
        before = torch.cuda.memory_allocated() if cuda else 0
        if cuda:
            torch.cuda.reset_peak_memory_stats()

        model = VanillaCNN(NORMS[norm], faces.scheme.num_points, width)
        steps[norm] = training_step(model, faces, batch, precision=precision, how=how)
        once = take_turns({norm: synchronised(steps[norm], device)}, 3)[norm].min()
        peaks[norm] = str((torch.cuda.max_memory_allocated() - before) // 2**20) if cuda else ""

    calls = max(1, int(0.06 / once))
    times = take_turns({norm: synchronised(step, device, calls) for norm, step in steps.items()}, 5)
    rows = []

    for norm, seconds in times.items():
        ms = 1000 * np.median(seconds) / calls
        ratio = np.median(seconds / times["BatchNorm"])
        hours = 2000 * (7500 // batch) * ms / 3.6e6
        found = f"{ms:.4g}", f"{ratio:.3f}", peaks[norm], f"{hours:.2f}"
        rows.append((how, precision, batch, width, norm, *found))

    return rows


def write_table(data: Path, sizes: Sizes, path: Path) -> None:
    """Time group after group: first what the choice of a batch needs, last what is compiled."""
    torch.backends.cudnn.deterministic = True  # as training has it
    faces = load_faces(data, "train", limit=256).to(sizes.device)
    groups = [
        *product(sizes.ways[:2], ("bf16",), sizes.twins[1], sizes.twins[:1]),
        *product(sizes.ways, ("bf16", "fp32"), sizes.table[1], sizes.table[:1]),
    ]

    with path.open("w", buffering=1) as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)

        for group in groups:
            try:
                rows = measure(faces, *group)
            except Exception as error:  # what was never run may fail; the rest is wanted still
                print(f"{group}: {type(error).__name__}: {str(error)[:500]}", flush=True)
                continue

            table.writerows(rows)
            for row in rows:
                print(*row, sep=" | ", flush=True)


def choose(table: Path, width: int, faces: int) -> tuple[str, int, float]:
    """Graph or eager steps, the smallest batch that has 0.8 of the best throughput, and the seconds
    of an epoch.
    """
    with table.open() as file:
        rows = [row for row in csv.DictReader(file) if int(row["width"]) == width]

    how = rows[0]["how"]  # graph, unless it failed
    ms = {int(r["batch"]): float(r["ms"]) for r in rows if (r["how"], r["norm"]) == (how, "SepBN")}
    best = max(batch / time for batch, time in ms.items())
    batch = min(batch for batch, time in ms.items() if batch / time >= 0.8 * best)

    return how, batch, faces // batch * ms[batch] / 1000 + 1.5e-5 * faces  # steps, an epoch's draws


def train(name: str, options: str, work: Path, until: float) -> list[float]:
    """Train one of the twins until it is done or its time is over, and pack what there is ->
    seconds of its epochs.
    """
    script, *own = TWINS[name]
    run, out = work / "checkpoints" / name, Path(os.environ["OUT"])
    command = [sys.executable, str(ROOT / script), "--run", name, *own, *options.split()]
    say(" ".join(command[1:]))
    process = subprocess.Popen(command, cwd=work)

    try:
        process.wait(timeout=max(1, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.terminate()  # it saves and leaves
        process.wait()

    for checkpoint in [*run.glob("final.pt"), *run.glob("last.pt")][:1]:
        save(run / "packed", pack(read(checkpoint), name))
        data = (run / "packed").read_bytes()
        for start in range(0, len(data), PIECE):
            (out / f"{name}.pt.{start // PIECE}").write_bytes(data[start : start + PIECE])

        digest = hashlib.sha256(data).hexdigest()
        say(f"{checkpoint.name}: cat {name}.pt.* > {name}.pt ({len(data)} bytes, sha256 {digest})")

    shutil.copy(run / "log.csv", out / f"{name}.csv")
    with (run / "log.csv").open() as file:
        return [float(row["seconds"]) for row in csv.DictReader(file)]


def train_twins(data: Path, faces: int, sizes: Sizes, work: Path, end: float) -> None:
    """SepBN and BatchNorm, each for half of the time that is left, with the same settings."""
    width, epochs = sizes.twins[0], sizes.most_epochs
    table = Path(os.environ["OUT"]) / "table.csv"
    how, batch, epoch_seconds = choose(table, width, faces)

    for done, name in enumerate(TWINS):
        now = time.monotonic()
        until = now + (end - now) / (2 - done)
        fit = 0.9 * (until - now - START) / epoch_seconds  # a tenth to spare
        epochs = max(1, min(epochs, int(fit)))
        options = (
            f"--data {data} --device {sizes.device} --width {width} --batch-size {batch} "
            f"--lr {min(HIGHEST_RATE, TUNED_RATE * batch)} --epochs {epochs} "
            f"--warmup-epochs {epochs / 20} --precision bf16 --mean-shape-init"
        )
        options += "" if how == "graph" else " --no-graph"
        epoch_seconds = statistics.median(train(name, options, work, until) or [epoch_seconds])


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Tests, step times and two trainings on CUDA.")
    parser.add_argument("--minutes", type=float, help="time for all parts (default: 9; quick: 3)")
    parser.add_argument("--quick", action="store_true", help="tiny, on the CPU; nothing compiled")
    args = parser.parse_args(argv)
    sizes = QUICK if args.quick else FULL
    total, workers = 60 * (args.minutes or sizes.minutes), max(1, available_cores() - 2)

    if sizes.device == "cuda" and not torch.cuda.is_available():
        raise UserError("torch sees no CUDA device; --quick tries all of it on the CPU")

    say(machine(torch.device(sizes.device)))

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as pool:
        work, few = Path(folder), min(sizes.most_faces, max(256, 150 * workers))
        starting = make_faces(work, workers, workers)[1]
        first, taken = make_faces(work, few, workers)
        rate = few / max(taken - starting, 0.1 * taken)
        count = int(max(few, min(0.3 * total * rate, sizes.most_faces)))
        say(f"{rate:.0f} faces a second by {workers} workers: {count} are made meanwhile")
        making = pool.submit(make_faces, work, count, workers)

        tests = ["-m", "pytest", "-q", "-k", "cuda", "tests/test_cuda.py", "tests/test_sepbn.py"]
        try:
            subprocess.run([sys.executable, *tests], cwd=ROOT, timeout=total / 9, check=False)
        except subprocess.TimeoutExpired:
            say("tests: stopped, their time is over")

        arguments = (first, sizes, Path(os.environ["OUT"]) / "table.csv")
        table = multiprocessing.get_context("spawn").Process(target=write_table, args=arguments)
        table.start()
        table.join(total / 5)
        say("table: stopped, its time is over" if table.is_alive() else "table: done")
        table.terminate()
        train_twins(making.result()[0], count, sizes, work, BEGAN + total - 10)

    say("done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
