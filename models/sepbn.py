"""Separable Batch Normalisation (SepBN): BatchNorm2d with K affine maps that the input mixes.

Needs torch only and works as one copied file. From *Separable Batch Normalization for Robust
Facial Landmark Localization* (BMVC 2021).
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ["SepBatchNorm2d", "convert_batchnorm", "synchronize_statistics"]


class SepBatchNorm2d(nn.Module):
    r"""Batch normalisation of a 4-D input, then an affine map that the input mixes from K learnt.

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
    float16 under autocast. Second derivatives are not available.

    Args:
        num_features: number of channels C.
        num_sets: number of affine maps K.
        groups: number of channel groups G, each with attention weights of its own; divides C.
        reduction: width of the attention's bottleneck relative to C.
        attention_grid: T of the attention on a grid; None for the released bottleneck.
        temperature: initial :math:`\tau`; kept in the buffer ``temperature``, change it by
            ``temperature.fill_(t)``.
        eps: added to the variance.
        momentum: weight of the newest batch in the running estimates; None averages over all
            batches.
        affine: False leaves no sets and no attention, the normalisation only.
        track_running_stats: False keeps no running estimates.

    Attributes:
        weight, bias: the K maps :math:`\gamma, \beta`, each (K, C); initially 1 and 0.

    Shape:
        - Input: :math:`(N, C, H, W)`
        - Output: :math:`(N, C, H, W)`, same dtype and memory format.

    State dicts of the released training code (K BatchNorms in a list ``bn``) load as they are, with
    temperature 1.

    Examples::

        >>> layer = SepBatchNorm2d(64, num_sets=3, groups=2)
        >>> output = layer(torch.randn(8, 64, 32, 32))
        >>> weights = layer.attention(torch.randn(8, 64, 32, 32))  # (8, 2, 3)
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    temperature: Tensor

    def __init__(
        self,
        num_features: int,
        num_sets: int = 3,
        groups: int = 1,
        *,
        reduction: float = 0.1,
        attention_grid: int | None = None,
        temperature: float = 1.0,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features, self.num_sets, self.groups = num_features, num_sets, groups
        self.attention_grid = attention_grid
        self.eps, self.momentum = eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        self.synchronized = False  # see synchronize_statistics
        self._check_arguments(temperature)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}

        if affine:
            hidden = groups if attention_grid else max(1, int(reduction * num_features))
            cells = attention_grid**2 if attention_grid else 1
            self.weight = nn.Parameter(torch.empty(num_sets, num_features, **factory))
            self.bias = nn.Parameter(torch.empty(num_sets, num_features, **factory))
            self.fc1 = nn.Conv2d(num_features, hidden, 1, bias=False, **factory)
            self.fc2 = nn.Conv2d(hidden * cells, groups * num_sets, 1, bias=False, **factory)
        else:
            self.register_parameter("weight", None)
            self.register_parameter("bias", None)

        tracked = track_running_stats
        for name in ("running_mean", "running_var"):
            self.register_buffer(name, torch.empty(num_features, **factory) if tracked else None)
        counter = torch.tensor(0, device=device) if tracked else None
        self.register_buffer("num_batches_tracked", counter)

        value = torch.tensor(float(temperature), device=device, dtype=torch.float32)
        self.register_buffer("temperature", value)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Make all sets the identity, draw the attention anew, forget the running estimates.

        The attention's weights are Kaiming-uniform.
        """
        if self.track_running_stats:
            self.running_mean.zero_()
            self.running_var.fill_(1)
            self.num_batches_tracked.zero_()
        if self.affine:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)
            nn.init.kaiming_uniform_(self.fc1.weight)
            nn.init.kaiming_uniform_(self.fc2.weight)

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, num_sets={self.num_sets}, groups={self.groups}, "
            f"attention_grid={self.attention_grid}, eps={self.eps}, momentum={self.momentum}, "
            f"affine={self.affine}, track_running_stats={self.track_running_stats}"
        )

    def attention(self, x: Tensor) -> Tensor:
        """Attention weights of an input: (N, C, H, W) -> (N, G, K), summing to 1 over K."""
        self._check_input(x)
        with _no_autocast(x):
            return self._attention(x, x.mean((2, 3), dtype=_compute_dtype(x)))

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        with _no_autocast(x):
            return _normalize(self, x)

    def _attention(self, x: Tensor, means: Tensor) -> Tensor:
        """Attention weights, (N, G, K), of an input and its (N, C) means over the pixels."""
        squeeze, expand = self.fc1.weight.to(means.dtype), self.fc2.weight.to(means.dtype)
        if self.attention_grid is None:
            hidden = F.linear(means, squeeze.flatten(1))  # (N, h)
        else:
            cells = F.adaptive_avg_pool2d(x.to(means.dtype), self.attention_grid)  # (N, C, T, T)
            hidden = F.conv2d(cells, squeeze).flatten(1)  # (N, G T T)

        logits = F.linear(F.leaky_relu(hidden, 0.01), expand.flatten(1))  # (N, G K), row g K + k
        logits = logits.view(-1, self.groups, self.num_sets)
        return torch.softmax(logits / self.temperature, dim=2)

    def _affine_maps(self, x: Tensor, means: Tensor) -> Tensor:
        """Scale and shift of every sample's channels, (N, 2, C)."""
        if not self.affine:
            return torch.stack((torch.ones_like(means), torch.zeros_like(means)), 1)

        weights = self._attention(x, means).flatten(1)  # (N, G K)
        sets = torch.stack((self.weight, self.bias), 1).to(means.dtype)  # (K, 2, C)
        if self.groups > 1:
            # (G, K, 2, G, C / G): zero outside the group's channels
            own = sets.unflatten(2, (self.groups, -1)).transpose(2, 3)
            sets = torch.diag_embed(own, dim1=0, dim2=3).flatten(0, 1)
        return torch.mm(weights, sets.flatten(1)).unflatten(1, (2, -1))

    def _check_arguments(self, temperature: float) -> None:
        if self.num_sets < 1:
            raise ValueError(f"num_sets must be at least 1, got {self.num_sets}")
        if self.groups < 1 or self.num_features % self.groups:
            raise ValueError(
                f"num_features ({self.num_features}) must be divisible by groups ({self.groups})"
            )
        if self.attention_grid is not None and self.attention_grid < 1:
            raise ValueError(f"attention_grid must be at least 1, got {self.attention_grid}")
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")

    def _check_input(self, x: Tensor) -> None:
        if x.dim() != 4:
            raise ValueError(f"expected 4-D input (N, C, H, W), got {x.dim()}-D")
        if x.shape[1] != self.num_features:
            raise ValueError(f"expected {self.num_features} channels, got {x.shape[1]}")

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        self._migrate_released(state_dict, prefix)
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
        migrated = {
            "weight": (weight * std[0] / std).to(weight.dtype),
            "bias": shifted.to(bias.dtype),
            "running_mean": mean[0],
            "running_var": var[0],
            "num_batches_tracked": counter[0],
        }
        state_dict.update({prefix + name: value for name, value in migrated.items()})
        state_dict.setdefault(prefix + "temperature", torch.ones_like(self.temperature))


class SynchronizedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose batch statistics are those of all processes.

    See :func:`synchronize_statistics`.
    """

    synchronized = True
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and _is_distributed()):
            return super().forward(x)
        self._check_input_dim(x)
        with _no_autocast(x):
            return _normalize(self, x)

    def _affine_maps(self, x: Tensor, means: Tensor) -> Tensor:
        """Scale and shift of every sample's channels, (N, 2, C)."""
        if not self.affine:
            return torch.stack((torch.ones_like(means), torch.zeros_like(means)), 1)
        return torch.stack((self.weight, self.bias)).to(means.dtype).expand(len(means), -1, -1)


def synchronize_statistics(model: nn.Module) -> nn.Module:
    """Let BatchNorm2d and SepBatchNorm2d take their training statistics over all processes.

    That is, over those of the default group. Gradients flow through the statistics to all
    processes, so that averaging parameter gradients over processes with equal shares of a batch (as
    DistributedDataParallel does) gives what one process with the whole batch gets. Works with any
    backend, on CPU and CUDA. Without an initialised process group, or alone in it, nothing changes.
    State-dict names stay. Changes the layers in place and returns the model.
    """
    for layer in model.modules():
        if type(layer) is nn.BatchNorm2d:
            layer.__class__ = SynchronizedBatchNorm2d
        elif isinstance(layer, SepBatchNorm2d):
            layer.synchronized = True
    return model


