"""What is set for whole models: weight decay, temperature."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models import (
    SepBatchNorm1d,
    SepBatchNorm2d,
    TemperatureSchedule,
    parameter_groups,
    set_temperature,
)


def make_model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), SepBatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2), SepBatchNorm1d(2)
    )


def temperatures(model: nn.Module) -> list[float]:
    return [layer.temperature.item() for layer in model if hasattr(layer, "temperature")]


def test_affine_maps_and_biases_do_not_decay():
    model = make_model()
    model(torch.randn(2, 3, 5, 5))
    model[0].bias.requires_grad_(False)
    decayed, kept = parameter_groups(model, 0.05)
    names = {parameter: name for name, parameter in model.named_parameters()}

    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.05, 0)
    assert [names[parameter] for parameter in decayed["params"]] == [
        *("0.weight", "1.fc1.weight", "1.fc2.weight"),
        *("3.weight", "4.fc1.weight", "4.fc2.weight"),
    ]
    assert [names[parameter] for parameter in kept["params"]] == [
        *("1.weight", "1.bias", "3.bias", "4.weight", "4.bias"),
    ]
    torch.optim.AdamW([decayed, kept], lr=0.1)


def test_temperature_of_all_layers():
    model = make_model()
    set_temperature(model, 7)
    assert temperatures(model) == [7, 7]
    for wrong in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="temperature must be positive"):
            set_temperature(model, wrong)
    assert temperatures(model) == [7, 7]


def test_schedule():
    model = make_model()
    schedule = TemperatureSchedule(model, 3.5)
    found = [temperatures(model)]
    for _ in range(4):
        schedule.step()
        found.append(temperatures(model))
    assert found == [[value, value] for value in (3.5, 2.5, 1.5, 1.0, 1.0)]

    other = make_model()
    resumed = TemperatureSchedule(other, 30, end=2, decrease=4)
    assert temperatures(other) == [30, 30]
    resumed.load_state_dict({**schedule.state_dict(), "steps": 2})
    assert temperatures(other) == [1.5, 1.5]
    with pytest.raises(ValueError, match="temperature"):
        TemperatureSchedule(model, 30, end=0)
