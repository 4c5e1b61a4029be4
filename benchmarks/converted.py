"""What convert_batchnorm costs other people's networks, and whether they learn as before.

    python benchmarks/converted.py [--networks U-Net 1-D ...] [--steps 200]

Each network runs beside its copy with SepBN (K = 3, G = 2), in turn, the order changing from step
to step; ratios are medians over the steps, of processor seconds with one thread. A step is forward,
cross entropy, backward and SGD with momentum; ten batches come round and round, noise with one of
ten patterns in it, and the temperature falls from 30 to 1 in the first half of the steps. Losses
are means of the last ten steps. ResNet-18 and MobileNetV2 (10 classes) need torchvision.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import TemperatureSchedule, convert_batchnorm, parameter_groups
from utils.device import describe_machine, keep_freed_memory


def block(kind: str, inputs: int, outputs: int) -> list[nn.Module]:
    """Convolution, BatchNorm and ReLU of a dimension: "1d", "2d" or "3d"."""
    convolution, norm = getattr(nn, f"Conv{kind}"), getattr(nn, f"BatchNorm{kind}")
    return [convolution(inputs, outputs, 3, padding=1, bias=False), norm(outputs), nn.ReLU()]


class UNet(nn.Module):
    """Three levels down and up again, widths 32 to 256, two convolutions each."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 128, 256)
        pairs = list(zip(widths, widths[1:], strict=False))
        self.down = nn.ModuleList(self.twice(*pair) for pair in pairs)
        self.grow = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in pairs[:0:-1])
        self.up = nn.ModuleList(self.twice(2 * a, a) for a, _ in pairs[:0:-1])
        self.head = nn.Conv2d(32, 10, 1)

    @staticmethod
    def twice(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(*block("2d", inputs, outputs), *block("2d", outputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for layers in self.down:
            x = layers(F.max_pool2d(x, 2) if kept else x)
            kept.append(x)
        for grow, layers, wide in zip(self.grow, self.up, kept[-2::-1], strict=True):
            x = layers(torch.cat((wide, grow(x)), 1))
        return self.head(x)


def chain(kind: str, *widths: int) -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in zip(widths, widths[1:], strict=False):
        layers += [*block(kind, inputs, outputs), getattr(nn, f"MaxPool{kind}")(2)]
    pool = getattr(nn, f"AdaptiveAvgPool{kind}")(1)
    return nn.Sequential(*layers, pool, nn.Flatten(), nn.Linear(widths[-1], 10))


def from_torchvision(name: str) -> nn.Module:
    import torchvision

    return getattr(torchvision.models, name)(num_classes=10)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "U-Net": (UNet, (2, 3, 64, 64)),
    "1-D": (lambda: chain("1d", 3, 64, 128, 256), (32, 3, 256)),
    "3-D": (lambda: chain("3d", 3, 16, 32, 64), (8, 3, 16, 24, 24)),
    "ResNet-18": (lambda: from_torchvision("resnet18"), (8, 3, 64, 64)),
    "MobileNetV2": (lambda: from_torchvision("mobilenet_v2"), (8, 3, 64, 64)),
}


def median_ratio(runs: tuple[Callable[[], object], ...], steps: int) -> float:
    """Of the first's processor seconds to the second's."""
    ratios = []
    for step in range(steps + 1):
        seconds = [0.0, 0.0]
        for which in (0, 1) if step % 2 else (1, 0):
            start = time.process_time()
            runs[which]()
            seconds[which] = time.process_time() - start
        ratios.append(seconds[0] / seconds[1])
    return statistics.median(ratios[1:])  # the first is warm-up


def saved_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes of the storages that the forward pass keeps for the backward pass, each once."""
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(x)
    del output  # kept until here, so that no storage's address is used twice
    return sum(storages.values())


class Training:
    """A network learns to tell ten patterns in noise; calling it makes a step."""

    def __init__(self, model: nn.Module, batches: list[tuple[Tensor, Tensor]], steps: int) -> None:
        self.model, self.batches = model.train(), batches
        self.optimizer = torch.optim.SGD(parameter_groups(model, 5e-4), 0.02, momentum=0.9)
        self.temperature = TemperatureSchedule(model, 30, decrease=2 * 29 / steps)
        self.losses: list[float] = []

    def __call__(self) -> None:
        x, labels = self.batches[len(self.losses) % len(self.batches)]
        output = self.model(x)
        if output.dim() > 2:  # one answer for every pixel
            labels = labels[:, None, None].expand(-1, *output.shape[2:])
        loss = F.cross_entropy(output, labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.temperature.step()
        self.losses.append(loss.item())


def draw_batches(shape: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
    patterns = torch.randn(10, *shape[1:])
    labels = torch.randint(10, (10, shape[0]))
    return [(torch.randn(shape) + patterns[rows] / 2, rows) for rows in labels]


def row(name: str, steps: int) -> str:
    build, shape = NETWORKS[name]
    torch.manual_seed(0)
    batches, model = draw_batches(shape), build()
    x, _ = batches[0]
    with torch.no_grad():
        model(x)  # moves the running estimates
    converted = convert_batchnorm(copy.deepcopy(model), 3, 2, temperature=30.0)
    narrow = convert_batchnorm(copy.deepcopy(model), 3, 2, hidden=4)

    with torch.inference_mode():
        outputs = [network.eval()(x) for network in (converted, model)]
        difference = (outputs[0] - outputs[1]).abs().max() / outputs[1].abs().max()
        inference = median_ratio((lambda: converted(x), lambda: model(x)), steps)
    memory = saved_bytes(converted.train(), x) / saved_bytes(model.train(), x)
    pair = Training(converted, batches, steps), Training(model, batches, steps)
    training = median_ratio(pair, steps)

    sizes = [sum(p.numel() for p in each.parameters()) for each in (model, converted, narrow)]
    more = [f"{100 * (size / sizes[0] - 1):.1f} %" for size in sizes[1:]]
    layers = sum(isinstance(each, nn.modules.batchnorm._BatchNorm) for each in model.modules())
    sepbn, batchnorm = (statistics.mean(each.losses[-10:]) for each in pair)
    values = (
        *("x".join(map(str, shape)), layers, f"{difference:.0e}", f"{sizes[0] / 1e6:.2f} M"),
        *(f"+{more[0]}", f"+{more[1]}", f"{training:.2f}", f"{inference:.2f}", f"{memory:.2f}"),
        *(f"{pair[1].losses[0]:.2f}", f"{batchnorm:.3f}", f"{sepbn:.3f}"),
    )
    return f"| {name} | " + " | ".join(map(str, values)) + " |"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Networks with SepBN beside their originals.")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--steps", type=int, default=200, help="default: 200")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    keep_freed_memory()

    machine = describe_machine().items()
    print(", ".join(f"{key} {value}" for key, value in machine if value is not None))
    print("| network | input | layers | difference | weights | more | more, hidden=4 ", end="")
    print("| training | inference | memory | first loss | BatchNorm's last | SepBN's last |")
    print("|---" * 13 + "|")
    for name in args.networks:
        print(row(name, args.steps), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