def convert_batchnorm(
    module: nn.Module, num_sets: int = 3, groups: int = 1, **options
) -> nn.Module:
    """Replace every BatchNorm2d and SyncBatchNorm by a SepBatchNorm2d that starts as its equal.

    All K sets start as copies of the layer's affine map. eps, momentum, running estimates and
    counter, the affine, tracking and training flags, device, dtype, requires_grad and the sharing
    of modules are kept; forward hooks of the replaced layers are not. Works in place and returns
    the network (a new layer if it is itself a BatchNorm2d).

    Args:
        module: the network.
        num_sets, groups: as of :class:`SepBatchNorm2d`.
        options: ``reduction``, ``attention_grid`` and ``temperature`` of :class:`SepBatchNorm2d`.

    Raises:
        TypeError: a layer derives from BatchNorm2d without being one, so that it may do more than
            normalise.
        ValueError: a layer's channels are not divisible by groups.
    """
    exact = (nn.BatchNorm2d, nn.SyncBatchNorm, SynchronizedBatchNorm2d)
    for name, layer in module.named_modules():
        where = name or "module"
        if type(layer) in exact:
            if layer.num_features % groups:
                raise ValueError(
                    f"{where}: {layer.num_features} channels do not split into {groups} groups"
                )
        elif isinstance(layer, exact):
            kind = type(layer).__name__
            raise TypeError(f"{where}: cannot convert {kind}, a subclass of BatchNorm2d")

    replacements: dict[nn.Module, nn.Module] = {}  # a layer in several places stays one layer
    for parent in [nn.ModuleList([module]), *module.modules()]:
        for name, child in parent._modules.items():  # named_children() skips a second occurrence
            if isinstance(child, exact):
                if child not in replacements:
                    replacements[child] = _from_batchnorm(child, num_sets, groups, **options)
                setattr(parent, name, replacements[child])
    return replacements.get(module, module)


def _from_batchnorm(
    layer: nn.BatchNorm2d | nn.SyncBatchNorm, num_sets: int, groups: int, **options
) -> SepBatchNorm2d:
    like = layer.weight if layer.affine else layer.running_mean
    if like is not None:
        options |= {"device": like.device, "dtype": like.dtype}
    for name in ("eps", "momentum", "affine", "track_running_stats"):
        options[name] = getattr(layer, name)
    new = SepBatchNorm2d(layer.num_features, num_sets, groups, **options)

    with torch.no_grad():
        for name, value in (*layer.named_parameters(), *layer.named_buffers()):
            getattr(new, name).copy_(value)  # weight and bias: (C,) -> (K, C)

    for name, parameter in layer.named_parameters():
        getattr(new, name).requires_grad_(parameter.requires_grad)
    if layer.affine and not (layer.weight.requires_grad or layer.bias.requires_grad):
        new.requires_grad_(False)  # a frozen layer stays frozen, attention and all
    new.synchronized = type(layer) is not nn.BatchNorm2d
    return new.train(layer.training)


# --------------------------------------------------------------------------------------------------
# The layer: two passes over (N, C, H, W), all else on (N, C) and (C,) numbers


