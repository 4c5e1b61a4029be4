"""What a network is: its normalisation, its size, and which arm of the comparison that makes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.vanilla import NUM_STAGES, Baseline, BaselineSepDyBN


@dataclass(frozen=True)
class Architecture:
    """What a network is.

    Args:
        norm: ``"none"``, ``"bn"`` or ``"sepbn"``.
        num_landmarks: number of points P.
        width: channels of the first stage.
        sets, groups: K and G of SepBN; None without it.
        attention_grid: T of SepBN's attention on a grid; None for the bottleneck.
    """

    norm: str
    num_landmarks: int
    width: int
    sets: int | None = None
    groups: int | None = None
    attention_grid: int | None = None

    def build(self, temperature: float = 1.0) -> nn.Module:
        """A freshly initialised network; ``temperature`` is that of SepBN's attention."""
        size = {"num_landmarks": self.num_landmarks, "width": self.width}
        if self.norm != "sepbn":
            return Baseline(self.norm, **size)

        grid = {"attention_grid": self.attention_grid}

        return BaselineSepDyBN(self.sets, self.groups, temperature, **grid, **size)

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> Architecture:
        """Read the architecture from names and shapes of weights, of our own or the released form.

        Nothing of a network's size is allocated.

        Raises:
            ValueError: the weights are those of no network here; says why.
        """
        try:
            found = cls(
                norm="none",
                num_landmarks=state["fc2.weight"].shape[0] // 2,
                width=state["conv1.weight"].shape[0],
                **_sepbn_of(state),
            )
            if found.sets is not None:
                found = cls(**asdict(found) | {"norm": "sepbn"})
            elif any(name.startswith("bn1.") for name in state):
                found = cls(**asdict(found) | {"norm": "bn"})

            with torch.device("meta"):
                expected = found.build().state_dict()

        except KeyError as error:
            raise ValueError(f"{error} is missing") from None
        except (AttributeError, IndexError, TypeError, ZeroDivisionError) as error:
            raise ValueError(f"shapes that no network has ({error})") from None

        for name in expected:
            if name.startswith(("conv", "fc")) and name in state:
                shape, wanted = tuple(state[name].shape), tuple(expected[name].shape)
                if shape != wanted:
                    raise ValueError(f"{name} has shape {shape}, expected {wanted}")

        return found


def _sepbn_of(state: Mapping[str, Tensor]) -> dict[str, int | None]:
    """Sets, groups and grid of the SepBN modules; an empty dict where there are none."""
    own = "bn1.weight" in state and state["bn1.weight"].dim() == 2
    if own:
        sets = state["bn1.weight"].shape[0]
    elif "bn1.bn.0.weight" in state:
        sets = sum(name.startswith("bn1.bn.") and name.endswith(".weight") for name in state)
    else:
        return {}

    groups, odd = divmod(state["bn1.fc2.weight"].shape[0], sets)
    if odd or not groups:
        raise ValueError(f"bn1.fc2.weight has {groups * sets + odd} rows for {sets} sets")

    # The last module tells a grid from a bottleneck: at T = 1 they differ in their width only.
    hidden, channels = state[f"bn{NUM_STAGES}.fc1.weight"].shape[:2]
    columns = state[f"bn{NUM_STAGES}.fc2.weight"].shape[1]
    bottleneck = columns == hidden == max(1, channels // 10)
    grid = None if bottleneck else round((columns / groups) ** 0.5)

    return {"sets": sets, "groups": groups, "attention_grid": grid}


def describe_arm(config: dict[str, Any]) -> str:
    """Which arm of the comparison a network is, in words, and whether it is the published one.

    Args:
        config: needs ``norm``, ``width``, ``sets``, ``groups``, ``attention_grid``.
    """
    names = ("norm", "width", "sets", "groups", "attention_grid")
    norm, width, sets, groups, grid = (config.get(name) for name in names)

    if norm == "none":
        text, published = (
            "Vanilla CNN without normalisation: the released baseline",
            "published NME 5.70",
        )
    elif norm == "bn":
        text = "Vanilla CNN with BatchNorm: the plain counterpart of SepBN"
        published = "not published; the published 5.70 has no normalisation, --norm none"
    else:
        plural = "" if groups == 1 else "s"
        text = f"Vanilla CNN with SepBN, K = {sets} sets, G = {groups} group{plural}"

        if grid:
            text += (
                f", attention on a {grid} x {grid} grid: a reconstruction of the paper's diagram"
            )
            published = "not a published setting"
        elif (sets, groups) == (3, 1):
            text, published = text + ": as in the released code", "published NME 5.48"
        elif (sets, groups) == (3, 2):
            text, published = (
                text + ": as the method is described",
                "the released code behind the published 5.48 has G = 1",
            )
        else:
            published = "not a published setting"

    if width != 64:
        published = f"width {width}, not the published 64"

    return f"{text} ({published})"
