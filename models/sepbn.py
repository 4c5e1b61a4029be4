"""Separable Batch Normalisation (SepBN): BatchNorm with K affine maps that the input mixes.

Needs torch only and works as one copied file. From *Separable Batch Normalization for Robust
Facial Landmark Localization* (BMVC 2021). How to use it: docs/layer.md.
"""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.batchnorm import _BatchNorm


class _Normalization(_BatchNorm):
    """What :func:`_normalize` asks of a layer."""

    synchronized = False  # see synchronize_statistics
    process_group: Any = None

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    _affine_maps: Callable[[Tensor, Tensor], Tensor]


class _SepBatchNorm(_Normalization):
    r"""Batch normalisation, then an affine map that the input mixes from K learnt.

    Written for maps of H x W pixels; any other number of positions is treated as such a map.

    .. math::
        \hat x_{nchw} &= \frac{x_{nchw} - \mu_c}{\sqrt{\sigma_c^2 + \epsilon}}, \qquad
        p_{ng\cdot} = \operatorname{softmax}_k\!\left(\frac{a(x)_{ng\cdot}}{\tau}\right) \\
        y_{nchw} &= s_{nc}\, \hat x_{nchw} + b_{nc}, \qquad
        s_{nc} = \sum_k p_{n g(c) k}\, \gamma_{kc}, \quad
        b_{nc} = \sum_k p_{n g(c) k}\, \beta_{kc}

    The channels are split into G contiguous groups and :math:`g(c)` is the group of channel c. The
    attention :math:`a` is a bottleneck on the globally averaged, un-normalised input: C -> h
    (``fc1``), LeakyReLU(0.01), h -> G K (``fc2``), both without bias,
    :math:`h = \max(1, \lfloor \text{reduction} \cdot C \rfloor)`; output row :math:`g K + k`
    belongs to group g and set k. A high temperature :math:`\tau` makes all sets count alike. With
    ``attention_grid`` T it is a reconstruction of the paper's diagram instead: average pool to
    C x T x T -> G x T x T (``fc1``), LeakyReLU(0.01), flattened, G T T -> G K (``fc2``). T and the
    kinds of layers are not published.

    Mean and variance are those of the batch in training (and always if ``track_running_stats`` is
    False), the running ones in evaluation. Their definitions, ``eps``, ``momentum``, and the
    running estimates are those of :class:`torch.nn.BatchNorm2d`, to which the layer with
    ``num_sets=1`` is equal.

    **How it is computed.** K BatchNorms of one input differ in their affine maps only, so one
    normalisation and one mixed affine map replace them. One pass over :math:`x` yields mean
    :math:`m_{nc}` and variance :math:`v_{nc}` of every sample's channel, which serve the
    attention's pooling and the batch statistics alike:

    .. math::
        \mu_c = \tfrac1N \sum_n m_{nc}, \qquad
        \sigma_c^2 = \tfrac1N \sum_n \left(v_{nc} + (m_{nc} - \mu_c)^2\right)

    A second pass writes :math:`y = \alpha_{nc} (x - \mu_c) + b_{nc}` with :math:`\alpha_{nc} =
    s_{nc} / \sqrt{\sigma_c^2 + \epsilon}`. The backward pass mirrors it. Two sums over a channel's
    P pixels give the gradients of the (N, C) numbers,

    .. math::
        \frac{\partial L}{\partial b_{nc}} = \sum_{hw} dy, \qquad
        \frac{\partial L}{\partial \alpha_{nc}} = \sum_{hw} dy\,(x - \mu_c),

    and when autograd has followed those through the attention back to :math:`m_{nc}`, a second
    pass writes

    .. math::
        dx = \alpha_{nc}\, dy + \kappa_c\, (x - \mu_c)
             - \frac{1}{N P} \sum_n \alpha_{nc} \frac{\partial L}{\partial b_{nc}}
             + \frac{1}{P} \frac{\partial L}{\partial m_{nc}}, \qquad
        \kappa_c = \frac{-1}{N P\, (\sigma_c^2 + \epsilon)}
             \sum_n \alpha_{nc} \frac{\partial L}{\partial \alpha_{nc}}.

    Arithmetic is in float32 (float64 for float64 input); input and output may be bfloat16 or
    float16 under autocast. A backward pass that is to be differentiated again (``create_graph``),
    or has gradients in batches, is made of plain operations instead.
    """

    temperature: Tensor

    def __init__(
        self,
        num_features: int,
        num_sets: int = 3,
        groups: int = 1,
        *,
        reduction: float = 0.1,
        hidden: int | None = None,
        attention_grid: int | None = None,
        temperature: float = 1.0,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        bias: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(num_features, eps, momentum, False, track_running_stats, **factory)
        self.num_sets, self.groups, self.attention_grid = num_sets, groups, attention_grid
        self.affine, self.initial_temperature = affine, float(temperature)
        self._check_arguments()

        if affine:
            self.weight = nn.Parameter(torch.empty(num_sets, num_features, **factory))
            if bias:
                self.bias = nn.Parameter(torch.empty(num_sets, num_features, **factory))
            hidden, cells = hidden or max(1, int(reduction * num_features)), 1
            if attention_grid:
                hidden, cells = groups, attention_grid**2
            self.fc1 = _Dense(num_features, hidden, 1, bias=False, **factory)
            self.fc2 = _Dense(hidden * cells, groups * num_sets, 1, bias=False, **factory)

        self.register_buffer("temperature", torch.empty((), device=device, dtype=torch.float32))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Make all sets the identity, draw the attention anew, forget the running estimates.

        The attention's weights are Kaiming-uniform, the temperature is the initial one.
        """
        super().reset_parameters()
        if "temperature" in self._buffers:  # not yet while torch's constructor runs
            self.temperature.fill_(self.initial_temperature)
        if self.affine:
            self.fc1.reset_parameters()
            self.fc2.reset_parameters()

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        """Torch's, which refuses torch's ``convert_sync_batchnorm`` and others of that name.

        Those ask for the children after they have made a layer with (K, C) weights of this one.
        """
        if sys._getframe(1).f_code.co_name == "convert_sync_batchnorm":
            raise TypeError(
                f"convert_sync_batchnorm would make a plain BatchNorm of {type(self).__name__}: "
                "call sepbn.synchronize_statistics(network) instead, which does both kinds"
            )
        return super().named_children()

    def __prepare_scriptable__(self) -> None:
        raise TypeError(f"torch.jit.script cannot read {type(self).__name__}; torch.jit.trace can")

    def extra_repr(self) -> str:
        sets = f"num_sets={self.num_sets}, groups={self.groups}"
        return f"{super().extra_repr()}, {sets}, attention_grid={self.attention_grid}"

    def attention(self, x: Tensor) -> Tensor:
        """Attention weights of an input: (N, C, ...) -> (N, G, K), summing to 1 over K."""
        self._check_input(x)
        x = _as_maps(x)
        with _no_autocast(x):
            return self._attention(x, x.mean((2, 3), dtype=_compute_dtype(x)))

    def forward(self, input: Tensor) -> Tensor:
        self._check_input(input)
        with _no_autocast(input):
            return _normalize(self, input)

    def _attention(self, x: Tensor, means: Tensor) -> Tensor:
        """Attention weights, (N, G, K), of an input and its (N, C) means over the pixels."""
        if self.attention_grid is None:
            hidden = self.fc1(means)  # (N, h)
        else:
            cells = _cell_means(x.to(means.dtype), self.attention_grid)  # (N, C, T, T)
            hidden = self.fc1(cells).flatten(1)

        logits = self.fc2(F.leaky_relu(hidden, 0.01))  # (N, G K), row g K + k
        logits = logits.view(-1, self.groups, self.num_sets)
        return torch.softmax(logits / self.temperature, dim=2)

    def _affine_maps(self, x: Tensor, means: Tensor) -> Tensor:
        """Scale and shift of every sample's channels, (N, 2, C)."""
        if not self.affine:
            return torch.stack((torch.ones_like(means), torch.zeros_like(means)), 1)

        weights = self._attention(x, means).flatten(1)  # (N, G K)
        bias = torch.zeros_like(self.weight) if self.bias is None else self.bias
        sets = torch.stack((self.weight, bias), 1).to(means.dtype)  # (K, 2, C)
        return torch.mm(weights, sets_by_group(sets, self.groups)).view(-1, 2, self.num_features)

    def _check_arguments(self) -> None:
        if self.num_sets < 1:
            raise ValueError(f"num_sets must be at least 1, got {self.num_sets}")
        if self.groups < 1 or self.num_features % self.groups:
            raise ValueError(
                f"num_features ({self.num_features}) must be divisible by groups ({self.groups})"
            )
        if self.attention_grid is not None:
            if not isinstance(self, nn.BatchNorm2d):
                raise ValueError(f"{type(self).__name__} has no attention on a grid")
            if self.attention_grid < 1:
                raise ValueError(f"attention_grid must be at least 1, got {self.attention_grid}")
        if not self.eps > 0:
            raise ValueError(f"eps must be positive, got {self.eps}")
        _check_temperature(self.initial_temperature)

    def _check_input(self, x: Tensor) -> None:
        if isinstance(x, torch.fx.Proxy):
            name = type(self).__name__
            raise torch.fx.proxy.TraceError(f"let the tracer's is_leaf_module say True for {name}")
        if not x.is_floating_point():
            raise TypeError(f"expected floating-point input, got {x.dtype}")
        if not self.synchronized:  # a SyncBatchNorm, for which it may stand, takes any dimensions
            self._check_input_dim(x)
        if x.shape[1] != self.num_features:
            raise ValueError(f"expected {self.num_features} channels, got {x.shape[1]}")

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        self._migrate_released(state_dict, prefix)
        self._migrate_batchnorm(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _migrate_released(self, state_dict: dict, prefix: str) -> None:
        """Rewrite the released code's K BatchNorms, in place, as this layer's entries."""
        fields = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        sets: list[list[Tensor]] = []
        while f"{prefix}bn.{len(sets)}.weight" in state_dict:
            names = [f"{prefix}bn.{len(sets)}.{field}" for field in fields]
            if any(name not in state_dict for name in names):
                return  # the strict load names what is missing
            sets.append([state_dict.pop(name) for name in names])
        if not sets:
            return

        weight, bias, mean, var, counter = (torch.stack(field) for field in zip(*sets, strict=True))

        # Those sets normalise with statistics of their own, ours share the first set's:
        # g (x - mu_k) / s_k + b  =  (g s_0 / s_k) (x - mu_0) / s_0  +  b + g (mu_0 - mu_k) / s_k
        std = (var.double() + self.eps).sqrt()  # (K, C), like weight, bias and mean
        shifted = bias + weight * (mean[0].double() - mean) / std
        scaled = weight * std[0] / std
        migrated = (scaled.to(weight.dtype), shifted.to(bias.dtype), mean[0], var[0], counter[0])
        state_dict.update(zip((prefix + name for name in fields), migrated, strict=True))
        state_dict.setdefault(prefix + "temperature", torch.ones_like(self.temperature))

    def _migrate_batchnorm(self, state_dict: dict, prefix: str) -> None:
        """Rewrite a BatchNorm's entries, in place: each set is its map, the attention stays."""
        weight = state_dict.get(f"{prefix}weight")
        if weight is None or weight.dim() != 1:
            return

        for key in (f"{prefix}weight", f"{prefix}bias"):
            if key in state_dict:
                state_dict[key] = state_dict[key].repeat(self.num_sets, 1)

        own = self.state_dict()
        for name in ("temperature", "fc1.weight", "fc2.weight"):
            state_dict.setdefault(f"{prefix}{name}", own[name])


class SepBatchNorm1d(_SepBatchNorm, nn.BatchNorm1d):
    """SepBN of inputs (N, C) or (N, C, L); arguments as of :class:`SepBatchNorm2d`."""


class SepBatchNorm2d(_SepBatchNorm, nn.BatchNorm2d):
    r"""Batch normalisation of a 4-D input, then an affine map that the input mixes from K learnt.

    Args:
        num_features: number of channels C.
        num_sets: number of affine maps K.
        groups: number of channel groups G, each with attention weights of its own; divides C.
        reduction: width of the attention's bottleneck relative to C.
        hidden: this width itself, instead.
        attention_grid: T of the attention on a grid; None for the released bottleneck.
        temperature: initial :math:`\tau` of the attention's softmax; kept in the buffer
            ``temperature``, see :func:`set_temperature`.
        eps: added to the variance.
        momentum: weight of the newest batch in the running estimates; None averages over all
            batches.
        affine: False leaves no sets and no attention, the normalisation only.
        bias: False leaves the sets without shifts.
        track_running_stats: False keeps no running estimates.

    Attributes:
        weight, bias: the K maps :math:`\gamma, \beta`, each (K, C); initially 1 and 0.

    Shape:
        - Input: :math:`(N, C, H, W)`
        - Output: :math:`(N, C, H, W)`, same dtype and memory format.

    State dicts of a BatchNorm load, each set a copy of its map, and so do those of the released
    training code (K BatchNorms in a list ``bn``), with temperature 1.

    Examples::

        >>> layer = SepBatchNorm2d(64, num_sets=3, groups=2)
        >>> output = layer(torch.randn(8, 64, 32, 32))
        >>> weights = layer.attention(torch.randn(8, 64, 32, 32))  # (8, 2, 3)
    """


class SepBatchNorm3d(_SepBatchNorm, nn.BatchNorm3d):
    """SepBN of inputs (N, C, D, H, W); arguments as of :class:`SepBatchNorm2d`."""


class _Dense(nn.Conv2d):
    """A 1 x 1 convolution of (N, C) without pixels, or of (N, C, H, W)."""

    def reset_parameters(self) -> None:
        nn.init.kaiming_uniform_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.to(x.dtype)
        return F.linear(x, weight.flatten(1)) if x.dim() == 2 else F.conv2d(x, weight)


def sets_by_group(sets: Tensor, groups: int) -> Tensor:
    """(K, 2, C) -> (G K, 2 C): row g K + k is set k within group g's channels, else zero."""
    if groups > 1:
        own = sets.view(*sets.shape[:2], groups, -1).transpose(2, 3)  # (K, 2, C / G, G)
        sets = torch.diag_embed(own, dim1=0, dim2=3).flatten(0, 1)  # of (G, K, 2, G, C / G)
    return sets.flatten(1)


# --------------------------------------------------------------------------------------------------
# For whole models


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """An optimizer's parameter groups: weight decay for weights, none for biases and affine maps.

    The usual rule, no decay below two dimensions, would let the (K, C) maps of SepBN decay. The
    attention's weights decay, frozen parameters are left out.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, _SepBatchNorm)]
    maps = {own for layer in layers for name, own in layer.named_parameters() if name[:2] != "fc"}
    decaying: dict[str, Any] = {"params": [], "weight_decay": weight_decay}
    others: dict[str, Any] = {"params": [], "weight_decay": 0.0}
    for parameter in model.parameters():
        if parameter.requires_grad:
            group = others if parameter.dim() < 2 or parameter in maps else decaying
            group["params"].append(parameter)
    return [decaying, others]


def set_temperature(model: nn.Module, temperature: float) -> None:
    """Set the temperature of all SepBN layers of a model."""
    _check_temperature(temperature)
    for layer in model.modules():
        if isinstance(layer, _SepBatchNorm):
            layer.temperature.fill_(temperature)


class TemperatureSchedule:
    """Lowers the temperature of a model's SepBN layers step by step, as a scheduler does the rate.

    It is ``start`` when the schedule is made, and lower by ``decrease`` after every :meth:`step`,
    one an epoch, until it stays at ``end``. The paper's training: start 30, end 1, decrease 1.
    """

    def __init__(
        self, model: nn.Module, start: float, *, end: float = 1.0, decrease: float = 1.0
    ) -> None:
        _check_temperature(end)
        if not start >= end:
            raise ValueError(f"start must be at least end ({end}), got {start}")
        self.model, self.start, self.end, self.decrease = model, start, end, decrease
        self.steps = 0
        set_temperature(model, self.temperature)

    @property
    def temperature(self) -> float:
        return max(self.end, self.start - self.decrease * self.steps)

    def step(self) -> None:
        self.steps += 1
        set_temperature(self.model, self.temperature)

    def state_dict(self) -> dict[str, float]:
        return {name: value for name, value in vars(self).items() if name != "model"}

    def load_state_dict(self, state: dict[str, float]) -> None:
        vars(self).update(state)
        set_temperature(self.model, self.temperature)


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")


class SynchronizedBatchNorm(_Normalization, nn.BatchNorm2d):
    """BatchNorm of any dimensions whose batch statistics are those of all processes."""

    def _check_input_dim(self, x: Tensor) -> None:
        """As in torch's SyncBatchNorm, every number of dimensions will do."""

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and _is_distributed(self.process_group)):
            return super().forward(input)
        with _no_autocast(input):
            return _normalize(self, input)

    def _affine_maps(self, x: Tensor, means: Tensor) -> Tensor:
        """Scale and shift of every sample's channels, (N, 2, C)."""
        weight = means.new_ones(means.shape[1]) if self.weight is None else self.weight
        bias = torch.zeros_like(weight) if self.bias is None else self.bias
        return torch.stack((weight, bias)).to(means.dtype).expand(len(means), -1, -1)


def synchronize_statistics(model: nn.Module, process_group: Any = None) -> nn.Module:
    """Let BatchNorm and SepBN layers take their training statistics over all processes.

    That is, over those of a group; if None, of the layer's own or else the default one. Gradients
    flow through the statistics to all processes, so that averaging parameter gradients over
    processes with equal shares of a batch (as DistributedDataParallel does) gives what one process
    with the whole batch gets. Works with any backend, on CPU and CUDA; alone, or without an
    initialised process group, nothing changes. Changes the layers in place, keeps state-dict names
    and returns the model. Torch's ``convert_sync_batchnorm`` cannot do this for SepBN and is
    refused.

    Raises:
        TypeError: a layer derives from BatchNorm without being one, or is a lazy one before its
            first pass.
    """
    for _, layer in _batchnorms(model):
        if type(layer) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            layer.__class__ = SynchronizedBatchNorm
        if isinstance(layer, _Normalization):
            layer.synchronized = True
            layer.process_group = process_group or layer.process_group
    return model


CONVERTED: dict[type, type[_SepBatchNorm]] = {
    nn.BatchNorm1d: SepBatchNorm1d,
    nn.BatchNorm2d: SepBatchNorm2d,
    nn.BatchNorm3d: SepBatchNorm3d,
    nn.SyncBatchNorm: SepBatchNorm2d,  # once synchronised it takes any dimensions, like these
    SynchronizedBatchNorm: SepBatchNorm2d,
}


def convert_batchnorm(
    module: nn.Module, num_sets: int = 3, groups: int = 1, **options
) -> nn.Module:
    """Replace every BatchNorm1d, 2d and 3d and SyncBatchNorm by a SepBN that starts as its equal.

    All K sets start as copies of the layer's affine map. eps, momentum, running estimates and
    counter, the affine, tracking and training flags, device, dtype, requires_grad, the process
    group of a SyncBatchNorm and the sharing of modules are kept; forward hooks of the replaced
    layers, and the sharing of single parameters, are not. Works in place and returns the network (a
    new layer if it is itself a BatchNorm). The number of layers is logged; a warning says if there
    were none.

    Make the optimizer afterwards: one made before does not know the new weights. State dicts saved
    before the conversion still load.

    Args:
        module: the network.
        num_sets, groups: as of :class:`SepBatchNorm2d`.
        options: ``reduction``, ``hidden``, ``attention_grid`` and ``temperature`` of
            :class:`SepBatchNorm2d`. The attention of C channels has about ``reduction`` C² weights,
            or C ``hidden``, which counts in networks of cheap convolutions.

    Raises:
        TypeError: a layer derives from BatchNorm without being one, so that it may do more than
            normalise, or is a lazy one before its first pass; or another option.
        ValueError: a layer's channels are not divisible by groups, or it has parameters or buffers
            that BatchNorm does not have, as a pruned one.
    """
    if wrong := sorted(options.keys() - {"reduction", "hidden", "attention_grid", "temperature"}):
        raise TypeError(f"each layer's own settings are kept, so it takes no {', '.join(wrong)}")

    replacements: dict[nn.Module, _SepBatchNorm] = {}
    for name, layer in _batchnorms(module):
        if type(layer) in CONVERTED:
            try:
                replacements[layer] = _from_batchnorm(layer, num_sets, groups, **options)
            except (AttributeError, ValueError) as error:
                raise ValueError(f"layer {name or 'itself'}: {error}") from None

    for parent in list(module.modules()):
        for name, child in parent._modules.items():  # named_children() skips a second occurrence
            if child in replacements:  # a layer in several places stays one layer
                setattr(parent, name, replacements[child])

    logging.getLogger(__name__).info("converted %d BatchNorm layers", len(replacements))
    if not replacements:
        warnings.warn("convert_batchnorm found no BatchNorm to convert", stacklevel=2)
    return replacements.get(module, module)


def _batchnorms(model: nn.Module) -> list[tuple[str, _BatchNorm]]:
    """A model's BatchNorm and SepBN layers with their names; others that derive from BatchNorm
    may do more than normalise, and are refused.
    """
    layers = [each for each in model.named_modules() if isinstance(each[1], _BatchNorm)]
    for name, layer in layers:
        if type(layer) not in CONVERTED and not isinstance(layer, _SepBatchNorm):
            raise TypeError(
                f"layer {name or 'itself'}: {type(layer).__name__} is not taken, only BatchNorm1d, "
                "2d, 3d and SyncBatchNorm themselves are (lazy ones are these after a forward pass)"
            )
    return layers


def _from_batchnorm(layer: _BatchNorm, num_sets: int, groups: int, **options) -> _SepBatchNorm:
    like = layer.weight if layer.affine else layer.running_mean
    new = CONVERTED[type(layer)](
        *(layer.num_features, num_sets, groups),
        eps=layer.eps,
        momentum=layer.momentum,
        affine=layer.affine,
        bias=layer.bias is not None,
        track_running_stats=layer.running_mean is not None,
        device=getattr(like, "device", None),
        dtype=getattr(like, "dtype", None),
        **options,
    )
    new.track_running_stats = layer.track_running_stats

    with torch.no_grad():
        for name, value in (*layer.named_parameters(), *layer.named_buffers()):
            # weight and bias: (C,) -> (K, C)
            getattr(new, name).copy_(value).requires_grad_(value.requires_grad)

    if layer.affine and not any(parameter.requires_grad for parameter in layer.parameters()):
        new.requires_grad_(False)  # a frozen layer stays frozen, attention and all
    if isinstance(layer, nn.SyncBatchNorm | SynchronizedBatchNorm):
        new.synchronized, new.process_group = True, layer.process_group
    return new.train(layer.training)


# --------------------------------------------------------------------------------------------------
# The layer: two passes over (N, C, H, W), all else on (N, C) and (C,) numbers


def _normalize(layer: _Normalization, x: Tensor) -> Tensor:
    """A layer's output: x normalised, then scaled and shifted by the layer's ``_affine_maps``."""
    of_batch = layer.training or layer.running_mean is None
    shape, x = x.shape, _as_maps(x)

    # Compilers fuse and differentiate plain operations themselves; transforms need them.
    is_plain = is_traced() or _is_transformed()
    if not is_plain and _has_kernels(x) and not x.is_contiguous(memory_format=torch.channels_last):
        x = x.contiguous()  # the kernels know these two layouts

    if torch.is_grad_enabled() and not is_plain:
        # Two passes for autograd to record, and between them the (N, C) arithmetic in its hands.
        handover: dict[str, tuple] = {}
        passed, means, variances = _FirstPass.apply(x, of_batch, handover)
        statistics = _statistics(layer, x, means.detach(), variances)
        affine = layer._affine_maps(x, means)
        y = _SecondPass.apply(x, passed, affine, statistics, handover, layer)
    else:
        moments, scaled = (_plain_moments, _plain_affine) if is_plain else (_moments, _affine)
        means, variances = moments(x, of_batch)
        mean, invstd, _ = _statistics(layer, x, means, variances)
        y = scaled(x, *_combined(layer._affine_maps(x, means), mean, invstd))
    return y if len(shape) == 4 else y.view(shape)


def _as_maps(x: Tensor) -> Tensor:
    """(N, C), (N, C, L) or (N, C, D, H, W) -> a view of it as (N, C, H, W)."""
    while x.dim() < 4:
        x = x.unsqueeze(2)
    return x.flatten(2, -2) if x.dim() > 4 else x


class _FirstPass(torch.autograd.Function):
    """x -> x, the means and (of a batch) the variances of its instances, (N, C) each.

    In the backward pass it comes last, when all that depends on x is known, and writes the gradient
    of x at once: dx = scale dy + slope x + offset. For that the second pass sends dy itself as the
    gradient of the x that is passed on, and leaves the coefficients in ``handover``. Where it sends
    none, it has seen to x otherwise, and what came through the means is left.
    """

    @staticmethod
    def forward(ctx, x: Tensor, of_batch: bool, handover: dict[str, tuple]):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x)
        ctx.handover = handover

        means, variances = _moments(x, of_batch)
        if of_batch:  # its statistics are a matter of the second pass
            ctx.mark_non_differentiable(variances)
        return x, means, variances

    @staticmethod
    def backward(ctx, dy: Tensor | None, dmeans: Tensor | None, _: None):
        (x,) = ctx.saved_tensors
        share = 1 / max(1, x.shape[2] * x.shape[3])
        if dy is None:
            dx = None if dmeans is None else (dmeans * share)[..., None, None].expand_as(x)
            return dx, None, None

        scale, slope, offset = ctx.handover.pop("coefficients")
        if dmeans is not None:  # None if there is no attention
            offset = torch.add(offset, dmeans, alpha=share)
        return _input_gradient(dy, x, scale, slope, offset.expand_as(scale)), None, None


