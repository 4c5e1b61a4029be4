"""Checkpoints: atomic to write, safe and strict to load, in our own form and in that of the
released code.

Our own file is ``{"model": state_dict, "config": {...}, "format": 1}``; ``last.pt`` carries
``"training"``, the state of the loop, besides. A released file is a bare state_dict, recognised
from its keys.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models import Baseline, BaselineSepDyBN
from models.architecture import describe_arm
from utils.files import InputError, atomic_write

FORMAT = 1
ARCHITECTURE = ("norm", "num_landmarks", "width", "sets", "groups", "attention_grid")


@dataclass(frozen=True)
class LoadedModel:
    """A network read from a file.

    Args:
        model: in evaluation mode.
        config: settings it was trained with; always has norm, num_landmarks, width, sets, groups,
            attention_grid, resample, released_geometry, run, arm (in words) and format_name
            (``"own"`` or ``"released"``).
        path: the file.
        name: name of the run, or the file's stem.
    """

    model: nn.Module
    config: dict[str, Any]
    path: Path
    name: str


def build_model(config: dict[str, Any]) -> nn.Module:
    """A freshly initialised network.

    Args:
        config: needs ``norm``, ``num_landmarks``, ``width`` and, for SepBN, ``sets``, ``groups``;
            ``attention_grid`` may be absent; ``temperature`` is the softmax temperature to start
            from.
    """
    size = {"num_landmarks": config["num_landmarks"], "width": config["width"]}
    if config["norm"] == "sepbn":
        size["attention_grid"] = config.get("attention_grid")
        return BaselineSepDyBN(
            config["sets"], config["groups"], config.get("temperature") or 1.0, **size
        )

    return Baseline(config["norm"], **size)


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint; a crash or a full disk leaves the previous file as it was."""
    # torch hides a full disk behind errors of its own; bytes written at once do not
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def read(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint's content onto the CPU without running any code that it may carry.

    Raises:
        InputError: missing, truncated, not a checkpoint, or a pickle of anything but tensors and
            plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint file")

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"{path}: refused, since it is no plain checkpoint: it is damaged or holds Python "
            "objects, which could run "
            "code; save a state_dict instead"
        ) from None
    except (RuntimeError, EOFError, ValueError, OSError, KeyError, UnicodeDecodeError):
        raise InputError(
            f"{path}: truncated or not a checkpoint; copy it again or use another one"
        ) from None

    if not isinstance(content, dict):
        raise InputError(
            f"{path}: holds a {type(content).__name__}, not a checkpoint or a state_dict"
        )

    return content


def load_model(path: str | Path, device: torch.device | str = "cpu") -> LoadedModel:
    """A network from one of our checkpoints or from a released state_dict.

    Args:
        path: ``final.pt``, ``last.pt``, a milestone, or a released ``.pth``.
        device: where to put the network.

    Raises:
        InputError: see :func:`read`; also where weights are missing, unexpected or of another
            shape.
    """
    path = Path(path)
    content = read(path)

    if "model" in content and "config" in content:
        if content.get("format") != FORMAT:
            raise InputError(
                f"{path}: written in format {content.get('format')}, this code reads format "
                f"{FORMAT}"
            )

        state, config = content["model"], {"attention_grid": None} | content["config"]
        missing = [
            name
            for name in (*ARCHITECTURE, "resample", "released_geometry", "run")
            if name not in config
        ]

        if missing:
            raise InputError(
                f"{path}: its config lacks {', '.join(missing)}; use a checkpoint written by this "
                "project"
            )

        config["format_name"] = "own"
        name = config["run"]
    else:
        state = {key.removeprefix("module."): value for key, value in content.items()}
        config = _released_config(path, state)
        name = path.stem

    config["arm"] = describe_arm(config)

    with torch.random.fork_rng(
        devices=[]
    ):  # initial weights are replaced at once: leave the generator alone
        model = build_model({**config, "temperature": 1.0})

    load_weights(model, state, path)
    # Channels last is the order of the crops: a third of the time of a batch of one on a CPU.
    model = model.to(device, memory_format=torch.channels_last).eval()

    return LoadedModel(model, config, path, name)


def load_weights(model: nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
    """``model.load_state_dict(state, strict=True)``, with its complaints in one line."""
    try:
        model.load_state_dict(state, strict=True)
    except (RuntimeError, AttributeError, TypeError) as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
        more = f" (and {len(lines) - 1} more complaints)" if len(lines) > 1 else ""
        raise InputError(
            f"{path}: its weights do not fit the network: {lines[0][:200]}{more}"
        ) from None


def _released_config(path: Path, state: dict[str, Any]) -> dict[str, Any]:
    """What the keys and shapes of a bare state_dict say about the network."""
    try:
        config = {
            "norm": "none",
            "num_landmarks": state["fc2.weight"].shape[0] // 2,
            "width": state["conv1.weight"].shape[0],
            "sets": None,
            "groups": None,
            "attention_grid": None,
        }

        if "bn1.bn.0.weight" in state:
            sets = sum(key.startswith("bn1.bn.") and key.endswith(".weight") for key in state)
            config |= {
                "norm": "sepbn",
                "sets": sets,
                "groups": state["bn1.fc2.weight"].shape[0] // sets,
            }
        elif any(key.startswith("bn1.") for key in state):
            config["norm"] = "bn"
    except (KeyError, AttributeError, IndexError):
        raise InputError(
            f"{path}: neither a checkpoint of this project nor a released state_dict "
            "(conv1.weight, bn1.fc2.weight or "
            "fc2.weight is missing)"
        ) from None

    return config | {
        "resample": "nearest",
        "released_geometry": True,
        "run": path.stem,
        "format_name": "released",
    }
