"""What a network is: its normalisation and size, and which arm of the comparison that makes it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from models.vanilla import NORMS, NUM_STAGES, Baseline, BaselineSepDyBN, VanillaCNN

SEPBN_SIZE = ("sets", "groups", "attention_grid")  # fields of Architecture that SepBN alone has

# (sets, groups, grid) -> what stands behind a network's words, and whether it is published
KNOWN_SEPBN: dict[tuple[int | None, ...], tuple[str, str]] = {
    (3, 1, None): (": as in the released code", "a published network"),
    (3, 2, None): (": as the method is described", "the released code has G = 1"),
}


@dataclass(frozen=True)
class Architecture:
    """All that the shapes of a network's weights follow from.

    Args:
        norm: one of ``NORMS``.
        num_landmarks: number of points P.
        width: channels of the first stage.
        sets: K of SepBN; None for other normalisations, like the two below.
        groups: G of SepBN.
        attention_grid: T of SepBN's attention on a grid; None as in the released code.
    """

    norm: str
    num_landmarks: int
    width: int
    sets: int | None = None
    groups: int | None = None
    attention_grid: int | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Architecture:
        """The architecture that a run's settings ask for; what concerns SepBN alone may be
        absent.
        """
        names = ("num_landmarks", "width", *(SEPBN_SIZE if config["norm"] == "sepbn" else ()))
        sizes: dict[str, Any] = {name: config.get(name) for name in names}

        return cls(config["norm"], **sizes)

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> Architecture:
        """The architecture that weights of ours, or of the released code, have.

        Looks at a few names and shapes only: whether all weights fit shows when they are loaded.
        Raises whatever a lookup raises where these few are not those of the Vanilla CNN.
        """
        size: dict[str, Any] = {
            "num_landmarks": len(state["fc2.bias"]) // 2,
            "width": len(state["conv1.weight"]),
        }

        # The last stage tells the two kinds of attention apart at every width.
        layer = f"bn{NUM_STAGES}"
        fitting = (
            name
            for name, norm in NORMS.items()
            if not norm.entry or f"{layer}.{norm.entry}" in state
        )
        name = next(fitting)
        if name == "sepbn":
            size |= _sepbn_size(state, layer)

        return cls(name, **size)

    def build(self, temperature: float = 1.0) -> VanillaCNN:
        """A freshly initialised network; ``temperature`` is SepBN's softmax temperature."""
        size = {"num_landmarks": self.num_landmarks, "width": self.width}
        if self.norm != "sepbn":
            return Baseline(self.norm, **size)

        assert self.sets is not None and self.groups is not None

        return BaselineSepDyBN(
            self.sets, self.groups, temperature, attention_grid=self.attention_grid, **size
        )

    def describe(self) -> str:
        """Which arm of the comparison this is, in words, and whether it is the published one."""
        norm = NORMS.get(self.norm)
        if norm is None:  # of an experiment, or a network of one's own
            return f"{self.norm}: not an arm of the comparison"

        text, published = norm.words, norm.published
        if self.norm == "sepbn":
            plural = "" if self.groups == 1 else "s"
            text += f", K = {self.sets} sets, G = {self.groups} group{plural}"
            if grid := self.attention_grid:
                text += f", attention on a {grid} x {grid} grid: a reconstruction of the paper's "
                text += "diagram"

            unknown = ("", "not a published setting")
            more, published = KNOWN_SEPBN.get((self.sets, self.groups, grid), unknown)
            text += more

        if self.width != 64:
            published = f"width {self.width}, not the published 64"

        return f"{text} ({published})"


def _sepbn_size(state: Mapping[str, Tensor], layer: str) -> dict[str, Any]:
    """Sets, groups and grid of a SepBN module, in our form or the released one (a list ``bn``)."""
    if f"{layer}.weight" in state:
        sets = len(state[f"{layer}.weight"])
    else:
        sets = sum(name.startswith(f"{layer}.bn.") and name.endswith(".weight") for name in state)

    outputs, inputs = state[f"{layer}.fc2.weight"].shape[:2]
    groups = outputs // sets
    # On a grid, each group has one hidden channel
    on_grid = len(state[f"{layer}.fc1.weight"]) == groups
    grid = math.isqrt(inputs // groups) if on_grid else None

    return {"sets": sets, "groups": groups, "attention_grid": grid}