class _SecondPass(torch.autograd.Function):
    """x, affine maps (N, 2, C) and statistics -> the normalised, scaled and shifted x.

    It is given x twice: as it is, and passed on by the first pass, which then writes the gradient.
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, passed: Tensor, affine: Tensor, statistics: tuple, handover: dict, layer
    ):
        mean, invstd, ctx.count = statistics
        ctx.eps, ctx.group, ctx.handover = layer.eps, layer.process_group, handover

        scale, shift = _combined(affine, mean, invstd)
        ctx.save_for_backward(x, affine, scale, mean, invstd)
        return _affine(x, scale, shift)

    @staticmethod
    def backward(ctx, dy: Tensor):
        is_batched = torch._C._functorch.is_legacy_batchedtensor(dy)
        if torch.is_grad_enabled() or is_batched or _is_transformed():
            return _differentiable_backward(ctx, dy)

        x, _, scale, mean, invstd = ctx.saved_tensors
        layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
        dy = dy.contiguous(memory_format=layout)

        # Gradients of scale and shift, (N, 2, C).
        daffine = _sums(dy, x, mean)
        daffine[:, 0].mul_(invstd)
        if not ctx.needs_input_grad[0]:
            return None, None, daffine, None, None, None

        # Of x, what comes through mean and variance: slope (x - mean) and a constant, (C,) each.
        if ctx.count is None:  # constants
            slope, offset = None, torch.zeros_like(mean)
        else:
            totals = (daffine * scale[:, None]).sum(0)  # (2, C)
            if isinstance(ctx.count, Tensor):  # the statistics are those of all processes
                dist.all_reduce(totals, group=ctx.group)
            totals /= -ctx.count
            slope = totals[0] * invstd
            offset = torch.addcmul(totals[1], slope, mean, value=-1)

        ctx.handover["coefficients"] = (scale, slope, offset)
        return None, dy, daffine, None, None, None


@torch.enable_grad()
def _differentiable_backward(ctx, dy: Tensor) -> tuple:
    """The second pass's, by plain operations: for second derivatives and for gradients in batches.

    It leaves nothing of x to the first pass but what comes through the affine maps.
    """
    # Views, so that the gradients end here.
    x, affine, _, mean, invstd = (each.view_as(each) for each in ctx.saved_tensors)
    if ctx.count is not None:
        means, variances = _plain_moments(x, True)
        assert variances is not None
        is_shared = isinstance(ctx.count, Tensor)
        mean, var, _ = _batch_statistics(x, means, variances, is_shared, ctx.group)
        invstd = (var + ctx.eps).rsqrt()

    y = _plain_affine(x, *_combined(affine, mean, invstd))
    wanted = [each for each in (x, affine) if each.requires_grad]
    found = iter(torch.autograd.grad(y, wanted, dy, create_graph=True))
    dx, daffine = (next(found) if each.requires_grad else None for each in (x, affine))
    return dx, None, daffine, None, None, None


def _combined(affine: Tensor, mean: Tensor, invstd: Tensor) -> tuple[Tensor, Tensor]:
    """Normalisation and affine maps (N, 2, C) as one map: scale and shift, (N, C) each."""
    scale, shift = affine.unbind(1)
    scale = scale * invstd
    return scale, torch.addcmul(shift, scale, mean, value=-1)


def _statistics(
    layer: _Normalization, x: Tensor, means: Tensor, variances: Tensor | None
) -> tuple[Tensor, Tensor, int | Tensor | None]:
    """Mean and 1 / standard deviation of every channel, (C,), and the count of values behind them.

    From the instances' (N, C) means and variances, updating the running estimates; or, without
    variances, the running estimates themselves. Their count is None, for they are constants; over
    several processes it is a tensor.
    """
    if variances is None:
        # copied, as training may move it before the backward pass
        mean, var = layer.running_mean.to(means.dtype, copy=True), layer.running_var.to(means.dtype)
        return mean, (var + layer.eps).rsqrt(), None

    is_shared = layer.training and layer.synchronized and _is_distributed(layer.process_group)
    mean, var, count = _batch_statistics(x, means, variances, is_shared, layer.process_group)
    if layer.training and layer.track_running_stats:
        _update(layer, mean, var, count)
    return mean, (var + layer.eps).rsqrt(), count


def _batch_statistics(
    x: Tensor, means: Tensor, variances: Tensor, is_shared: bool, group: Any
) -> tuple[Tensor, Tensor, int | Tensor | None]:
    """Mean and variance of every channel, (C,), from those of the instances, and their count."""
    here = x.shape[0] * x.shape[2] * x.shape[3]
    if here == 0:
        mean = var = means.sum(0)  # zeros, through which the others' gradients pass all the same
    else:
        # torch.var_mean of the means would be an operation less, but takes 1.7 ms on CPU at
        # 32 x 2048.
        mean = means.mean(0)
        distances = means - mean
        var = torch.addcmul(variances, distances, distances).mean(0)

    if is_shared:
        return _over_processes(mean, var, here, group)
    if here == 1:
        shape = tuple(x.shape)
        raise ValueError(f"expected more than 1 value per channel in training, got shape {shape}")
    # as in BatchNorm, nothing comes of an empty batch but one more in the counter
    return mean, var, here or None


@torch.no_grad()
def _update(layer: _Normalization, mean: Tensor, var: Tensor, count: int | Tensor | None) -> None:
    """Move a layer's running estimates, if it has any, towards the statistics of a batch."""
    if layer.num_batches_tracked is not None:
        layer.num_batches_tracked.add_(1)
    if layer.running_mean is None or count is None:
        return

    newest: float | Tensor | None = layer.momentum
    if newest is None:  # the average of all batches
        newest = layer.num_batches_tracked.to(layer.running_mean.dtype).reciprocal()
    unbiased = var * (count / (count - 1))
    layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), newest)
    layer.running_var.lerp_(unbiased.to(layer.running_var.dtype), newest)


