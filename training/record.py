"""What a run says of itself: its settings and all else worth knowing, plain and in words."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dataset.faces import FaceSet
from dataset.landmarks import definition_to_keep
from models.architecture import Architecture
from training.config import TrainConfig
from utils.device import describe_machine, git_commit
from utils.files import UserError
from utils.schedule import temperature


def run_record(
    config: TrainConfig, train: FaceSet, test: FaceSet, *, device: torch.device, processes: int = 1
) -> dict[str, Any]:
    """Everything worth knowing about a run, as plain values: goes to ``config.json`` and into its
    checkpoints.
    """
    settings = asdict(config) | {"num_landmarks": train.scheme.num_points}

    return settings | {
        "arm": Architecture.from_config(settings).describe(),
        "scheme": train.scheme.name,
        "scheme_definition": definition_to_keep(train.scheme),
        "resample": train.meta.get("resample", "nearest"),
        "box_scale": train.meta.get("box_scale", 1.0),
        "faces": {"train": len(train), "test": len(test)},
        "fingerprint": train.fingerprint(),
        "device_type": device.type,
        "processes": processes,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": git_commit(),
        "machine": describe_machine(device),
    }


def refuse_other_settings(saved: dict[str, Any], record: dict[str, Any], where: Path) -> None:
    """Name every setting that differs between a saved run and the one that wants to resume it.

    Settings in ``TrainConfig.FREE`` cannot change the result and may differ.
    """
    defaults = {setting.name: setting.default for setting in fields(TrainConfig)}
    saved = defaults | saved  # a run saved before a setting existed had its default
    free = TrainConfig.FREE
    labels = {name: "--" + name.replace("_", "-") for name in defaults if name not in free}
    labels |= {"device_type": "kind of device", "resample": "resampling of the data"}
    labels |= {"scheme_definition": "landmark scheme", "fingerprint": "training faces"}

    different = [
        f"{label} was {saved.get(name)}, is {record[name]}"
        for name, label in labels.items()
        if saved.get(name) != record[name]
    ]

    if different:
        raise UserError(
            f"{where} cannot be resumed with other settings: {'; '.join(different)}; use the "
            "saved ones"
        )


def header(config: TrainConfig, record: dict[str, Any], model: nn.Module, steps: int) -> str:
    """What runs, on what, how: the lines printed before training."""
    machine, faces = record["machine"], record["faces"]
    parameters = sum(weight.numel() for weight in model.parameters())
    on_cuda = record["device_type"] == "cuda"
    device = machine["cuda"] if on_cuda else f"{machine['cpu']}, {machine['threads']} threads"

    tau = warning = ""
    if config.temperature is not None:
        last = temperature(config.epochs - 1, start=config.temperature)
        tau = f", temperature {config.temperature:g}"
        tau += f" falling by 1 an epoch to {last:g}" if config.temperature > 1 else ""
        if last > 1:
            warning = (
                f"\nwarning   after {config.epochs} epochs the softmax is still at temperature "
                f"{last:g}, and the network is tested and kept at it; --temperature "
                f"{config.epochs} or less, or more --epochs, end at 1"
            )

    precision = config.precision
    if on_cuda:
        precision += f", TF32 convolutions {'on' if torch.backends.cudnn.allow_tf32 else 'off'}"

    return "\n".join(
        (
            f"{record['arm']}; {parameters:,} parameters",
            f"data      {config.data}: {faces['train']} train, {faces['test']} test faces, "
            f"{record['scheme']}, {record['resample']} resampling"
            + (", released geometry" if config.released_geometry else ""),
            f"schedule  {config.epochs} epochs of {steps} steps of batch "
            f"{config.batch_size} ({record['processes']} processes), "
            f"warm-up {config.warmup_epochs:g} epochs, peak lr {config.lr:g}, "
            f"momentum {config.momentum:g}, weight decay {config.weight_decay:g}{tau}",
            f"machine   {device}; {precision}{', compiled' if config.compile else ''}; "
            f"torch {machine['torch']}, Python {machine['python']}",
            f"repeat    seed {config.seed}, commit {record['commit'] or 'unknown'}, command: "
            f"{record['command']}{warning}",
        )
    )
