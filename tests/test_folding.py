"""SepBN folded for inference: pooling first where the order of the pixels allows it."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import make_sets_differ
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from models import Baseline, BaselineSepDyBN, SepBatchNorm2d
from models.folding import FoldedSepBN, fold_normalisation


def make_layer(lowest: float, **options) -> SepBatchNorm2d:
    torch.manual_seed(0)
    layer = SepBatchNorm2d(24, temperature=0.5, **options).eval()
    with torch.no_grad():
        layer.weight.uniform_(lowest, 2)
        if layer.bias is not None:
            layer.bias.normal_()
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.2, 2)
    return layer


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("lowest", [0.1, -0.1, -2.0])
@pytest.mark.parametrize(
    "options", [{"groups": 2}, {"attention_grid": 2}, {"bias": False}], ids=str
)
def test_pooling_first_changes_no_bit(layout, lowest, options):
    layer = make_layer(lowest, **options)
    x = torch.randn(5, 24, 12, 10).contiguous(memory_format=layout)
    folded = FoldedSepBN(layer, pool=2)
    with torch.no_grad():
        found, expected = folded(x), F.max_pool2d(FoldedSepBN(layer)(x), 2)
        assert torch.equal(found, expected)
        torch.testing.assert_close(found, F.max_pool2d(layer(x), 2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lowest", [0.1, -2.0])
@pytest.mark.parametrize("make", [partial(BaselineSepDyBN, 3, 2), partial(Baseline, "bn")])
def test_networks_do_the_same_and_export_whatever_the_signs(make, lowest):
    torch.manual_seed(1)
    model = make(width=4).eval()
    make_sets_differ(model)
    for layer in model.modules():
        if isinstance(layer, _BatchNorm):
            torch.nn.init.uniform_(layer.weight, lowest, 2)
    before = copy.deepcopy(model.state_dict())
    folded = fold_normalisation(model)
    assert not any(type(layer) is nn.BatchNorm2d for layer in folded.modules())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name

    x = torch.randn(2, 3, 128, 128)
    program = torch.export.export(folded, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    x = torch.randn(3, 3, 128, 128)
    torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-4)
