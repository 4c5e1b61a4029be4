"""Checkpoints: atomic to write, safe and strict to load, in our own form and in that of the
released code.

Our own file is ``{"model": state_dict, "config": {...}, "format": 1}``; ``last.pt`` carries
``"training"``, the state of the loop, besides. A released file is a bare state_dict, recognised
from its keys.
"""

from __future__ import annotations

import io
import pickle
import reprlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.architecture import SEPBN_SIZE, Architecture
from utils.files import UserError, atomic_write

FORMAT = 1
# the SepBN network that comes with the code
SHIPPED = Path(__file__).resolve().parent.parent / "checkpoints" / "sepbn16.pt"
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# Settings besides the architecture that every config has, and of which kind they are
SETTINGS: dict[str, Any] = {
    "resample": str,
    "box_scale": (int, float),
    "released_geometry": bool,
    "run": str,
}
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
        UserError: missing, truncated, not a checkpoint, or a pickle of anything but tensors and
            plain values.
    """
    path = Path(path)

    try:
        if not path.is_file():
            raise UserError(f"{path}: no such checkpoint file")

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old forms; what matters is checked below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: refused, since it is no plain checkpoint: it is damaged or holds Python "
            "objects, which could run code; save a state_dict instead"
        ) from None
    except PermissionError:
        raise UserError(f"{path}: no permission to read it; allow it, or copy the file") from None
    except Exception:  # in a damaged file torch.load stumbles over anything
        raise UserError(
            f"{path}: truncated or not a checkpoint; copy it again or use another one"
        ) from None

    if not isinstance(content, dict):
        raise UserError(
            f"{path}: holds a {type(content).__name__}, not a checkpoint or a state_dict"
        )

    return content


def _short(value: Any) -> str:
    """What a file holds, for a message of one line."""
    return " ".join(reprlib.repr(value).split())


def check_own(content: dict[str, Any], path: Path) -> None:
    """Check the parts of a file in our own form, but not yet whether weights and config agree.

    Raises:
        UserError: another format; a part or a setting is missing or of an impossible kind; see
            also :func:`check_weights`.
    """
    if _short(content.get("format")) != str(FORMAT):
        raise UserError(
            f"{path}: written in format {_short(content.get('format'))}, this code reads format "
            f"{FORMAT}"
        )

    if not isinstance(content.get("config"), dict):
        raise UserError(f"{path}: it holds no config; use a checkpoint written by this project")

    config = IMPLIED | content["config"]
    for name, kind in SETTINGS.items():
        if not isinstance(config.get(name), kind):
            raise UserError(
                f"{path}: its config says {name} = {_short(config.get(name))}, which cannot be; "
                "use a checkpoint written by this project"
            )

    check_weights(content.get("model"), path)


def check_weights(state: Any, path: Path) -> None:
    """Check that ``state`` is names and finite tensors.

    Raises:
        UserError: naming the first entry that cannot be a network's weight.
    """
    if not isinstance(state, dict):
        raise UserError(f"{path}: its weights are a {type(state).__name__}, not a state_dict")

    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            said = "is no tensor with a name"
        elif tensor.layout != torch.strided or tensor.is_meta:
            said = "is no ordinary tensor"
        elif tensor.dtype not in FLOATS and not name.endswith("num_batches_tracked"):
            said = f"is {tensor.dtype}, not floating-point"
        elif not torch.isfinite(tensor.float()).all():
            said = "is not finite"
        else:
            continue

        raise UserError(f"{path}: {_short(name)} {said}: no weights of a network; use another file")


def load_model(path: str | Path, device: torch.device | str = "cpu") -> LoadedModel:
    """A network from one of our checkpoints or from a bare state_dict, ours or released.

    The network is made from the shapes of the weights.

    Args:
        path: ``final.pt``, ``last.pt``, a milestone, or a released ``.pth``.
        device: where to put the network.

    Raises:
        UserError: see :func:`read`, :func:`check_own`; also where weights are missing, unexpected
            or of another shape than others or the config say.
    """
    path = Path(path)
    content = read(path)
    own = "model" in content and "config" in content

    if own:
        check_own(content, path)
        state, config = content["model"], IMPLIED | content["config"]
    else:
        check_weights(content, path)
        state, config = content, {}

    state = {name.removeprefix("module."): value for name, value in state.items()}
    architecture = _architecture(state, path)

    if own:
        _refuse_contradictions(architecture, config, path)
        config["format_name"] = "own"
    else:
        config = _bare_config(state, path)

    config |= architecture.as_config() | {"arm": architecture.describe()}

    # Initial weights are replaced at once: leave the generator alone
    with torch.random.fork_rng(devices=[]):
        model = architecture.build()

    load_weights(model, state, path)
    # Channels last is the order of the crops: a third of the time of a batch of one on a CPU.
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    return LoadedModel(model.eval(), config, path, config["run"])


def _architecture(state: dict[str, torch.Tensor], path: Path) -> Architecture:
    try:
        return Architecture.from_state_dict(state)
    except ValueError as error:
        raise UserError(
            f"{path}: neither a checkpoint of this project nor a released state_dict ({error})"
        ) from None


def _refuse_contradictions(architecture: Architecture, config: dict[str, Any], path: Path) -> None:
    """Refuse a config that says other than the weights; SepBN's settings count with SepBN."""
    for name, value in architecture.as_config().items():
        said, counts = config.get(name), architecture.norm == "sepbn" or name not in SEPBN_SIZE
        if counts and (type(said) is not type(value) or said != value):
            raise UserError(
                f"{path}: its config says {name} = {_short(said)}, its weights say {value}; "
                "use a checkpoint written by this project"
            )


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
    """``model.load_state_dict(state, strict=True)``, with its complaints in one line."""
    try:
        model.load_state_dict(state, strict=True)
    except (RuntimeError, AttributeError, TypeError) as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
        more = f" (and {len(lines) - 1} more complaints)" if len(lines) > 1 else ""
        raise UserError(
            f"{path}: its weights do not fit the network: {lines[0][:200]}{more}"
        ) from None