def _normalize(layer: SepBatchNorm2d | SynchronizedBatchNorm2d, x: Tensor) -> Tensor:
    """A layer's output: x normalised, then scaled and shifted by the layer's ``_affine_maps``."""
    of_batch = layer.training or not layer.track_running_stats

    if _has_kernels(x) and not x.is_contiguous(memory_format=torch.channels_last):
        x = x.contiguous()  # the kernels know these two layouts

    # Compilers fuse and differentiate plain operations themselves; without gradients nobody does.
    if _is_traced() or not torch.is_grad_enabled():
        means, variances = _moments(x, of_batch)
        mean, invstd, _ = _statistics(layer, x, means, variances)
        return _affine(x, *_combined(layer._affine_maps(x, means), mean, invstd))

    # Two passes for autograd to record, and between them the (N, C) arithmetic in its hands.
    handover: dict[str, tuple] = {}
    passed, means, variances = _FirstPass.apply(x, of_batch, handover)
    statistics = _statistics(layer, x, means.detach(), variances)
    return _SecondPass.apply(passed, layer._affine_maps(x, means), statistics, handover)


class _FirstPass(torch.autograd.Function):
    """x -> x, the means and (of a batch) the variances of its instances, (N, C) each.

    In the backward pass it comes last, when all that depends on x is known, and writes the gradient
    of x at once: dx = scale dy + slope x + offset. For that the second pass sends dy itself as the
    gradient of the x that is passed on, and leaves the coefficients in ``handover``.
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
    @once_differentiable
    def backward(ctx, dy: Tensor, dmeans: Tensor | None, _: None):
        (x,) = ctx.saved_tensors
        scale, slope, offset = ctx.handover.pop("coefficients")

        if dmeans is not None:  # None if there is no attention
            offset = torch.add(offset, dmeans, alpha=1 / x[0, 0].numel())
        return _input_gradient(dy, x, scale, slope, offset.expand_as(scale)), None, None


class _SecondPass(torch.autograd.Function):
    """x, affine maps (N, 2, C) and statistics -> the normalised, scaled and shifted x."""

    @staticmethod
    def forward(ctx, x: Tensor, affine: Tensor, statistics: tuple, handover: dict[str, tuple]):
        mean, invstd, ctx.count = statistics
        ctx.handover = handover

        scale, shift = _combined(affine, mean, invstd)
        ctx.save_for_backward(x, scale, mean, invstd)
        return _affine(x, scale, shift)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        x, scale, mean, invstd = ctx.saved_tensors
        layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
        dy = dy.contiguous(memory_format=layout)

        # Gradients of scale and shift, (N, 2, C).
        daffine = _sums(dy, x, mean)
        daffine[:, 0].mul_(invstd)
        if not ctx.needs_input_grad[0]:
            return None, daffine, None, None

        # Of x, what comes through mean and variance: slope (x - mean) and a constant, (C,) each.
        if ctx.count is None:  # constants
            slope, offset = None, torch.zeros_like(mean)
        else:
            totals = (daffine * scale[:, None]).sum(0)  # (2, C)
            if isinstance(ctx.count, Tensor):  # the statistics are those of all processes
                dist.all_reduce(totals)
            totals /= -ctx.count
            slope = totals[0] * invstd
            offset = torch.addcmul(totals[1], slope, mean, value=-1)

        ctx.handover["coefficients"] = (scale, slope, offset)
        return dy, daffine, None, None


def _combined(affine: Tensor, mean: Tensor, invstd: Tensor) -> tuple[Tensor, Tensor]:
    """Normalisation and affine maps (N, 2, C) as one map: scale and shift, (N, C) each."""
    scale, shift = affine.unbind(1)
    scale = scale * invstd
    return scale, torch.addcmul(shift, scale, mean, value=-1)


def _statistics(
    layer: SepBatchNorm2d | SynchronizedBatchNorm2d,
    x: Tensor,
    means: Tensor,
    variances: Tensor | None,
) -> tuple[Tensor, Tensor, int | Tensor | None]:
    """Mean and 1 / standard deviation of every channel, (C,), and the count of values behind them.

    From the instances' (N, C) means and variances, updating the running estimates; or, without
    variances, the running estimates themselves. Their count is None, for they are constants; over
    several processes it is a tensor.
    """
    if variances is None:
        mean, var = layer.running_mean.to(means.dtype), layer.running_var.to(means.dtype)
        return mean, (var + layer.eps).rsqrt(), None

    # torch.var_mean of the means would be an operation less, but takes 1.7 ms on CPU at 32 x 2048.
    mean = means.mean(0)
    distances = means - mean
    var = torch.addcmul(variances, distances, distances).mean(0)

    here = x.shape[0] * x.shape[2] * x.shape[3]
    count: int | Tensor = here
    if layer.synchronized and _is_distributed():
        mean, var, count = _over_processes(mean, var, here)
    elif here < 2:
        shape = tuple(x.shape)
        raise ValueError(f"expected more than 1 value per channel in training, got shape {shape}")

    if layer.training and layer.track_running_stats:
        with torch.no_grad():
            layer.num_batches_tracked.add_(1)
            newest: float | Tensor | None = layer.momentum
            if newest is None:  # the average of all batches
                newest = layer.num_batches_tracked.to(layer.running_mean.dtype).reciprocal()

            unbiased = var * (count / (count - 1))
            layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), newest)
            layer.running_var.lerp_(unbiased.to(layer.running_var.dtype), newest)
    return mean, (var + layer.eps).rsqrt(), count


# --------------------------------------------------------------------------------------------------
# Several processes


def _is_traced() -> bool:
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _over_processes(mean: Tensor, var: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Combine the processes' channel statistics, each weighted by its count of values."""
    own = torch.cat((mean, var, mean.new_full((1,), count)))
    means, variances, counts = _Gather.apply(own).split((len(mean), len(mean), 1), dim=1)

    total = counts.detach().sum()
    shares = counts.detach() / total  # (R, 1) of R processes; means and variances (R, C)
    mean = (shares * means).sum(0)
    var = (shares * (variances + (means - mean).square())).sum(0)
    return mean, var, total


