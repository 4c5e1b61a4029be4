"""Checkpoints: atomic to write, safe and strict to load, in our own form and in that of the
released code.

Our own file is ``{"model": state_dict, "config": {...}, "format": 1}``; ``last.pt`` carries
``"training"``, the state of the loop, besides. A released file is a bare state_dict, recognised
from its keys.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.architecture import Architecture, describe_arm
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
        config: needs the fields of :class:`Architecture`, of which ``attention_grid``, ``sets`` and
            ``groups`` may be absent; ``temperature`` is the softmax temperature to start from.
    """
    architecture = Architecture(**{name: config.get(name) for name in ARCHITECTURE})

    return architecture.build(config.get("temperature") or 1.0)


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
    except Exception:  # a damaged file makes torch.load raise nearly anything
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

    own = "model" in content and "config" in content
    state = content["model"] if own else content
    _check_weights(path, state)
    state = {name.removeprefix("module."): value for name, value in state.items()}

    try:
        architecture = Architecture.from_state_dict(state)
    except ValueError as error:
        what = "neither a checkpoint of this project nor a released state_dict"
        if own:
            what = "its weights do not fit the network"

        raise InputError(f"{path}: {what}: {error}") from None

    if own:
        config = _own_config(path, content)
        for key, value in asdict(architecture).items():
            # Without SepBN, settings of SepBN mean nothing, whatever stands there.
            if value is not None and config[key] != value:
                raise InputError(
                    f"{path}: its config says {key} {config[key]!r}, its weights {value!r}; it is "
                    "damaged"
                )

        config |= asdict(architecture)
    else:
        config = _bare_config(path, architecture, state)

    config["arm"] = describe_arm(config)

    # Initial weights are replaced at once: leave the generator alone.
    with torch.random.fork_rng(devices=[]):
        model = architecture.build()

    load_weights(model, state, path)
    # Channels last is the order of the crops: a third of the time of a batch of one on a CPU.
    model = model.to(device, memory_format=torch.channels_last).eval()

    return LoadedModel(model, config, path, config["run"])


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


def _own_config(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """The config of one of our checkpoints, with its kinds and values checked."""
    if content.get("format") != FORMAT:
        raise InputError(
            f"{path}: written in format {content.get('format')}, this code reads format {FORMAT}"
        )
    if not isinstance(content["config"], dict):
        raise InputError(f"{path}: its config is no dictionary; use another checkpoint")

    config = {"attention_grid": None} | content["config"]
    wanted = (*ARCHITECTURE, "resample", "released_geometry", "run")
    missing = [name for name in wanted if name not in config]
    if missing:
        raise InputError(
            f"{path}: its config lacks {', '.join(missing)}; use a checkpoint written by this "
            "project"
        )

    for name, good in (
        ("run", isinstance(config["run"], str)),
        ("resample", config["resample"] in ("nearest", "area")),
        ("released_geometry", isinstance(config["released_geometry"], bool)),
    ):
        if not good:
            raise InputError(f"{path}: {name} is {config[name]!r} in its config; it is damaged")

    return config | {"format_name": "own"}


def _bare_config(path: Path, architecture: Architecture, state: dict[str, Any]) -> dict[str, Any]:
    """What a file says that holds nothing but weights."""
    ours = "bn1.weight" in state  # the released code has no BatchNorm, and other names in SepBN

    return asdict(architecture) | {
        "resample": "nearest",
        "released_geometry": not ours,
        "run": path.stem,
        "format_name": "released",
    }


def _check_weights(path: Path, state: Any) -> None:
    """Refuse what is no state_dict, or a tensor that claims more than its file holds."""
    if not isinstance(state, dict) or not state:
        raise InputError(f"{path}: neither a checkpoint of this project nor a released state_dict")

    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise InputError(
                f"{path}: neither a checkpoint of this project nor a released state_dict: "
                f"{name!r} is a {type(tensor).__name__}"
            )
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise InputError(f"{path}: {name} claims more numbers than the file holds; refused")
        if not (tensor.is_floating_point() or name.endswith("num_batches_tracked")):
            raise InputError(f"{path}: {name} is of {tensor.dtype}, not floating point; refused")
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{path}: {name} holds values that are not finite; refused")
