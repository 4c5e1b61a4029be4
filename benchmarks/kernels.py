"""How much work BatchNorm and SepBN are for a GPU: kernels and passes over the map, counted.

    python benchmarks/kernels.py [--layer-file FILE]

Every operation that reaches PyTorch's dispatcher in one training step of a layer is counted, on
tensors without data (device "meta"). So the layer takes the plain operations that it takes on
CUDA, no GPU is needed, and nothing is timed. FILE is another version of models/sepbn.py.

big kernels    operations that read or write a tensor of the map's size
passes         how often they read or write it: a * b is 3, a sum 1, an in-place addition 3
small kernels  all other operations that compute or copy; views and allocations are none

BatchNorm's two operations are made of two kernels each (statistics and map; sums and gradient):
1 + 2 passes forward, 2 + 3 backward.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from utils.files import UserError, reports_user_errors

ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
VIEWS = {"detach", "_unsafe_view"}  # which do not look like views to the dispatcher
FUSED = {"native_batch_norm": (2, 3), "native_batch_norm_backward": (2, 5)}  # kernels, passes


@dataclass
class Work:
    """What a forward or a backward pass asks of the device."""

    big: int = 0
    passes: int = 0
    small: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.big + other.big, self.passes + other.passes, self.small + other.small)


class KernelCounter(TorchDispatchMode):
    """Counts operations on tensors of ``numel`` elements, and all others, while active."""

    def __init__(self, numel: int) -> None:
        super().__init__()
        self.numel = numel
        self.work = Work()
        self.names: list[str] = []  # of what was counted, in order, each with its passes

    def __torch_dispatch__(self, func, types: Sequence, args: tuple = (), kwargs: Any = None):
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        if func.is_view or name in ALLOCATIONS | VIEWS:
            return result

        passes = self._passes(func, args, kwargs or {}, result)
        if name in FUSED and passes:
            kernels, passes = FUSED[name]
            self.work += Work(kernels, passes, 0)
        else:
            self.work += Work(1, passes, 0) if passes else Work(0, 0, 1)

        self.names.append(f"{name} x {passes}" if passes else name)
        return result

    def _passes(self, func, args: tuple, kwargs: dict, result: Any) -> int:
        """Reads and writes of whole maps by one operation."""
        read, written = [*args], tree_leaves(result)
        for argument in func._schema.arguments:
            if argument.name in kwargs and not argument.is_out:
                read.append(kwargs[argument.name])  # what it writes with out= it does not read

        return sum(self._is_map(tensor) for tensor in [*tree_leaves(read), *written])

    def _is_map(self, value: Any) -> bool:
        if not isinstance(value, Tensor):
            return False
        lengths = zip(value.shape, value.stride(), strict=True)
        return torch.Size(n for n, stride in lengths if stride or n == 1).numel() >= self.numel


def count_step(layer: nn.Module, x: Tensor) -> tuple[KernelCounter, KernelCounter]:
    """Forward and backward pass of a layer in training, for an input of (N, C, H, W)."""
    x = x.detach().requires_grad_()
    parameters = list(layer.parameters())

    with KernelCounter(x.numel()) as forward:
        output = layer(x)
    gradient = torch.empty_like(output)
    with KernelCounter(x.numel()) as backward:
        torch.autograd.grad(output, [x, *parameters], gradient)

    return forward, backward


def load_layer_file(path: Path) -> ModuleType:
    """Import a version of models/sepbn.py from wherever it lies."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; make one with: git show COMMIT:models/sepbn.py")
    spec = importlib.util.spec_from_file_location("layer_file", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Kernels and passes of BatchNorm and SepBN.")
    own = Path(__file__).resolve().parent.parent / "models/sepbn.py"
    parser.add_argument("--layer-file", type=Path, default=own, help="default: models/sepbn.py")
    parser.add_argument("--list", action="store_true", help="name every operation, too")
    args = parser.parse_args(argv)

    sepbn = load_layer_file(args.layer_file).SepBatchNorm2d
    layers = {
        "BatchNorm": nn.BatchNorm2d(64, device="meta"),
        "SepBN, K = 3, G = 1": sepbn(64, 3, 1, device="meta"),
        "SepBN, K = 3, G = 2": sepbn(64, 3, 2, device="meta"),
    }

    print("| layer | dtype | pass | big kernels | passes over the map | small kernels |")
    print("|---|---|---|---|---|---|")
    for name, layer in layers.items():
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.empty(8, 64, 128, 128, device="meta", dtype=dtype)
            counters = count_step(layer, x)
            for direction, counter in zip(("forward", "backward"), counters, strict=True):
                work = counter.work
                what = f"{name} | {str(dtype).removeprefix('torch.')} | {direction}"
                print(f"| {what} | {work.big} | {work.passes} | {work.small} |")
                if args.list:
                    print("\n" + ", ".join(counter.names) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
