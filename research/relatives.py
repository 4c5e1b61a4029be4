"""SepBN's nearest relatives, as further arms of the experiments.

``an-kK`` is Attentive Normalization (Li, Sun, Wu; ECCV 2020, arXiv 1908.01259) with K affine maps,
``bn-se`` BatchNorm followed by squeeze-and-excitation (Hu, Shen, Sun; CVPR 2018, arXiv 1709.01507).
Both take BatchNorm's place in the Vanilla CNN. They are here to be compared with, not to be used:
checkpoints of these arms are read by this module alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import checkpoint
from models.architecture import Architecture
from models.vanilla import VanillaCNN
from training.config import TrainConfig

SE_REDUCTION = 16  # as published


class AttentiveNorm2d(nn.Module):
    r"""Batch normalisation, then K learnt affine maps, summed with weights that the input decides.

    .. math::
        \lambda_n &= \operatorname{hardsigmoid}(\operatorname{BN}_K(W \bar x_n)) \\
        y_{nc} &= \Big(\sum_k \lambda_{nk} \gamma_{kc}\Big) \hat x_{nc}
            + \sum_k \lambda_{nk} \beta_{kc}

    with :math:`\bar x_n` the C means of a sample's maps. Other than SepBN's attention weights, the
    K weights :math:`\lambda_n` do not sum to 1, have no temperature, and come from one layer
    without a bottleneck.

    Args:
        num_features: channels C.
        num_sets: affine maps K.

    Shape:
        - Input and output: :math:`(N, C, H, W)`
    """

    def __init__(self, num_features: int, num_sets: int) -> None:
        super().__init__()
        self.normalise = nn.BatchNorm2d(num_features, affine=False)
        self.squeeze = nn.Conv2d(num_features, num_sets, 1, bias=False)
        self.normalise_weights = nn.BatchNorm2d(num_sets)
        self.weight = nn.Parameter(torch.empty(num_sets, num_features).normal_(1, 0.1))
        self.bias = nn.Parameter(torch.empty(num_sets, num_features).normal_(0, 0.1))

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean(dim=(2, 3), keepdim=True)  # (N, C, 1, 1)
        weights = F.hardsigmoid(self.normalise_weights(self.squeeze(pooled))).flatten(1)  # (N, K)

        scale, shift = weights @ self.weight, weights @ self.bias  # (N, C)
        return scale[:, :, None, None] * self.normalise(x) + shift[:, :, None, None]


class SqueezeExcitedBatchNorm2d(nn.BatchNorm2d):
    r"""Batch normalisation, then every channel of a sample times a gate that all its channels
    decide.

    .. math::
        z = \operatorname{BN}(x), \qquad
        y_{nc} = z_{nc} \operatorname{sigmoid}(W_2 \operatorname{relu}(W_1 \bar z_n + b_1) + b_2)_c

    with :math:`\bar z_n` the C means of a sample's normalised maps and :math:`W_1` of
    :math:`\max(1, C/r)` rows.

    Args:
        num_features: channels C.

    Shape:
        - Input and output: :math:`(N, C, H, W)`
    """

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        hidden = max(1, num_features // SE_REDUCTION)
        self.squeeze = nn.Conv2d(num_features, hidden, 1)
        self.excite = nn.Conv2d(hidden, num_features, 1)

    def forward(self, x: Tensor) -> Tensor:
        normalised = super().forward(x)
        pooled = normalised.mean(dim=(2, 3), keepdim=True)  # (N, C, 1, 1)
        return normalised * torch.sigmoid(self.excite(F.relu(self.squeeze(pooled))))


def layer_of(norm: str) -> Callable[[int], nn.Module] | None:
    """Makes an arm's layer for a number of channels; None where the arm is not of this module."""
    if norm == "bn-se":
        return SqueezeExcitedBatchNorm2d
    match = re.fullmatch(r"an-k([1-9]\d*)", norm)
    return match and partial(AttentiveNorm2d, num_sets=int(match[1]))


def build(config: TrainConfig, num_landmarks: int) -> VanillaCNN:
    """The network of an arm, of this module or of the project."""
    layer = layer_of(config.norm)
    if layer is not None:
        return VanillaCNN(layer, num_landmarks, config.width)

    settings = asdict(config) | {"num_landmarks": num_landmarks}
    return Architecture.from_config(settings).build(config.temperature or 1.0)


def load_network(path: Path) -> nn.Module:
    """A trained network of any arm, in evaluation mode, on the CPU."""
    content = checkpoint.read(path)
    config = content["config"]
    layer = layer_of(config["norm"])
    if layer is None:
        return checkpoint.load_model(path).model

    model = VanillaCNN(layer, config["num_landmarks"], config["width"])
    checkpoint.load_weights(model, content["model"], path)

    return model.to(memory_format=torch.channels_last).eval()
