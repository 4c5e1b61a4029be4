"""The weights before the first step: those of another network, also one of other landmarks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dataset.faces import FaceSet
from dataset.landmarks import (
    EYELIDS_68,
    IBUG_68,
    WFLW_98,
    LandmarkScheme,
    counterparts,
    scheme_of_network,
    to_ibug_68,
)
from models.checkpoint import LoadedModel, load_weights
from models.sepbn import SepBatchNorm2d
from models.vanilla import VanillaCNN
from training.config import NETWORK, TAU, TrainConfig
from utils.files import UserError


def settings_of_file(loaded: LoadedModel) -> dict[str, Any]:
    """What :meth:`TrainConfig.settled` takes from the file of ``--init``."""
    layers = [m for m in loaded.model.modules() if isinstance(m, SepBatchNorm2d)]
    return loaded.config | {TAU: layers[0].temperature.item() if layers else None}


def start_from(model: VanillaCNN, loaded: LoadedModel, faces: FaceSet, config: TrainConfig) -> str:
    """Give a fresh network the weights of a file.

    Points that the file's network has too keep their rows of the last layer (the lids of 68 are
    interpolated from 98). The others start at the mean shape; with ``config.mean_shape_init`` the
    last layer is not taken at all, and all of them do.

    Returns:
        What became of the last layer, in words.

    Raises:
        UserError: the networks differ, or nothing says which landmarks the file's are.
    """
    for name in NETWORK:
        own, asked = loaded.config[name], getattr(config, name)
        if own != asked:
            advice = f"leave out --{name.replace('_', '-')}"
            if name == "norm":
                advice = "trainBaseline.py takes bn and none, trainBaselineSepDyBN.py sepbn"
            raise UserError(
                f"{loaded.path}: its weights do not fit the network: {name.replace('_', ' ')} is "
                f"{own}, not {asked}; {advice}"
            )

    theirs = loaded.model.state_dict()
    words = "last layer as it is"
    if config.mean_shape_init:
        own, words = model.fc2.state_dict(), "last layer anew, at the mean shape"
        theirs |= {f"fc2.{name}": tensor.clone() for name, tensor in own.items()}
    elif (scheme := _scheme_of(loaded, faces.scheme)) != faces.scheme:
        weight, bias, words = _other_landmarks(loaded, scheme, faces)
        theirs |= {"fc2.weight": weight, "fc2.bias": bias}

    load_weights(model, theirs, loaded.path)

    return words


def _scheme_of(loaded: LoadedModel, wanted: LandmarkScheme) -> LandmarkScheme:
    """The scheme of a file's landmarks; that of the faces where as many points say no other."""
    as_many = loaded.config["num_landmarks"] == wanted.num_points
    if as_many and loaded.config.get("scheme_definition") is None:
        return wanted

    return scheme_of_network(loaded.config, loaded.path)


def _other_landmarks(
    loaded: LoadedModel, scheme: LandmarkScheme, faces: FaceSet
) -> tuple[Tensor, Tensor, str]:
    """Weight and bias of a last layer for the faces' landmarks, and what they are in words."""
    wanted, state = faces.scheme, loaded.model.state_dict()
    same = counterparts(wanted, scheme)
    known = [i for i, point in enumerate(same) if point is not None]

    # Rows of x and y side by side, the bias as a last column: (2Q, D) -> (D + 1, Q, 2)
    theirs = torch.cat((state["fc2.weight"], state["fc2.bias"][:, None]), 1).T.unflatten(1, (-1, 2))
    ours = torch.zeros(len(theirs), wanted.num_points, 2)
    ours[-1] = faces.mean_shape()
    ours[:, known] = theirs[:, [same[i] for i in known]]

    lids = list(EYELIDS_68) if (scheme, wanted) == (WFLW_98, IBUG_68) else []
    if lids:
        ours[:, lids] = torch.from_numpy(to_ibug_68(theirs.numpy()))[:, lids]

    rest = wanted.num_points - len(known) - len(lids)
    counts = {"points copied": len(known), "interpolated": len(lids), "at the mean shape": rest}
    words = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    rows = ours.flatten(1).T  # (D + 1, P, 2) -> (2P, D + 1)

    return rows[:, :-1].contiguous(), rows[:, -1].contiguous(), f"last layer: {words}"


def describe_start(config: TrainConfig, asked: TrainConfig, loaded: LoadedModel, words: str) -> str:
    """One line that says what ``--init`` gave: the settings that ``asked`` left open, the points,
    and how the patches that the network knows were cut.
    """
    names = [name for name in (*NETWORK, TAU) if getattr(asked, name) is None]
    values = [(name.replace("_", " "), getattr(config, name)) for name in names]
    taken = [f"{name} {value}" for name, value in values if value is not None]
    resample, scale = loaded.config["resample"], loaded.config["box_scale"]
    cut = f"its patches cut with {resample}, box scale {scale:g}"

    return f"start     {loaded.path}: {', '.join([*taken, words, cut])}"
