"""Whole models: conversion, weight decay, temperature; networks that others could have written."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize, prune

from benchmarks.converted import UNet, chain
from models import (
    SepBatchNorm1d,
    SepBatchNorm2d,
    TemperatureSchedule,
    convert_batchnorm,
    parameter_groups,
    set_temperature,
    synchronize_statistics,
)

NETWORKS = {
    "U-Net": (UNet, (2, 3, 16, 16)),
    "1-D": (lambda: chain("1d", 3, 8, 16), (16, 3, 20)),
    "2-D": (lambda: chain("2d", 3, 8, 16), (8, 3, 8, 8)),
    "3-D": (lambda: chain("3d", 3, 8, 16), (8, 3, 6, 6, 6)),
}


def norms(model: nn.Module) -> list[nn.Module]:
    return [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]


def randomise(model: nn.Module) -> nn.Module:
    for layer in norms(model):
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
    return model


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", NETWORKS)
def test_same_function_after_conversion(name, layout, training, caplog):
    torch.manual_seed(0)
    build, shape = NETWORKS[name]
    model, x = randomise(build()).train(training), torch.randn(shape)
    if len(shape) == 4:
        model, x = model.to(memory_format=layout), x.contiguous(memory_format=layout)
    saved = {key: value.clone() for key, value in model.state_dict().items()}
    expected = model(x)
    moved = {key: value.clone() for key, value in model.state_dict().items()}
    model.load_state_dict(saved)  # the running estimates have moved in training

    count = len(norms(model))
    with caplog.at_level("INFO"):
        assert convert_batchnorm(model, num_sets=4, groups=2, hidden=3) is model
    assert f"converted {count} " in caplog.text
    assert {layer.fc1.weight.shape[0] for layer in norms(model)} == {3}
    for key, value in model.state_dict().items():  # every set begins as the layer that it was
        assert key not in saved or torch.equal(value, saved[key].expand_as(value)), key

    model.load_state_dict(saved)  # from before the conversion
    for layer in norms(model):  # whatever the attention says
        nn.init.normal_(layer.fc1.weight, std=3)
        nn.init.normal_(layer.fc2.weight, std=3)
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-4)
    for key, value in moved.items():
        if "running" in key:
            torch.testing.assert_close(model.state_dict()[key], value)
    with pytest.raises(RuntimeError, match="unexpected"):
        model.load_state_dict({**saved, "unexpected": torch.zeros(1)})


def test_settings_are_kept():
    norm = nn.BatchNorm2d(6, eps=0.01, momentum=None, dtype=torch.float64).eval()
    norm.num_batches_tracked.fill_(7)
    norm.running_var.fill_(3)
    norm.bias.requires_grad_(False)
    new = convert_batchnorm(norm, 2, 3, temperature=5.0, reduction=0.5)

    assert isinstance(new, SepBatchNorm2d)
    assert (new.num_sets, new.groups) == (2, 3)
    assert (new.eps, new.momentum, new.training) == (0.01, None, False)
    assert new.temperature == 5 and new.fc1.weight.shape[0] == 3 and new.num_batches_tracked == 7
    assert new.running_var.eq(3).all()
    assert new.weight.dtype == new.running_mean.dtype == torch.float64
    assert new.weight.requires_grad and not new.bias.requires_grad and new.fc1.weight.requires_grad
    assert not new.synchronized and convert_batchnorm(nn.SyncBatchNorm(6)).synchronized

    frozen = convert_batchnorm(nn.BatchNorm2d(6).requires_grad_(False))
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


@pytest.mark.parametrize("options", [{"affine": False}, {"track_running_stats": False}])
def test_layers_without_maps_or_without_statistics(options):
    model = nn.Sequential(nn.BatchNorm2d(4, **options))
    x = torch.randn(3, 4, 5, 5)
    expected = [model.train(mode)(x) for mode in (True, False)]
    model[0].reset_running_stats()
    new = convert_batchnorm(model)[0]

    assert isinstance(new, SepBatchNorm2d)
    found = {"affine": new.affine, "track_running_stats": new.track_running_stats}
    assert found == {"affine": True, "track_running_stats": True, **options}
    for mode, output in zip((True, False), expected, strict=True):
        torch.testing.assert_close(model.train(mode)(x), output)


@pytest.mark.skipif(torch.__version__ < "2.13", reason="needs 2.13")
def test_layers_without_shifts():
    new = convert_batchnorm(nn.BatchNorm2d(6, bias=False))
    assert new.bias is None and new.weight.shape == (3, 6)
    frozen = convert_batchnorm(nn.BatchNorm2d(6, bias=False).requires_grad_(False))
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_shared_layers_stay_shared():
    shared = nn.BatchNorm2d(12)
    twice = convert_batchnorm(nn.Sequential(shared, nn.ReLU(), nn.ModuleDict({"norm": shared})))
    assert twice[0] is twice[2]["norm"] and isinstance(twice[0], SepBatchNorm2d)


class BatchNormAct2d(nn.BatchNorm2d):
    """Like timm's: it is a BatchNorm2d, and it carries the activation."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