class _Gather(torch.autograd.Function):
    """(D,) on every process -> (R, D) on all of them. Backward, a row's gradients are summed up.

    ``torch.distributed.nn.functional.all_gather`` has the same gradients, but is deprecated.
    """

    @staticmethod
    def forward(ctx, own: Tensor) -> Tensor:
        rows = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(rows, own.contiguous())
        return torch.stack(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)
        return grad[dist.get_rank()]


# --------------------------------------------------------------------------------------------------
# The passes over (N, C, H, W): _moments and _affine forward, _sums and _input_gradient backward
#
# Each has two ways. On CPU it is ATen's own BatchNorm kernels, made to take every instance (n, c)
# for a channel (_instances). On other devices, and for compilers, it is plain operations, as few as
# there are. What the plain ones take of the kernels' time on CPU (python benchmarks/sepbn.py --ways
# with one thread of an AMD EPYC, torch 2.13, 8 x 64 x 128 x 128, median of 20 pairs):
#
#                          _moments   _affine   _sums   _input_gradient
#   float32  NCHW               3.3      1.3      1.7        1.2
#   float32  channels_last     12        0.8      2.2        0.9     (8 x 2048 x 4 x 4: 0.3 and 0.4)
#   bfloat16 NCHW              20        5.1      7.7        2.6
#   bfloat16 channels_last     15       17        6.8        7.5
#
# So 32 and 64 bits in channels_last are scaled and shifted by plain operations on CPU, too.


def _has_kernels(x: Tensor) -> bool:
    return not _is_traced() and x.device.type == "cpu" and x.numel() > 0


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
        zeros = torch.zeros(parts[0].shape[1], dtype=dtype)  # the results get their dtype
        moments = [torch.batch_norm_update_stats(part, zeros, zeros, 0.0) for part in parts]
        mean, var = (torch.cat(each).view(x.shape[:2]) for each in zip(*moments, strict=True))
        return mean, var if with_variances else None

    if with_variances:
        var, mean = torch.var_mean(x.to(dtype), (2, 3), correction=0)
        return mean, var
    return x.mean((2, 3), dtype=dtype), None


def _affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """scale x + shift with (N, C) numbers, computed in their dtype, returned in that of x."""
    if _is_traced():
        return torch.addcmul(shift[..., None, None], x, scale[..., None, None]).to(x.dtype)

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


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _no_autocast(x: Tensor) -> contextlib.AbstractContextManager:
    if x.device.type != "meta" and torch.is_autocast_enabled(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return contextlib.nullcontext()
