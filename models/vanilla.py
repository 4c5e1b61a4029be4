"""The Vanilla CNN of the paper: six convolution stages and two linear layers, with three kinds of
normalisation.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from models.sepbn import SepBatchNorm2d

NUM_STAGES = 6
NEGATIVE_SLOPE = 0.01


class Norm(NamedTuple):
    """A normalisation after each convolution: all that the code knows of it."""

    layer: Callable[..., nn.Module] | None  # makes it for a number of channels; None: there is none
    words: str  # what a network with it is
    published: str  # whether that is a published one
    entry: str  # of the layer's state_dict, which no norm below has


# --norm -> what it is. A file's norm is the first whose entry its last stage has.
NORMS = {
    "sepbn": Norm(SepBatchNorm2d, "Vanilla CNN with SepBN", "", "fc1.weight"),
    "bn": Norm(
        nn.BatchNorm2d,
        "Vanilla CNN with BatchNorm: the plain counterpart of SepBN",
        "not published; the published baseline has no normalisation, --norm none",
        "running_mean",
    ),
    "none": Norm(
        None,
        "Vanilla CNN without normalisation: the released baseline",
        "a published network",
        "",
    ),
}


class VanillaCNN(nn.Module):
    r"""Landmark coordinates regressed directly from a 128 x 128 face crop.

    Six stages, each 3x3 convolution -> normalisation -> 2x2 max-pool -> LeakyReLU(0.01), then two
    linear layers. The channels are :math:`w \cdot (1, 2, 4, 8, 16, 32)` for width :math:`w`.
    LeakyReLU is monotone, so it gives the same values after the pool as before it, for a quarter of
    the work.

    Args:
        norm: makes the normalisation layer for a number of channels, or None for no normalisation.
            Whatever it makes is called ``bn1`` to ``bn6``, as in the released weights.
        num_landmarks: number of points P.
        width: channels of the first stage; 64 as published.

    Shape:
        - Input: :math:`(N, 3, 128, 128)`, pixels scaled to about [-1, 1].
        - Output: :math:`(N, 2P)`: x0 y0 x1 y1 ... in crop pixels.

    State dicts of the released training code load as they are, also with their ``module.`` prefix.
    """

    def __init__(
        self,
        norm: Callable[[int], nn.Module] | None = None,
        num_landmarks: int = 98,
        width: int = 64,
    ):
        super().__init__()
        channels = [3] + [width * 2**stage for stage in range(NUM_STAGES)]
        for stage in range(1, NUM_STAGES + 1):
            convolution = nn.Conv2d(channels[stage - 1], channels[stage], 3, padding=1)
            self.add_module(f"conv{stage}", convolution)
            if norm is not None:
                self.add_module(f"bn{stage}", norm(channels[stage]))

        self.fc1 = nn.Linear(channels[-1] * 2 * 2, channels[-1])
        self.fc2 = nn.Linear(channels[-1], 2 * num_landmarks)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every convolution and linear weight (the attention's as well) anew and zero their
        biases.
        """
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        for stage in range(1, NUM_STAGES + 1):
            x = getattr(self, f"conv{stage}")(x)
            normalise = getattr(self, f"bn{stage}", None)
            if normalise is not None:
                x = normalise(x)

            x = F.leaky_relu(F.max_pool2d(x, 2), NEGATIVE_SLOPE)

        x = x.flatten(1)  # (N, 32w, 2, 2) -> (N, 128w), channel-major whatever the memory format
        x = F.leaky_relu(self.fc1(x), NEGATIVE_SLOPE)

        return self.fc2(x)  # (N, 2P)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        # A network that was saved while DataParallel held it has "module." in front of every name.
        wrapped = prefix + "module."
        for name in [name for name in state_dict if name.startswith(wrapped)]:
            state_dict[prefix + name[len(wrapped) :]] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *args)


def Baseline(norm: str = "bn", num_landmarks: int = 98, width: int = 64) -> VanillaCNN:
    """The Vanilla CNN with BatchNorm (``norm="bn"``) or, as in the released baseline, without any
    (``norm="none"``).
    """
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")
    return VanillaCNN(NORMS[norm].layer, num_landmarks, width)


def BaselineSepDyBN(
    num_sets: int = 3,
    groups: int = 2,
    temperature: float = 30.0,
    *,
    attention_grid: int | None = None,
    num_landmarks: int = 98,
    width: int = 64,
) -> VanillaCNN:
    """The Vanilla CNN with SepBN after each convolution; ``groups=1`` is the released code, 2 the
    published figures.
    """
    attention: dict[str, Any] = {"attention_grid": attention_grid, "temperature": temperature}
    norm = partial(SepBatchNorm2d, num_sets=num_sets, groups=groups, **attention)

    return VanillaCNN(norm, num_landmarks, width)


def released_state_dict(model: VanillaCNN) -> dict[str, Tensor]:
    """The model's weights under the names of the released training code (K BatchNorms in every
    SepBN).

    Networks without SepBN have the same names in both worlds. Raises ValueError where the released
    code has no place for what the model is: more than one channel group, attention on a grid, or a
    temperature other than 1.
    """
    state = model.state_dict()

    for name, module in model.named_modules():
        if not isinstance(module, SepBatchNorm2d):
            continue

        temperature = module.temperature.item()
        if (module.groups, module.attention_grid, temperature) != (1, None, 1):
            raise ValueError(
                f"{name}: the released form has one channel group, no attention on a grid and "
                f"temperature 1, not {module.groups}, {module.attention_grid} and {temperature:g}"
            )

        del state[f"{name}.temperature"]
        for key in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            value = state.pop(f"{name}.{key}")
            for k in range(module.num_sets):
                own = value[k] if value.dim() == 2 else value  # (K, C), or shared by the sets
                state[f"{name}.bn.{k}.{key}"] = own.clone()

    return dict(state)
