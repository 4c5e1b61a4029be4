"""Networks for inference and export: normalisation by running statistics folded into what stands
beside it.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models import SepBatchNorm2d


def fold_normalisation(model: nn.Module) -> nn.Module:
    """A copy of `model` in evaluation mode that computes the same with less work.

    Every BatchNorm `bnX` goes into the convolution `convX` before it; every SepBN becomes a
    `FoldedSepBN`.
    """
    model = copy.deepcopy(model).eval()
    for name, layer in list(model.named_children()):
        if isinstance(layer, SepBatchNorm2d):
            setattr(model, name, FoldedSepBN(layer))
        elif isinstance(layer, nn.BatchNorm2d):
            conv = "conv" + name.removeprefix("bn")
            setattr(model, conv, fuse_conv_bn_eval(getattr(model, conv), layer))
            setattr(model, name, nn.Identity())

    return model.requires_grad_(False)


class FoldedSepBN(nn.Module):
    r"""SepBN with its running statistics folded into the mapping sets, so that one affine of x
    remains.

    With the mean :math:`\mu`, the deviation :math:`\sigma = \sqrt{\mathrm{var} + \epsilon}` and the
    attention p,

    .. math:: y_c = \Bigl(\sum_k p_{gk} \frac{\gamma_{kc}}{\sigma_c}\Bigr) x_c
              + \sum_k p_{gk} \Bigl(\beta_{kc} - \frac{\gamma_{kc} \mu_c}{\sigma_c}\Bigr), \qquad g
              = g(c).

    The sums over k are one matrix product each: row g·K + k of the matrices is zero outside of
    group g. (`einsum` would do as well, but OpenCV's importer cannot change its batch size.)
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, layer: SepBatchNorm2d) -> None:
        super().__init__()
        self.layer = layer
        scale = layer.weight / (layer.running_var + layer.eps).sqrt()  # (K, C)
        shift = layer.bias - scale * layer.running_mean
        self.register_buffer("scale", _by_group(scale.detach(), layer.groups))  # (G * K, C)
        self.register_buffer("shift", _by_group(shift.detach(), layer.groups))

    def forward(self, x: Tensor) -> Tensor:
        p = self.layer.attention(x).flatten(1)  # (N, G, K) -> (N, G * K)
        scale, shift = p @ self.scale, p @ self.shift  # (N, C)
        return torch.addcmul(shift[:, :, None, None], x, scale[:, :, None, None])


def _by_group(sets: Tensor, groups: int) -> Tensor:
    """(K, C) -> (G * K, C): G copies, each zero outside of its own channels."""
    own = torch.eye(groups, dtype=sets.dtype, device=sets.device)
    own = own.repeat_interleave(sets.shape[1] // groups, dim=1)  # (G, C)

    return (own[:, None] * sets[None]).flatten(0, 1)
