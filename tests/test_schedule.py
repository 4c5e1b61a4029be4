"""Schedules at their corners and against the released recipe's figures."""

from __future__ import annotations

import math

import pytest

from utils.schedule import learning_rate, temperature

RECIPE = {"total_steps": 2000 * 937, "warmup_steps": 800 * 937, "peak": 1e-3}


def test_learning_rate_at_the_corners():
    assert learning_rate(0, **RECIPE) == pytest.approx(1e-10, rel=1e-9)
    assert learning_rate(400 * 937, **RECIPE) == pytest.approx(0.5e-3, rel=1e-6)
    assert learning_rate(800 * 937, **RECIPE) == pytest.approx(1e-3)
    assert learning_rate(1400 * 937, **RECIPE) == pytest.approx(0.5e-3, rel=1e-6)
    assert learning_rate(2000 * 937, **RECIPE) == pytest.approx(1e-10, rel=1e-3)


def test_learning_rate_falls_along_half_a_cosine():
    for share in (0.1, 0.25, 0.9):
        step = round((800 + 1200 * share) * 937)
        assert learning_rate(step, **RECIPE) == pytest.approx(
            1e-3 * (1 + math.cos(math.pi * share)) / 2, rel=1e-4
        )


def test_a_run_without_warmup_starts_at_the_peak():
    assert learning_rate(0, total_steps=10, warmup_steps=0, peak=0.1) == pytest.approx(0.1)


def test_temperature_falls_by_one_an_epoch_and_stays_at_one():
    found = [temperature(epoch, start=30.0) for epoch in (0, 1, 28, 29, 30, 2000)]
    assert found == [30, 29, 2, 1, 1, 1]
