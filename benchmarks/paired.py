"""How everything here is timed: the contenders take turns, and ratios are taken pair by pair.

What slows the machine down for a while then slows all of them, and a median of paired ratios
forgets it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from utils.device import describe_machine

Run = Callable[[], Any]


def take_turns(
    contenders: Mapping[str, Run], pairs: int, *, warm_up: int = 1, repeats: int = 1
) -> dict[str, np.ndarray]:
    """Seconds a call of every contender, (pairs,) each; their order changes from pair to pair.

    Args:
        contenders: what is timed, by name.
        pairs: rounds in which each has its turn.
        warm_up: rounds before these, which do not count.
        repeats: calls in a turn.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}

    for pair in range(-warm_up, pairs):
        for name in list(times)[:: -1 if pair % 2 else 1]:
            began = time.perf_counter()
            for _ in range(repeats):
                contenders[name]()

            if pair >= 0:
                times[name].append((time.perf_counter() - began) / repeats)

    return {name: np.array(values) for name, values in times.items()}


def synchronised(run: Run, device: torch.device, calls: int = 1) -> Run:
    """So many calls, ending when the device's work is done: a CUDA launch returns long before."""

    def call() -> None:
        for _ in range(calls):
            run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return call


def middle(values: np.ndarray, digits: int = 2) -> str:
    """Median and range, in words."""
    low, high = values.min(), values.max()
    return f"{np.median(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def paired_ratio(first: np.ndarray, second: np.ndarray) -> str:
    """Of two contenders' times, first over second: median and range of the pairs' ratios."""
    return f"{middle(first / second, 3)}, {len(first)} pairs"


def machine(device: torch.device | None = None) -> str:
    """Hardware and versions in one line."""
    known = {name: value for name, value in describe_machine(device).items() if value is not None}
    return ", ".join(f"{name} {value}" for name, value in known.items())
