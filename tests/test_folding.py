"""SepBN folded for inference: pooling first where the order of the pixels allows it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from models import BaselineSepDyBN, SepBatchNorm2d
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
def test_exported_networks_do_the_same_whatever_the_signs(lowest):
    torch.manual_seed(1)
    model = BaselineSepDyBN(3, 2, width=4).eval()
    for layer in model.modules():
        if isinstance(layer, SepBatchNorm2d):
            torch.nn.init.uniform_(layer.weight, lowest, 2)
    folded = fold_normalisation(model)
    x = torch.randn(2, 3, 128, 128)
    program = torch.export.export(folded, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    x = torch.randn(3, 3, 128, 128)
    torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-4)
