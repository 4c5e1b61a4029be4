"""What a network is: its normalisation, its size, and which arm of the comparison that makes it."""

from __future__ import annotations

from typing import Any


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