@pytest.mark.parametrize(
    ("layer", "options", "error", "message"),
    [
        (BatchNormAct2d(8), {}, TypeError, r"layer 1\.norm: BatchNormAct2d is not taken"),
        (nn.LazyBatchNorm2d(), {}, TypeError, r"1\.norm: LazyBatchNorm2d .* after a forward"),
        (prune.identity(nn.BatchNorm2d(8), "weight"), {}, ValueError, r"1\.norm: .*weight_orig"),
        (nn.BatchNorm2d(8), {"groups": 3}, ValueError, r"1\.norm: .*\(8\).* groups \(3\)"),
        (nn.BatchNorm2d(8), {"eps": 0.1}, TypeError, "takes no eps"),
        (nn.BatchNorm2d(8), {"affine": False}, TypeError, "takes no affine"),
        (nn.BatchNorm2d(8), {"set_count": 3}, TypeError, "takes no set_count"),
    ],
    ids=str,
)
def test_what_cannot_be_converted_is_named_and_nothing_changes(layer, options, error, message):
    model = nn.Sequential(nn.BatchNorm2d(9), nn.ModuleDict({"norm": layer}))
    with pytest.raises(error, match=message):
        convert_batchnorm(model, **options)
    assert type(model[0]) is nn.BatchNorm2d and model[1]["norm"] is layer
    if error is TypeError and not options:
        with pytest.raises(error, match=message):
            synchronize_statistics(model)
        assert type(model[0]) is nn.BatchNorm2d


def test_lazy_layers_after_their_first_pass_and_a_layer_alone():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.LazyBatchNorm2d())
    model(torch.randn(2, 1, 5, 5))
    assert isinstance(convert_batchnorm(model)[1], SepBatchNorm2d)
    with pytest.raises(ValueError, match="^layer itself: num_features"):
        convert_batchnorm(nn.BatchNorm2d(8), groups=3)


def test_other_layers_are_left_alone():
    model = nn.Sequential(nn.InstanceNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm(4))
    with pytest.warns(UserWarning, match="no BatchNorm"):
        kinds = [type(layer) for layer in convert_batchnorm(model)]
    assert kinds == [nn.InstanceNorm2d, nn.GroupNorm, nn.LayerNorm]


def test_synchronised_layers_keep_their_group_and_take_any_dimensions():
    group = object()
    model = nn.Sequential(nn.Linear(5, 8), nn.SyncBatchNorm(8, process_group=group))
    x = torch.randn(3, 5)
    expected = model.eval()(x)
    convert_batchnorm(model)
    assert model[1].process_group is group and model[1].synchronized
    assert synchronize_statistics(model)[1].process_group is group
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("layer", [SepBatchNorm1d(4), SepBatchNorm2d(4, 1)], ids=["1d", "K=1"])
def test_torchs_conversion_to_synchronised_layers_is_refused(layer):
    model = nn.Sequential(nn.ModuleDict({"norm": layer}), nn.Linear(4, 4))
    for network in (model, layer):
        with pytest.raises(TypeError, match=r"plain BatchNorm of SepBatch.*synchronize_statistics"):
            nn.SyncBatchNorm.convert_sync_batchnorm(network)
    assert model[0]["norm"] is layer and dict(layer.named_children()).keys() == {"fc1", "fc2"}
    synchronize_statistics(
        nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(nn.BatchNorm2d(4)))
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

    parametrize.register_parametrization(model[1], "weight", nn.Identity())
    assert parameter_groups(model, 0.05)[0]["params"] == decayed["params"]


def test_temperature_of_all_layers():
    model = make_model()
    set_temperature(model, 7)
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
    for wrong in ({"start": 30, "end": 0}, {"start": 0.5}, {"start": float("nan")}):
        with pytest.raises(ValueError, match="temperature|at least"):
            TemperatureSchedule(model, **wrong)
