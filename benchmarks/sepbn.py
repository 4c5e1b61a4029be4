"""What SepBN costs beside BatchNorm, and beside the K BatchNorms that it replaces.

    python benchmarks/sepbn.py [--device cpu] [--pairs 3] [--quick] [--system-allocator]
    python benchmarks/sepbn.py --against FILE [...]
    python benchmarks/sepbn.py --ways

The networks or layers of a row run in turn, the order changing from pair to pair; a row reports the
median of the pairs' ratios, their range and both median times. Sizes are the published ones:
Vanilla CNN of width 64 on 128 x 128 crops, K = 3 sets, G = 2 groups. A training step is forward,
mean absolute error, backward and SGD with momentum. bf16 means autocast for networks, and bfloat16
input to the layer alone. Freed memory is kept, as in training; with --system-allocator it goes back
to the system as in a plain script, which every fresh tensor then pays for: that makes large layers
slower and fewer tensors an advantage. Takes about six minutes on two cores.

With --against, a row is SepBN over the SepBN of FILE, another version of models/sepbn.py. To
compare with a commit: git show COMMIT:models/sepbn.py > FILE

With --ways, a row is one of the layer's passes over the map by plain operations, over the same pass
by ATen's BatchNorm kernels: what models/sepbn.py chooses between on CPU.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.converted import saved_bytes
from benchmarks.kernels import load_layer_file
from benchmarks.paired import machine, synchronised, take_turns
from models import SepBatchNorm2d, VanillaCNN, sepbn
from utils.device import keep_freed_memory, select_device
from utils.files import reports_user_errors

LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
OPTIONS = {"groups": 2, "temperature": 30.0}

Norm = Callable[[int], nn.Module]  # makes a layer for a number of channels
Run = Callable[[], None]


class ManyBatchNorms(nn.Module):
    """The construction that SepBN replaces: K BatchNorms, stacked, weighted and summed (G = 1)."""

    def __init__(self, channels: int, num_sets: int = 3, temperature: float = 30.0):
        super().__init__()
        hidden = max(1, channels // 10)
        self.temperature = temperature
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(num_sets))
        self.attention = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, hidden, 1, bias=False),
            nn.LeakyReLU(0.01),
            nn.Conv2d(hidden, num_sets, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.softmax(self.attention(x) / self.temperature, dim=1)  # (N, K, 1, 1)
        outputs = torch.stack([norm(x) for norm in self.norms], dim=1)  # (N, K, C, H, W)
        return (weights[:, :, None] * outputs).sum(1)


@dataclass(frozen=True)
class Setting:
    """Where and how a row runs."""

    device: torch.device
    dtype: str
    layout: str

    def prepare(self, model: nn.Module) -> nn.Module:
        return model.to(self.device).to(memory_format=LAYOUTS[self.layout])

    def random(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        values = torch.randn(shape, device=self.device).to(dtype)
        return values.contiguous(memory_format=LAYOUTS[self.layout])

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == "bf16")

    def __str__(self) -> str:
        return f"{self.dtype}, {self.layout}"


def training_step(norm: Norm, batch: int, setting: Setting) -> Run:
    model = setting.prepare(VanillaCNN(norm))
    x = setting.random(batch, 3, 128, 128)
    target = torch.randn(batch, 196, device=setting.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9, weight_decay=5e-4)

    def step() -> None:
        with setting.autocast():
            output = model(x)
        loss = F.l1_loss(output.float(), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def inference(norm: Norm, batch: int, setting: Setting) -> Run:
    model = setting.prepare(VanillaCNN(norm)).eval()
    x = setting.random(batch, 3, 128, 128)

    @torch.inference_mode()
    def run() -> None:
        with setting.autocast():
            model(x)

    return run


def layer_pass(norm: Norm, setting: Setting, *, compiled: bool) -> Run:
    """Forward and backward of one layer on 8 x 64 x 128 x 128."""
    layer = setting.prepare(norm(64))
    x = setting.random(8, 64, 128, 128, dtype=DTYPES[setting.dtype]).requires_grad_()
    gradient = setting.random(8, 64, 128, 128, dtype=DTYPES[setting.dtype])
    call = torch.compile(layer) if compiled else layer

    def run() -> None:
        x.grad = None
        layer.zero_grad()
        call(x).backward(gradient)

    return run


def bytes_for_backward(norm: Norm, setting: Setting) -> int:
    model = setting.prepare(VanillaCNN(norm))
    with setting.autocast():
        return saved_bytes(model, setting.random(8, 3, 128, 128))


@dataclass(frozen=True)
class Table:
    """Prints rows of first / second; ``goals`` only where the second is what goals speak of."""

    device: torch.device
    goals: bool

    def report(self, what: str, goal: str, values: tuple[str, ...]) -> None:
        print(f"| {what} | {goal if self.goals else '-'} | {' | '.join(values)} |", flush=True)

    def compare(self, what: str, goal: str, pair: tuple[Run, ...], *, pairs: int) -> None:
        """Time the two of a pair in turn and print their row."""
        runs = {str(which): synchronised(run, self.device) for which, run in enumerate(pair)}
        # warm-up: compilation, allocation, caches
        first, second = take_turns(runs, pairs, warm_up=2).values()
        ratios = first / second
        times = f"{1e3 * np.median(first):.1f} / {1e3 * np.median(second):.1f} ms"
        spread = f"{ratios.min():.2f} to {ratios.max():.2f}"
        self.report(what, goal, (f"{np.median(ratios):.3f}", spread, times))


def compare_in(setting: Setting, norms: tuple[Norm, Norm], table: Table, pairs: int) -> None:
    """All rows of one setting: layer, inference, training step, memory."""
    for compiled, goal in ((False, "≤ 1.5"), (True, "≤ 1.2")):
        pair = tuple(layer_pass(norm, setting, compiled=compiled) for norm in norms)
        how = "compiled" if compiled else "eager"
        table.compare(f"layer, {how}, {setting}", goal, pair, pairs=4 * pairs)

    for batch, effort in ((1, 4 * pairs), (32, pairs)):
        pair = tuple(inference(norm, batch, setting) for norm in norms)
        table.compare(f"inference, batch {batch}, {setting}", "≤ 1.05", pair, pairs=effort)

    for batch in (8, 32):
        pair = tuple(training_step(norm, batch, setting) for norm in norms)
        table.compare(f"training step, batch {batch}, {setting}", "≤ 1.05", pair, pairs=pairs)

    first, second = (bytes_for_backward(norm, setting) for norm in norms)
    sizes = f"{first / 1e6:.1f} / {second / 1e6:.1f} MB"
    what = f"bytes saved for backward, batch 8, {setting}"
    table.report(what, "≤ 1.05", (f"{first / second:.3f}", "-", sizes))


def compare_constructions(setting: Setting, table: Table, pairs: int) -> None:
    """What more sets cost, and what the K BatchNorms cost that SepBN replaces."""
    many, one = (partial(SepBatchNorm2d, num_sets=k, **OPTIONS) for k in (8, 1))
    pair = tuple(training_step(norm, 8, setting) for norm in (many, one))
    what = f"training step, batch 8, K = 8 / K = 1, {setting}"
    table.compare(what, "≤ 1.03", pair, pairs=pairs)

    ours = partial(SepBatchNorm2d, num_sets=3, **OPTIONS)
    pair = tuple(training_step(norm, 32, setting) for norm in (ManyBatchNorms, ours))
    what = f"training step, batch 32, 3 BatchNorms / SepBN, {setting}"
    table.compare(what, "≥ 2.2", pair, pairs=pairs)


def compare_ways(setting: Setting, table: Table, pairs: int) -> None:
    """The four passes over two maps, each by plain operations and by ATen's kernels."""
    for shape in ((8, 64, 128, 128), (8, 2048, 4, 4)):
        x, dy = (setting.random(*shape, dtype=DTYPES[setting.dtype]) for _ in range(2))
        scale, shift = torch.rand(shape[:2]), torch.rand(shape[:2])
        slope, centre = torch.rand(shape[1]), torch.rand(shape[1])
        passes = {
            "moments": partial(sepbn._moments, x, True),
            "affine": partial(sepbn._affine, x, scale, shift),
            "sums": partial(sepbn._sums, dy, x, centre),
            "input gradient": partial(sepbn._input_gradient, dy, x, scale, slope, shift),
        }

        for name, run in passes.items():
            plain = mock.patch.object(sepbn, "_has_kernels", lambda x: False)(run)
            kernels = mock.patch.object(sepbn, "_is_wide_channels_last", lambda x: False)(run)
            what = f"{name}, plain / kernels, {'x'.join(map(str, shape))}, {setting}"
            table.compare(what, "-", (plain, kernels), pairs=4 * pairs)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="SepBN against BatchNorm: time and memory, training and inference."
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument(
        "--pairs", type=int, default=3, help="pairs a row, four times as many of short ones"
    )
    parser.add_argument("--quick", action="store_true", help="fp32 in NCHW only")
    parser.add_argument(
        "--against",
        type=Path,
        metavar="FILE",
        help="another version of models/sepbn.py, in place of BatchNorm",
    )
    parser.add_argument(
        "--ways", action="store_true", help="each pass by plain operations and by ATen's kernels"
    )
    parser.add_argument(
        "--system-allocator",
        action="store_true",
        help="let freed memory go, as a plain script does",
    )
    return parser.parse_args(argv)


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    device = select_device(args.device)
    if not args.system_allocator:
        keep_freed_memory()
    torch.manual_seed(0)

    other = nn.BatchNorm2d
    if args.against:
        other = partial(load_layer_file(args.against).SepBatchNorm2d, num_sets=3, **OPTIONS)
    norms = (partial(SepBatchNorm2d, num_sets=3, **OPTIONS), other)
    table = Table(device, goals=args.against is None)

    print(machine())
    kept = "given back" if args.system_allocator else "kept"
    print(f"freed memory {kept}, medians of paired ratios, {args.pairs} pairs")
    print("| what | goal | ratio | range | times |\n|---|---|---|---|---|")

    settings = [Setting(device, dtype, layout) for dtype in DTYPES for layout in LAYOUTS]
    for setting in settings[:1] if args.quick else settings:
        if args.ways:
            compare_ways(setting, table, args.pairs)
        else:
            compare_in(setting, norms, table, args.pairs)
    if not (args.against or args.ways):
        compare_constructions(settings[0], table, args.pairs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
