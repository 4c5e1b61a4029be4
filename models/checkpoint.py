"""Checkpoints: atomic to write, safe and strict to load, in our own form and in that of the
released code.

Our own file is ``{"model": state_dict, "config": {...}, "format": 1}``; ``last.pt`` carries
``"training"``, the state of the loop, besides. A released file is a bare state_dict, recognised
from its keys.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.architecture import Architecture
from utils.files import UserError, atomic_write, lacks_memory, read_bytes

FORMAT = 1
# the SepBN network that comes with the code
SHIPPED = Path(__file__).resolve().parent.parent / "checkpoints" / "sepbn16.pt"

# Settings besides the architecture that every config has, and of which kind they are
SETTINGS = {"resample": str, "box_scale": float, "released_geometry": bool, "run": str}
# Settings that files of earlier versions do not have
IMPLIED = {"attention_grid": None, "box_scale": 1.0}


@dataclass(frozen=True)
class LoadedModel:
    """A network read from a file.

    Args:
        model: in evaluation mode.
        config: settings it was trained with; always has norm, num_landmarks, width, sets, groups,
            attention_grid, resample, box_scale, released_geometry, run, arm (in words) and
            format_name (``"own"`` or ``"released"``).
        path: the file.
        name: name of the run, or the file's stem.
    """

    model: nn.Module
    config: dict[str, Any]
    path: Path
    name: str


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
        UserError: missing, truncated, not a checkpoint, of another format, or a pickle of anything
            but tensors and plain values.
    """
    data = io.BytesIO(read_bytes(path, "checkpoint"))

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old forms
            content = torch.load(data, map_location="cpu", weights_only=True)
        form = str(content.get("format", FORMAT))
    except Exception as error:  # in a damaged file torch.load stumbles over anything
        if lacks_memory(error):
            raise
        raise UserError(
            f"{path}: refused: truncated, not a checkpoint, or with Python objects in it, which "
            "could run code; copy it again, or save a state_dict"
        ) from None

    if form != str(FORMAT):
        raise UserError(f"{path}: written in format {form}, this code reads format {FORMAT}")

    return content


@contextmanager
def understood(path: Path) -> Iterator[None]:
    """What makes no sense in the content of a file becomes one line that names the file."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
        if lacks_memory(e):
            raise
        reason = " ".join(str(e).split())[:200]
        raise UserError(
            f"{path}: damaged, or no checkpoint of this project or of the released code "
            f"({type(e).__name__}: {reason}); use another one, or train anew"
        ) from None


def load_model(path: str | Path) -> LoadedModel:
    """A network from one of our checkpoints or from a bare state_dict, ours or released.

    The network is made from the shapes of the weights.

    Args:
        path: ``final.pt``, ``last.pt``, a milestone, or a released ``.pth``.

    Raises:
        UserError: see :func:`read`; also where weights are missing, unexpected, not finite, or of
            another shape than others or the config say.
    """
    path = Path(path)
    content = read(path)

    with understood(path):
        own = "model" in content and "config" in content
        state = content["model"] if own else content
        state = {name.removeprefix("module."): value for name, value in state.items()}
        architecture = Architecture.from_state_dict(state)

        config = _own_config(content["config"], architecture) if own else _bare_config(state, path)
        config |= asdict(architecture) | {"arm": architecture.describe()}

        # Initial weights are replaced at once: leave the generator alone
        with torch.random.fork_rng(devices=[]):
            model = architecture.build().float()  # whatever torch's default is

    load_weights(model, state, path)
    # Channels last is the order of the crops: a third of the time of a batch of one on a CPU.
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    return LoadedModel(model.eval(), config, path, config["run"])


def _own_config(config: dict[str, Any], architecture: Architecture) -> dict[str, Any]:
    """The config of a file of ours, which must agree with its weights."""
    config = IMPLIED | config | {"format_name": "own"}

    said = asdict(Architecture.from_config(config))
    for name, value in asdict(architecture).items():
        if said[name] != value:
            raise ValueError(f"its config says {name} = {said[name]!r}, its weights {value!r}")

    return config | {name: kind(config[name]) for name, kind in SETTINGS.items()}  # none may lack


def _bare_config(state: dict[str, torch.Tensor], path: Path) -> dict[str, Any]:
    """What is taken for granted of a bare state_dict: the released code's way of training, unless
    only our code names SepBN's weights so.
    """
    own = "bn1.running_mean" in state and "bn1.fc1.weight" in state

    return {
        "resample": "nearest",
        "box_scale": 1.0,
        "released_geometry": not own,
        "run": path.stem,
        "format_name": "own" if own else "released",
    }


def load_weights(model: nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
    """``model.load_state_dict(state, strict=True)``; what does not fit, or is not finite, is one
    line.
    """
    with understood(path):
        model.load_state_dict(state, strict=True)
        for name, tensor in model.state_dict().items():
            if not tensor.isfinite().all():
                raise ValueError(f"{name} is not finite")
