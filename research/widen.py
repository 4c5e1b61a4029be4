"""Make a wider network that computes what a trained one does, to train on from it.

    python research/widen.py checkpoints/sepbn16.pt --width 22 --out wide.pt
    python trainBaselineSepDyBN.py --init wide.pt ...

The channels of the trained network are the first ones of the wider network. The others start anew,
and nothing that was trained listens to them: those weights are zero, and grow as training needs
them. The method is that of widening in "Net2Net" (Chen, Goodfellow, Shlens, ICLR 2016), with new
channels instead of copied ones, which would have to be told apart by noise.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import nn

from models.architecture import Architecture
from models.checkpoint import FORMAT, load_model, save
from utils.files import UserError, reports_user_errors


def widen(model: nn.Module, width: int, *, seed: int = 0) -> nn.Module:
    """A network of ``width``, in evaluation mode, that gives the landmarks of ``model``.

    Args:
        model: a Vanilla CNN, in evaluation mode.
        width: channels of the first stage, at least those of ``model``.
        seed: of the new channels.

    Raises:
        UserError: ``width`` is smaller, or the channels of a network with G > 1 would change group.
    """
    architecture = Architecture.from_state_dict(model.state_dict())
    if width < architecture.width:
        raise UserError(f"--width {width} is less than the network's {architecture.width}")
    if architecture.groups not in (1, None):
        raise UserError(
            f"with G = {architecture.groups} the channels of a wider network would be in other "
            "groups; only G = 1 can be widened"
        )

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        wide = replace(architecture, width=width).build().eval()

    trained = dict(model.named_modules())

    with torch.no_grad():
        for name, layer in wide.named_modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                outputs, inputs = trained[name].weight.shape[:2]
                layer.weight[:outputs, inputs:] = 0

        weights = wide.state_dict()
        for name, tensor in model.state_dict().items():
            weights[name][tuple(slice(size) for size in tensor.shape)] = tensor

    return wide


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Make a wider network that computes what a trained one does."
    )
    add = parser.add_argument
    add("checkpoint", type=Path, metavar="CHECKPOINT", help="final.pt of a run, or a packed file")
    add("--width", type=int, required=True, help="channels of the first stage")
    add("--out", type=Path, required=True, metavar="FILE", help="the file to write")
    add("--seed", type=int, default=0, help="of the new channels")

    return parser.parse_args(argv)


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    loaded = load_model(args.checkpoint)
    wide = widen(loaded.model, args.width, seed=args.seed)
    config = loaded.config | {"width": args.width, "run": args.out.stem}
    save(args.out, {"model": wide.state_dict(), "config": config, "format": FORMAT})
    print(f"{args.out}: {load_model(args.out).config['arm']}")

    return 0


if __name__ == "__main__":
    sys.exit(main())
