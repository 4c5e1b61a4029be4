"""Separable Batch Normalisation (SepBN), a drop-in replacement of BatchNorm2d with K affine mappings.

Needs torch only and works as one copied file. From *Separable Batch Normalization for Robust Facial Landmark
Localization* (BMVC 2021).
"""

from __future__ import annotations

import contextlib

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ["SepBatchNorm2d", "convert_batchnorm", "synchronize_statistics"]


class SepBatchNorm2d(nn.Module):
    r"""Batch normalisation of a 4-D input, followed by an affine map that the input itself mixes from K learnt ones.

    .. math::
        \hat x_{nchw} &= \frac{x_{nchw} - \mu_c}{\sqrt{\sigma_c^2 + \epsilon}}, \qquad
        p_{ng\cdot} = \operatorname{softmax}_k\!\left(\frac{a(x)_{ng\cdot}}{\tau}\right) \\
        y_{nchw} &= s_{nc}\, \hat x_{nchw} + b_{nc}, \qquad
        s_{nc} = \sum_k p_{n g(c) k}\, \gamma_{kc}, \quad b_{nc} = \sum_k p_{n g(c) k}\, \beta_{kc}

    The channels are split into G contiguous groups and :math:`g(c)` is the group of channel c. The attention
    :math:`a` is a bottleneck on the globally averaged, un-normalised input: C -> h (``fc1``), LeakyReLU(0.01),
    h -> G K (``fc2``), both without bias, :math:`h = \max(1, \lfloor \text{reduction} \cdot C \rfloor)`; output row
    :math:`g K + k` belongs to group g and set k. A high temperature :math:`\tau` makes all sets count alike.
    With ``attention_grid`` T it is a reconstruction of the paper's diagram instead: average pool to C x T x T -> G x T
    x T (``fc1``), LeakyReLU(0.01), flattened, G T T -> G K (``fc2``). T and the kinds of layers are not published.

    Mean and variance are those of the batch in training (and always if ``track_running_stats`` is False), the running
    ones in evaluation. Their definitions, ``eps``, ``momentum``, and the running estimates are those of
    :class:`torch.nn.BatchNorm2d`, to which the layer with ``num_sets=1`` is equal.

    **How it is computed.** K BatchNorms of one input differ in their affine maps only, so one normalisation and one
    mixed affine map replace them. One pass over :math:`x` yields mean :math:`m_{nc}` and variance :math:`v_{nc}` of
    every sample's channel, which serve the attention's pooling and the batch statistics alike:

    .. math::
        \mu_c = \tfrac1N \sum_n m_{nc}, \qquad \sigma_c^2 = \tfrac1N \sum_n \left(v_{nc} + (m_{nc} - \mu_c)^2\right)

    A second pass writes :math:`y = \alpha_{nc} (x - \mu_c) + b_{nc}`, :math:`\alpha_{nc} = s_{nc} / \sqrt{\sigma_c^2 +
    \epsilon}`. The backward pass mirrors it, with P the pixels of a channel:

    .. math::
        \frac{\partial L}{\partial b_{nc}} = \sum_{hw} dy, \quad
        \frac{\partial L}{\partial \alpha_{nc}} = \sum_{hw} dy\,(x - \mu_c), \quad
        \frac{\partial L}{\partial \mu_c} = -\sum_n \alpha_{nc} \sum_{hw} dy, \qquad
        dx = \alpha_{nc}\, dy + \frac{1}{P}\frac{\partial L}{\partial m_{nc}}
             + \frac{2}{P}\frac{\partial L}{\partial v_{nc}} (x - m_{nc})

    All that lies between runs on (N, C) numbers, in ordinary autograd. Arithmetic is in float32 (float64 for float64
    input); input and output may be bfloat16 or float16 under autocast. Second derivatives are not available.

    Args:
        num_features: number of channels C.
        num_sets: number of affine maps K.
        groups: number of channel groups G, each with attention weights of its own; divides C.
        reduction: width of the attention's bottleneck relative to C.
        attention_grid: T of the attention on a grid; None for the released bottleneck.
        temperature: initial :math:`\tau`; kept in the buffer ``temperature``, change it by ``temperature.fill_(t)``.
        eps: added to the variance.
        momentum: weight of the newest batch in the running estimates; None averages over all batches.
        affine: False leaves no sets and no attention, the normalisation only.
        track_running_stats: False keeps no running estimates.

    Attributes:
        weight, bias: the K maps :math:`\gamma, \beta`, each (K, C); initially 1 and 0.

    Shape:
        - Input: :math:`(N, C, H, W)`
        - Output: :math:`(N, C, H, W)`, same dtype and memory format.

    State dicts of the released training code (K BatchNorms in a list ``bn``) load as they are, with temperature 1.

    Examples::

        >>> layer = SepBatchNorm2d(64, num_sets=3, groups=2)
        >>> output = layer(torch.randn(8, 64, 32, 32))
        >>> weights = layer.attention(torch.randn(8, 64, 32, 32))  # (8, 2, 3)
    """

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
        if num_sets < 1:
            raise ValueError(f"num_sets must be at least 1, got {num_sets}")
        if groups < 1 or num_features % groups:
            raise ValueError(f"num_features ({num_features}) must be divisible by groups ({groups})")
        if attention_grid is not None and attention_grid < 1:
            raise ValueError(f"attention_grid must be at least 1, got {attention_grid}")
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        factory = {"device": device, "dtype": dtype}
        self.num_features, self.num_sets, self.groups = num_features, num_sets, groups
        self.attention_grid = attention_grid
        self.eps, self.momentum = eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        self.synchronized = False  # see synchronize_statistics
        if affine:
            hidden = groups if attention_grid else max(1, int(reduction * num_features))
            self.weight = nn.Parameter(torch.empty(num_sets, num_features, **factory))
            self.bias = nn.Parameter(torch.empty(num_sets, num_features, **factory))
            self.fc1 = nn.Conv2d(num_features, hidden, 1, bias=False, **factory)
            cells = attention_grid**2 if attention_grid else 1
            self.fc2 = nn.Conv2d(hidden * cells, groups * num_sets, 1, bias=False, **factory)
        else:
            self.register_parameter("weight", None)
            self.register_parameter("bias", None)
        tracked = track_running_stats
        self.register_buffer("running_mean", torch.zeros(num_features, **factory) if tracked else None)
        self.register_buffer("running_var", torch.ones(num_features, **factory) if tracked else None)
        self.register_buffer("num_batches_tracked", torch.tensor(0, device=device) if tracked else None)
        membership = torch.eye(groups, **factory).repeat_interleave(num_features // groups, 1)  # (G, C)
        self.register_buffer("membership", membership[:, None], persistent=False)
        self.register_buffer("temperature", torch.tensor(float(temperature), device=device, dtype=torch.float32))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Make all sets the identity, draw the attention anew (Kaiming-uniform) and forget the running estimates."""
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
            f"attention_grid={self.attention_grid}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}"
        )

    def attention(self, x: Tensor) -> Tensor:
        """Attention weights of an input: (N, C, H, W) -> (N, G, K), summing to 1 over K."""
        self._check_input(x)
        with _no_autocast(x):
            return self._attention(self._pool(_dense(x)))

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        x = _dense(x)
        with _no_autocast(x):
            if self.training or not self.track_running_stats:
                pooled = None if self.attention_grid is None else self._pool(x)
                x, means, variance = _instance_moments(x)
                mean, var = _batch_statistics(self, x, means, variance)
                return _normalize(x, mean, var + self.eps, *self._mixed_affine(means if pooled is None else pooled))
            scale, shift = self._mixed_affine(self._pool(x))
            if not (_has_kernels(x) and x.is_contiguous()):
                return _normalize(x, self.running_mean, self.running_var + self.eps, scale, shift)
            mean, var = (values.to(scale.dtype).repeat(len(x)) for values in (self.running_mean, self.running_var))
            (instances,) = _instances(x)
            return F.batch_norm(instances, mean, var, scale.flatten(), shift.flatten(), eps=self.eps).view_as(x)

    def _pool(self, x: Tensor) -> Tensor:
        """What attention sees: the (N, C) means, or (N, C, T, T) of them."""
        if self.attention_grid is None or not self.affine:
            return _pool(x)
        return F.adaptive_avg_pool2d(x.to(_compute_dtype(x)), self.attention_grid)

    def _attention(self, pooled: Tensor) -> Tensor:
        if self.attention_grid is None:
            hidden = F.linear(pooled, self.fc1.weight.flatten(1).to(pooled.dtype))  # (N, h)
        else:
            hidden = F.conv2d(pooled, self.fc1.weight.to(pooled.dtype)).flatten(1)  # (N, G T T)
        hidden = F.leaky_relu(hidden, 0.01)
        logits = F.linear(hidden, self.fc2.weight.flatten(1).to(pooled.dtype))  # (N, G K), row g K + k
        return torch.softmax(logits.view(-1, self.groups, self.num_sets) / self.temperature, dim=2)

    def _mixed_affine(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift of every sample's channels, (N, C) each, from the pooled input."""
        if not self.affine:
            return torch.ones_like(pooled), torch.zeros_like(pooled)
        weights = self._attention(pooled).flatten(1)  # (N, G K)

        def mix(sets: Tensor) -> Tensor:
            own = sets.to(pooled.dtype) * self.membership  # (K, C) -> (G, K, C), zero outside the group's channels
            return torch.mm(weights, own.flatten(0, 1))

        return mix(self.weight), mix(self.bias)

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
        sets = []
        while f"{prefix}bn.{len(sets)}.weight" in state_dict:
            names = [f"{prefix}bn.{len(sets)}.{field}" for field in fields]
            if any(name not in state_dict for name in names):
                return  # the strict load names what is missing
            sets.append([state_dict.pop(name) for name in names])
        if not sets:
            return
        weight, bias, mean, var, counter = (torch.stack(tensors) for tensors in zip(*sets, strict=True))  # (K, C) each
        # Those sets normalise with statistics of their own, ours share the first set's. The same function:
        # g (x - mu_k) / s_k + b  =  (g s_0 / s_k) (x - mu_0) / s_0  +  b + g (mu_0 - mu_k) / s_k
        std = (var.double() + self.eps).sqrt()
        state_dict[prefix + "weight"] = (weight * std[0] / std).to(weight.dtype)
        state_dict[prefix + "bias"] = (bias + weight * (mean[0].double() - mean) / std).to(bias.dtype)
        state_dict[prefix + "running_mean"], state_dict[prefix + "running_var"] = mean[0], var[0]
        state_dict[prefix + "num_batches_tracked"] = counter[0]
        state_dict.setdefault(prefix + "temperature", torch.ones_like(self.temperature))


class SynchronizedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose batch statistics are taken over all processes (see :func:`synchronize_statistics`)."""

    synchronized = True

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and _is_distributed()):
            return super().forward(x)
        self._check_input_dim(x)
        with _no_autocast(x):
            x, pooled, variance = _instance_moments(_dense(x))
            mean, var = _batch_statistics(self, x, pooled, variance)
            scale = self.weight if self.affine else torch.ones_like(mean)
            shift = self.bias if self.affine else torch.zeros_like(mean)
            return _normalize(x, mean, var + self.eps, scale.expand_as(pooled), shift.expand_as(pooled))


def synchronize_statistics(model: nn.Module) -> nn.Module:
    """Let BatchNorm2d and SepBatchNorm2d take their training statistics over all processes of the default group.

    Gradients flow through the statistics to all processes, so that averaging parameter gradients over processes with
    equal shares of a batch (as DistributedDataParallel does) gives what one process with the whole batch gets. Works
    with any backend, on CPU and CUDA. Without an initialised process group, or alone in it, nothing changes.
    State-dict names stay. Changes the layers in place and returns the model.
    """
    for layer in model.modules():
        if type(layer) is nn.BatchNorm2d:
            layer.__class__ = SynchronizedBatchNorm2d
        elif isinstance(layer, SepBatchNorm2d):
            layer.synchronized = True
    return model


def convert_batchnorm(module: nn.Module, num_sets: int = 3, groups: int = 1, **options) -> nn.Module:
    """Replace every BatchNorm2d and SyncBatchNorm in a network by a SepBatchNorm2d that starts as the same function.

    All K sets start as copies of the layer's affine map. eps, momentum, running estimates and counter, the affine,
    tracking and training flags, device, dtype, requires_grad and the sharing of modules are kept; forward hooks of the
    replaced layers are not. Works in place and returns the network (a new layer if it is itself a BatchNorm2d).

    Args:
        module: the network.
        num_sets, groups: as of :class:`SepBatchNorm2d`.
        options: ``reduction``, ``attention_grid`` and ``temperature`` of :class:`SepBatchNorm2d`.

    Raises:
        TypeError: a layer derives from BatchNorm2d without being one, so that it may do more than normalise.
        ValueError: a layer's channels are not divisible by groups.
    """
    exact = (nn.BatchNorm2d, nn.SyncBatchNorm, SynchronizedBatchNorm2d)
    for name, layer in module.named_modules():
        if type(layer) in exact:
            if layer.num_features % groups:
                raise ValueError(f"{name or 'module'}: {layer.num_features} channels do not split into {groups} groups")
        elif isinstance(layer, exact):
            raise TypeError(f"{name or 'module'}: cannot convert {type(layer).__name__}, a subclass of BatchNorm2d")

    replacements: dict[nn.Module, nn.Module] = {}  # a layer that occurs in several places stays one layer
    for parent in [nn.ModuleList([module]), *module.modules()]:
        for name, child in parent._modules.items():  # named_children() would skip a second occurrence
            if type(child) in exact:
                if child not in replacements:
                    replacements[child] = _from_batchnorm(child, num_sets, groups, **options)
                setattr(parent, name, replacements[child])
    return replacements.get(module, module)


def _from_batchnorm(layer: nn.Module, num_sets: int, groups: int, **options) -> SepBatchNorm2d:
    like = layer.weight if layer.affine else layer.running_mean
    options |= {} if like is None else {"device": like.device, "dtype": like.dtype}
    kept = {name: getattr(layer, name) for name in ("eps", "momentum", "affine", "track_running_stats")}
    new = SepBatchNorm2d(layer.num_features, num_sets, groups, **kept, **options)
    with torch.no_grad():
        for name, value in (*layer.named_parameters(), *layer.named_buffers()):
            getattr(new, name).copy_(value)  # weight and bias: (C,) -> (K, C)
    for name, parameter in layer.named_parameters():
        getattr(new, name).requires_grad_(parameter.requires_grad)
    if layer.affine and not (layer.weight.requires_grad or layer.bias.requires_grad):
        new.requires_grad_(False)  # a frozen layer stays frozen, attention and all
    new.synchronized = type(layer) is not nn.BatchNorm2d
    return new.train(layer.training)


# ---------------------------------------------------------------------------------------------------------------------
# Statistics of the batch: (N, C) and (C,) numbers, ordinary autograd


def _batch_statistics(layer: nn.Module, x: Tensor, means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every channel, (C,), from the instances' (N, C); updates the running estimates."""
    mean = means.mean(0)
    var = (variances + (means - mean).square()).mean(0)
    count = x.shape[0] * x.shape[2] * x.shape[3]
    if layer.synchronized and _is_distributed():
        mean, var, count = _over_processes(mean, var, count)
    elif count < 2:
        raise ValueError(f"expected more than 1 value per channel in training, got input of shape {tuple(x.shape)}")
    if layer.training and layer.track_running_stats:
        with torch.no_grad():
            layer.num_batches_tracked.add_(1)
            for running, value in ((layer.running_mean, mean), (layer.running_var, var * (count / (count - 1)))):
                newest = layer.momentum  # None: the average of all batches
                if newest is None:
                    newest = layer.num_batches_tracked.to(running.dtype).reciprocal()
                running.lerp_(value.to(running.dtype), newest)
    return mean, var


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _over_processes(mean: Tensor, var: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Combine the processes' channel statistics, each weighted by its count of values."""
    own = torch.cat((mean, var, mean.new_full((1,), count)))
    means, variances, counts = _Gather.apply(own).split((len(mean), len(mean), 1), dim=1)  # (R, C), (R, C), (R, 1)
    total = counts.detach().sum()
    shares = counts.detach() / total
    mean = (shares * means).sum(0)
    var = (shares * (variances + (means - mean).square())).sum(0)
    return mean, var, total


class _Gather(torch.autograd.Function):
    """(D,) on every process -> (R, D) on all of them. The backward pass sums all processes' gradients of a row."""

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


# ---------------------------------------------------------------------------------------------------------------------
# The passes over (N, C, H, W): plain tensor operations, or on CPU ATen's own BatchNorm kernels (no compiler needed)


def _normalize(x: Tensor, mean: Tensor, var: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """scale (x - mean) / sqrt(var) + shift with mean, var of (C,) and scale, shift of (N, C)."""
    scale = scale / var.to(scale.dtype).sqrt()
    centre = mean.to(scale.dtype).expand_as(scale)
    if _is_traced() or not torch.is_grad_enabled():
        return _affine(x, centre, scale, shift)
    return _InstanceAffine.apply(x, centre, scale, shift)


def _instance_moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x itself, and mean and biased variance over each sample's channels, (N, C)."""
    if _is_traced() or not torch.is_grad_enabled():
        return x, *_moments(x)
    return _InstanceMoments.apply(x)


class _InstanceMoments(torch.autograd.Function):
    """x -> x, mean, variance. Handing x on gathers all of its gradient here, to be summed up in place."""

    @staticmethod
    def forward(ctx, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, var = _moments(x)
        ctx.save_for_backward(x, mean)
        return x, mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx, dx: Tensor, dmean: Tensor, dvar: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        pixels = x.shape[2] * x.shape[3]
        # In place: dx was made by _InstanceAffine.backward and nobody else has seen it.
        return _add_affine_(dx, x, mean, 2 / pixels * dvar, dmean / pixels)


class _InstanceAffine(torch.autograd.Function):
    """y = scale (x - centre) + shift, with scale, centre and shift of (N, C)."""

    @staticmethod
    def forward(ctx, x: Tensor, centre: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        ctx.save_for_backward(x, centre, scale)
        return _affine(x, centre, scale, shift)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, centre, scale = ctx.saved_tensors
        dx, dscale, dshift = _affine_backward(dy, x, centre, scale)
        return dx, -scale * dshift, dscale, dshift


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _no_autocast(x: Tensor) -> contextlib.AbstractContextManager:
    if x.device.type != "meta" and torch.is_autocast_enabled(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return contextlib.nullcontext()


def _is_traced() -> bool:
    """Compilers and exporters get plain operations, which they fuse and differentiate themselves."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def _has_kernels(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.numel() > 0 and not _is_traced()


def _is_wide_channels_last(x: Tensor) -> bool:
    """Here plain operations are as fast on large maps and far faster on small ones than N kernel calls."""
    return not x.is_contiguous() and x.element_size() >= 4


def _dense(x: Tensor) -> Tensor:
    """x in one of the two layouts that the kernels know."""
    if not _has_kernels(x) or x.is_contiguous(memory_format=torch.channels_last):
        return x
    return x.contiguous()


def _instances(x: Tensor) -> list[Tensor]:
    """Views of x whose channels are the instances (n, c), so that BatchNorm's kernels treat each on its own."""
    if x.is_contiguous():
        return [x.view(1, -1, *x.shape[2:])]  # (1, N C, H, W)
    return list(x.split(1))  # channels_last: N times (1, C, H, W)


def _joined(parts: list[Tensor], shape: torch.Size) -> Tensor:
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(shape)


def _pool(x: Tensor) -> Tensor:
    """Mean over the pixels: (N, C, H, W) -> (N, C)."""
    if _has_kernels(x) and x.element_size() < 4 and not (x.requires_grad and torch.is_grad_enabled()):
        return _moments(x)[0]  # torch.mean takes seven times as long on bfloat16
    return x.mean((2, 3), dtype=_compute_dtype(x))


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over the pixels: (N, C, H, W) -> (N, C) twice."""
    if not _has_kernels(x):
        var, mean = torch.var_mean(x.to(_compute_dtype(x)), (2, 3), correction=0)
        return mean, var
    parts = _instances(x)
    zeros = torch.zeros(parts[0].shape[1], dtype=_compute_dtype(x))  # their dtype is that of the results
    moments = [torch.batch_norm_update_stats(part, zeros, zeros, 0.0) for part in parts]
    means, variances = zip(*moments, strict=True)
    return _joined(means, x.shape[:2]), _joined(variances, x.shape[:2])


def _affine(x: Tensor, centre: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """scale (x - centre) + shift, computed in the dtype of scale, returned in that of x."""
    if not _has_kernels(x):
        return ((x - _map(centre)) * _map(scale) + _map(shift)).to(x.dtype)
    if _is_wide_channels_last(x):
        return torch.addcmul(_map(shift - centre * scale), x, _map(scale))
    y = torch.empty_like(x)
    parts, none = _instances(x), scale.new_empty(0)
    centre, scale, shift = (t.reshape(len(parts), -1) for t in (centre, scale, shift))
    ones = torch.ones_like(scale[0])
    for i, (source, target) in enumerate(zip(parts, _instances(y), strict=True)):
        torch.native_batch_norm(source, scale[i], shift[i], centre[i], ones, False, 0.0, 0.0, out=(target, none, none))
    return y


def _affine_backward(dy: Tensor, x: Tensor, centre: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """scale dy, and over the pixels the sums of dy (x - centre) and of dy, (N, C) each."""
    dy = dy.contiguous(memory_format=torch.contiguous_format if x.is_contiguous() else torch.channels_last)
    if not _has_kernels(x) or _is_wide_channels_last(x):
        dy = dy.to(scale.dtype)
        samples = max(1, 2**18 // x[0].numel()) if _has_kernels(x) else len(x)  # on CPU, slices that fit in the cache
        slices = zip(dy.split(samples), x.split(samples), centre.split(samples), strict=True)
        dscale = torch.cat([(part - _map(middle)).mul_(grad).sum((2, 3)) for grad, part, middle in slices])
        return (dy * _map(scale)).to(x.dtype), dscale, dy.sum((2, 3))
    parts = _instances(x)
    centres, scales = centre.reshape(len(parts), -1), scale.reshape(len(parts), -1)
    ones = torch.ones_like(scales[0])
    results = [
        torch.ops.aten.native_batch_norm_backward(
            *(grad, part, scales[i], centres[i], ones, centres[i], ones), False, 0.0, (True, True, True)
        )
        for i, (grad, part) in enumerate(zip(_instances(dy), parts, strict=True))
    ]
    dx, dscale, dshift = zip(*results, strict=True)
    return _joined(dx, x.shape), _joined(dscale, scale.shape), _joined(dshift, scale.shape)


def _add_affine_(target: Tensor, x: Tensor, centre: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """target += scale (x - centre) + shift, without a tensor of the size of x where the dtype allows it."""
    if target.dtype == scale.dtype:
        return target.addcmul_(x, _map(scale)).add_(_map(shift - centre * scale))
    return target.add_(_affine(x, centre, scale, shift))


def _map(values: Tensor) -> Tensor:
    return values[:, :, None, None]  # (N, C) -> (N, C, 1, 1)