# --------------------------------------------------------------------------------------------------
# Several processes


def _is_distributed(group: Any) -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1


def _over_processes(
    mean: Tensor, var: Tensor, count: int, group: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Combine the processes' channel statistics, each weighted by its count of values."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    own = torch.cat((mean, var, mean.new_full((1,), count)))
    rows = _Sum.apply(F.pad(own[None], (0, 0, rank, size - 1 - rank)), group)  # one of each process
    means, variances, counts = rows.split((len(mean), len(mean), 1), dim=1)

    total = counts.detach().sum()
    shares = counts.detach() / total  # (R, 1) of R processes; means and variances (R, C)
    mean = (shares * means).sum(0)
    var = (shares * (variances + (means - mean).square())).sum(0)
    return mean, var, total


class _Sum(torch.autograd.Function):
    """A tensor's sum over the processes, and so is its gradient, any number of times.

    ``torch.distributed.nn.functional.all_reduce`` has the same gradients, but is deprecated.
    """

    @staticmethod
    def forward(ctx, own: Tensor, group: Any) -> Tensor:
        ctx.group = group
        total = own.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return _Sum.apply(gradient, ctx.group), None


# --------------------------------------------------------------------------------------------------
# The passes over (N, C, H, W): _moments and _affine forward, _sums and _input_gradient backward
#
# Each has two ways. On CPU it is ATen's own BatchNorm kernels, made to take every instance (n, c)
# for a channel (_instances). On other devices, and for compilers, it is plain operations, as few as
# there are: on CPU they take up to 20 times as long (python benchmarks/sepbn.py --ways), but for
# scaling and shifting 32 and 64 bits in channels_last, which they therefore do there, too.


def _has_kernels(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.numel() > 0


def _is_wide_channels_last(x: Tensor) -> bool:
    return x.element_size() >= 4 and not x.is_contiguous()


def _instances(x: Tensor) -> list[Tensor]:
    """Views of x whose channels are the instances (n, c), so that each is treated on its own."""
    if x.is_contiguous():
        return [x.view(1, -1, *x.shape[2:])]  # (1, N C, H, W)
    return list(x.split(1))  # channels_last: N times (1, C, H, W)


def _moments(x: Tensor, with_variances: bool) -> tuple[Tensor, Tensor | None]:
    """Mean and, if wanted, biased variance over the pixels: (N, C, H, W) -> (N, C) each."""
    dtype = _compute_dtype(x)

    if _has_kernels(x) and (with_variances or x.element_size() < 4):
        parts = _instances(x)
        zeros = x.new_zeros(parts[0].shape[1], dtype=dtype)  # the results get their dtype
        moments = [torch.batch_norm_update_stats(part, zeros, zeros, 0.0) for part in parts]
        mean, var = (torch.cat(each).view(x.shape[:2]) for each in zip(*moments, strict=True))
        return mean, var if with_variances else None

    return _plain_moments(x, with_variances)


def _plain_moments(x: Tensor, with_variances: bool) -> tuple[Tensor, Tensor | None]:
    """As ``_moments``, by operations that autograd, torch.func and compilers know."""
    dtype = _compute_dtype(x)
    if x.numel() == 0:
        zeros = x.sum((2, 3), dtype=dtype)
        return zeros, zeros if with_variances else None
    if not with_variances:
        return x.mean((2, 3), dtype=dtype), None
    var, mean = torch.var_mean(x.to(dtype), (2, 3), correction=0)
    return mean, var


def _affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """scale x + shift with (N, C) numbers, computed in their dtype, returned in that of x."""
    y = torch.empty_like(x)
    if not _has_kernels(x) or _is_wide_channels_last(x):
        return torch.addcmul(shift[..., None, None], x, scale[..., None, None], out=y)

    parts = _instances(x)
    scales, shifts = scale.reshape(len(parts), -1), shift.reshape(len(parts), -1)
    zeros, ones, none = torch.zeros_like(scales[0]), torch.ones_like(scales[0]), scale.new_empty(0)
    for part, target, weight, bias in zip(parts, _instances(y), scales, shifts, strict=True):
        out = (target, none, none)
        torch.native_batch_norm(part, weight, bias, zeros, ones, False, 0.0, 0.0, out=out)
    return y


def _plain_affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """As ``_affine``, by an operation that autograd, torch.func and compilers know."""
    return torch.addcmul(shift[..., None, None], x, scale[..., None, None]).to(x.dtype)


def _sums(dy: Tensor, x: Tensor, centre: Tensor) -> Tensor:
    """Over the pixels, the sums of dy (x - centre) and of dy: (N, C, H, W) -> (N, 2, C)."""
    if _has_kernels(x):
        parts = _instances(x)
        centres = centre.repeat(len(x)).view(len(parts), -1)
        ones, mask = torch.ones_like(centres[0]), (False, True, True)
        pairs = [
            torch.ops.aten.native_batch_norm_backward(
                grad, part, ones, middle, ones, middle, ones, False, 0.0, mask
            )[1:]
            for grad, part, middle in zip(_instances(dy), parts, centres, strict=True)
        ]
        weighted, plain = (torch.cat(each).view(x.shape[:2]) for each in zip(*pairs, strict=True))
        if _is_wide_channels_last(x):
            plain = dy.sum((2, 3))  # the kernel, pixel after pixel, is several times as far off
        return torch.stack((weighted, plain), 1)

    if x.dtype == centre.dtype:  # in one pass: the backward kernel of Huber's loss without a bound
        products = torch.empty_like(x)
        middle = centre[:, None, None].expand_as(x)
        torch.ops.aten.huber_loss_backward.out(dy, x, middle, 0, math.inf, grad_input=products)
    else:  # products of 16-bit numbers are exact in 32 bits, so that the centre can wait
        products = torch.addcmul(centre.new_zeros(1), dy, x)

    sums = centre.new_empty(len(x), 2, len(centre))
    weighted, plain = sums.unbind(1)
    torch.sum(products, (2, 3), out=weighted)
    torch.sum(dy, (2, 3), dtype=centre.dtype, out=plain)
    if x.dtype != centre.dtype:
        weighted.addcmul_(plain, centre, value=-1)
    return sums


def _input_gradient(
    dy: Tensor, x: Tensor, scale: Tensor, slope: Tensor | None, offset: Tensor
) -> Tensor:
    """scale dy + slope x + offset with (N, C) numbers (slope: (C,), None for 0); in x's dtype."""
    if slope is None:
        return _affine(dy, scale, offset)
    if x.dtype == scale.dtype:
        return _affine(dy, scale, offset).addcmul_(x, slope[:, None, None])

    # In 16 bits, slope x and offset meet before they are rounded: they may be large and cancel.
    if _has_kernels(x):
        rest = _affine(x, slope.expand_as(scale), offset)
        return _affine(dy, scale, torch.zeros_like(scale)).add_(rest)
    scaled = torch.addcmul(offset[..., None, None], dy, scale[..., None, None])  # in 32 bits
    return torch.addcmul(scaled, x, slope[:, None, None], out=torch.empty_like(x))


def _cell_means(x: Tensor, count: int) -> Tensor:
    """Means over T x T cells that cover a map: (N, C, H, W) -> (N, C, T, T)."""
    if not any(isinstance(size, torch.SymInt) for size in x.shape[2:]):
        return F.adaptive_avg_pool2d(x, count)

    # Exported with open sizes: ONNX has no pooling that adapts, so two products with (T, L) means.
    for _ in range(2):
        length = x.shape[3]
        first = torch.arange(count, device=x.device)[:, None] * length
        pixels = torch.arange(length, device=x.device) * count
        # cell i covers floor(i L / T) to ceil((i + 1) L / T), its end left out
        inside = (pixels > first - count) & (pixels < first + length)
        weights = inside.to(x.dtype)
        x = torch.matmul(x, (weights / weights.sum(1, keepdim=True)).t()).transpose(2, 3)
    return x


def is_traced() -> bool:
    """Whether a compiler or an exporter is looking, which knows plain operations only."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def _is_transformed() -> bool:
    """Whether torch.func or forward-mode differentiation is at work."""
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _no_autocast(x: Tensor) -> contextlib.AbstractContextManager:
    if x.device.type != "meta" and torch.is_autocast_enabled(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return contextlib.nullcontext()
