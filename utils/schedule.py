"""Schedules of the training recipe, as pure functions of the step or the epoch."""

from __future__ import annotations

import math

FLOOR = 1e-10  # learning rate at both ends of the schedule


def learning_rate(step: int, *, total_steps: int, warmup_steps: int, peak: float) -> float:
    """Learning rate of iteration ``step`` (from 0): linear warm-up, then half a cosine down.

    Rises linearly from 1e-10 at step 0 to ``peak`` at ``warmup_steps``, then falls along half a
    cosine to 1e-10 at ``total_steps``.
    """
    if step < warmup_steps:
        return FLOOR + (peak - FLOOR) * step / warmup_steps

    done = (step - warmup_steps) / (total_steps - warmup_steps)

    return FLOOR + (peak - FLOOR) * 0.5 * (1.0 + math.cos(math.pi * done))


def temperature(epoch: int, *, start: float) -> float:
    """Softmax temperature of SepBN's attention in ``epoch`` (from 0): max(1, start - epoch).

    A run shorter than ``start`` ends above 1; its checkpoints keep what it ended with.
    """
    return max(1.0, start - epoch)
