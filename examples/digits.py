"""SepBN on another task: scikit-learn's 8 x 8 digits, a small network with either layer.

python examples/digits.py --norm sepbn --seed 0     prints the accuracy on the last 360 digits
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "models"))

import torch
import torch.nn.functional as F
from sepbn import TemperatureSchedule, convert_batchnorm, parameter_groups
from sklearn.datasets import load_digits
from torch import Tensor, nn


def make_network(norm: str) -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs)]
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 10))
    return convert_batchnorm(network, num_sets=3, groups=2) if norm == "sepbn" else network


def load(first: int, last: int) -> tuple[Tensor, Tensor]:
    digits, labels = (torch.tensor(values) for values in load_digits(return_X_y=True))
    rows = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[first:last]
    return digits[rows].float().view(-1, 1, 8, 8) / 16, labels[rows]


def train(network: nn.Module, x: Tensor, labels: Tensor, lr: float, epochs: int) -> None:
    optimizer = torch.optim.SGD(parameter_groups(network, 5e-4), lr, momentum=0.9)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    temperature = TemperatureSchedule(network, max(1, epochs // 2))
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            loss = F.cross_entropy(network(x[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        rate.step()
        temperature.step()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Digits with BatchNorm or SepBN.")
    parser.add_argument("--norm", choices=("bn", "sepbn"), default="sepbn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=0.1, help="peak learning rate (default: 0.1)")
    parser.add_argument("--epochs", type=int, default=20, help="default: 20")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    network = make_network(args.norm)
    train(network, *load(0, 1437), args.lr, args.epochs)
    x, labels = load(1437, 1797)
    print(f"{100 * (network.eval()(x).argmax(1) == labels).float().mean():.2f} %")
