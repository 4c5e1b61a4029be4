"""Networks for inference and export: normalisation by running statistics folded into what stands
beside it.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models import SepBatchNorm2d, VanillaCNN
from models.sepbn import is_traced, sets_by_group
from models.vanilla import NEGATIVE_SLOPE, NUM_STAGES


def fold_normalisation(model: nn.Module) -> nn.Module:
    """A copy of `model` in evaluation mode that computes the same with less work.

    Every BatchNorm `bnX` goes into the convolution `convX` before it; every SepBN becomes a
    `FoldedSepBN` that pools as well.
    """
    model = copy.deepcopy(model).eval()
    for name, layer in list(model.named_children()):
        if isinstance(layer, SepBatchNorm2d):
            model.__class__ = _PooledByNorms
            setattr(model, name, FoldedSepBN(layer, pool=2))
        elif isinstance(layer, nn.BatchNorm2d):
            conv = "conv" + name.removeprefix("bn")
            setattr(model, conv, fuse_conv_bn_eval(getattr(model, conv), layer))
            setattr(model, name, nn.Identity())

    return model.requires_grad_(False)


class _PooledByNorms(VanillaCNN):
    """A VanillaCNN whose normalisation layers pool their maps."""

    def forward(self, x: Tensor) -> Tensor:
        for stage in range(1, NUM_STAGES + 1):
            x = getattr(self, f"conv{stage}")(x)
            x = F.leaky_relu(getattr(self, f"bn{stage}")(x), NEGATIVE_SLOPE)

        return self.fc2(F.leaky_relu(self.fc1(x.flatten(1)), NEGATIVE_SLOPE))


class FoldedSepBN(nn.Module):
    r"""SepBN with its running statistics folded into the mapping sets, so that one affine of x
    remains, and the max-pool that follows it.

    With the mean :math:`\mu`, the deviation :math:`\sigma = \sqrt{\mathrm{var} + \epsilon}` and the
    attention p,

    .. math:: y_c = \Bigl(\sum_k p_{gk} \frac{\gamma_{kc}}{\sigma_c}\Bigr) x_c
              + \sum_k p_{gk} \Bigl(\beta_{kc} - \frac{\gamma_{kc} \mu_c}{\sigma_c}\Bigr), \qquad g
              = g(c).

    Both sums over k are one matrix product: row g·K + k of the matrix is zero outside of group g.
    (`einsum` would do as well, but OpenCV's importer cannot change its batch size.)

    A file that is being made may be for onnxruntime, whose convolutions and pooling share a layout
    of their own: other operations on whole maps would cost it a change of layout.

    Where no scale of x is negative the affine map keeps the order of the pixels, so that pooling
    may come first: the same values from a quarter of the work. Where the signs are not known, as in
    an exported network, max(s x) is the larger of s max(x) and -s max(-x).
    """

    minus: Tensor
    sets: Tensor
    squeeze: Tensor
    expand: Tensor

    def __init__(self, layer: SepBatchNorm2d, pool: int = 1) -> None:
        super().__init__()
        self.layer, self.pool = layer, pool
        scale = layer.weight / (layer.running_var + layer.eps).sqrt()  # (K, C)
        bias = torch.zeros_like(scale) if layer.bias is None else layer.bias
        shift = bias - scale * layer.running_mean
        self.may_be_negative = bool((scale < 0).any())
        sets = sets_by_group(torch.stack((scale, shift), 1).detach(), layer.groups)
        self.register_buffer("minus", -torch.ones_like(scale[0])[:, None, None, None])
        self.register_buffer("sets", sets)  # (G * K, 2 C)
        self.register_buffer("squeeze", layer.fc1.weight.detach().flatten(1))
        self.register_buffer("expand", (layer.fc2.weight.detach() / layer.temperature).flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        maps = self._attention(x) @ self.sets
        scale, shift = maps[..., None, None].chunk(2, dim=1)

        if self.may_be_negative and is_traced():
            negated = F.conv2d(x, self.minus, groups=len(self.minus))
            highest, lowest = F.max_pool2d(x, self.pool), F.max_pool2d(negated, self.pool)
            return torch.maximum(highest * scale, lowest * -scale) + shift
        if self.may_be_negative and (x.is_cuda or (scale < 0).any()):  # on CUDA, to look is to wait
            return F.max_pool2d(torch.addcmul(shift, x, scale), self.pool)
        return torch.addcmul(shift, F.max_pool2d(x, self.pool), scale)

    def _attention(self, x: Tensor) -> Tensor:
        """Attention weights, (N, G * K)."""
        if self.layer.attention_grid is not None:
            return self.layer.attention(x).flatten(1)
        means = F.avg_pool2d(x, x.shape[2:]).flatten(1) if is_traced() else x.mean((2, 3))
        hidden = F.leaky_relu(F.linear(means, self.squeeze), 0.01)
        logits = F.linear(hidden, self.expand)
        if self.layer.groups == 1:
            return torch.softmax(logits, 1)
        return torch.softmax(logits.unflatten(1, (self.layer.groups, -1)), 2).flatten(1)
