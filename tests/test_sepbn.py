"""SepBatchNorm2d against K BatchNorms, stacked, weighted and summed as the equations say."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.converted import saved_bytes
from benchmarks.kernels import Work, count_step
from models import sepbn
from models.sepbn import SepBatchNorm2d

LAYOUTS = [torch.contiguous_format, torch.channels_last]


class ManyBatchNorms(nn.Module):
    """The slow reference: K full BatchNorms of one input, weighted by the attention and summed."""

    def __init__(self, layer: SepBatchNorm2d):
        super().__init__()
        self.num_sets, self.groups = layer.num_sets, layer.groups
        self.temperature = layer.temperature.item()
        self.grid = layer.attention_grid or 1
        channels = layer.num_features
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(channels, layer.eps, layer.momentum).to(layer.weight)
            for _ in range(self.num_sets)
        )
        self.squeeze, self.expand = copy.deepcopy(layer.fc1), copy.deepcopy(layer.fc2)

        with torch.no_grad():
            for k, norm in enumerate(self.norms):
                norm.weight.copy_(layer.weight[k])
                norm.bias.copy_(layer.bias[k])
                norm.running_mean.copy_(layer.running_mean)
                norm.running_var.copy_(layer.running_var)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.leaky_relu(self.squeeze(cell_means(x, self.grid)), 0.01)
        logits = self.expand(hidden.reshape(len(x), -1, 1, 1))[:, :, 0, 0]
        normalised = [norm(x).chunk(self.groups, dim=1) for norm in self.norms]
        mixed = []

        for group in range(self.groups):
            rows = logits[:, group * self.num_sets : (group + 1) * self.num_sets] / self.temperature
            weights = torch.softmax(rows, dim=1)[..., None, None, None]  # (N, K, 1, 1, 1)
            mixed.append(sum(weights[:, k] * each[group] for k, each in enumerate(normalised)))

        return torch.cat(mixed, dim=1)


def cell_means(x: Tensor, count: int) -> Tensor:
    """Means over count x count cells that cover a map, overlapping where they do not divide it."""

    def spans(length: int) -> list[slice]:
        return [slice(i * length // count, -(-(i + 1) * length // count)) for i in range(count)]

    rows = [[x[:, :, y, c].mean((2, 3)) for c in spans(x.shape[3])] for y in spans(x.shape[2])]
    return torch.stack([torch.stack(row, dim=2) for row in rows], dim=2)


def make_layer(channels: int = 6, **options) -> SepBatchNorm2d:
    layer = SepBatchNorm2d(channels, **{"temperature": 0.7, "dtype": torch.float64, **options})
    with torch.no_grad():
        layer.weight.normal_()
        layer.bias.normal_()
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
    return layer


def make_input(*shape: int, layout=torch.contiguous_format, dtype=torch.float64) -> Tensor:
    x = 2 * torch.randn(shape, dtype=torch.float64) + 1 + torch.arange(shape[1])[:, None, None] / 3
    return x.to(dtype).contiguous(memory_format=layout).requires_grad_()


def in_layout(x: Tensor, layout) -> bool:
    return x.is_contiguous(memory_format=layout)


@pytest.fixture(params=["kernels", "plain"])
def path(request, monkeypatch):
    """ATen's CPU kernels, and the plain operations that serve every other device."""
    if request.param == "plain":
        monkeypatch.setattr(sepbn, "_has_kernels", lambda x: False)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("num_sets", "groups", "grid"),
    [(3, 1, None), (3, 2, None), (4, 3, None), (1, 1, None), (3, 2, 2), (2, 1, 1)],
)
def test_equals_many_batchnorms(path, layout, training, num_sets, groups, grid):
    torch.manual_seed(0)
    layer = make_layer(num_sets=num_sets, groups=groups, attention_grid=grid).train(training)
    reference = ManyBatchNorms(layer).train(training)
    x = make_input(4, 6, 5, 3, layout=layout)
    other = x.detach().clone().requires_grad_()
    gradient = torch.randn(4, 6, 5, 3, dtype=torch.float64)

    with torch.no_grad():
        without_gradients = copy.deepcopy(layer)(x)

    for again in range(2):  # running estimates move on
        output, expected = layer(x), reference(other)
        output.backward(gradient)
        expected.backward(gradient)
        assert again or torch.equal(without_gradients, output)

    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(x.grad, other.grad, rtol=0, atol=1e-11)

    for ours, theirs in [
        (layer.weight.grad, torch.stack([norm.weight.grad for norm in reference.norms])),
        (layer.bias.grad, torch.stack([norm.bias.grad for norm in reference.norms])),
        (layer.fc1.weight.grad, reference.squeeze.weight.grad),
        (layer.fc2.weight.grad, reference.expand.weight.grad),
        (layer.running_mean, reference.norms[-1].running_mean),
        (layer.running_var, reference.norms[-1].running_var),
    ]:
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)

    assert layer.num_batches_tracked == reference.norms[0].num_batches_tracked
    assert in_layout(output, layout) and in_layout(x.grad, layout)


def worst_errors(x: Tensor, gradient: Tensor) -> tuple[list[float], list[float]]:
    """Errors against float64 of our layer with one set and of BatchNorm.

    Those of output and of the gradients of input and affine map; the largest ones, relative to the
    largest value.
    """
    channels = x.shape[1]
    results = []
    for layer, dtype in [
        (nn.BatchNorm2d(channels, dtype=torch.float64), torch.float64),
        (SepBatchNorm2d(channels, num_sets=1), x.dtype),
        (nn.BatchNorm2d(channels), x.dtype),
    ]:
        inputs = x.detach().to(dtype).requires_grad_()
        output = layer(inputs)
        assert output.dtype == dtype
        output.backward(gradient.to(dtype))
        assert inputs.grad.dtype == dtype
        gradients = (inputs.grad, layer.weight.grad.view(-1), layer.bias.grad.view(-1))
        results.append([tensor.double() for tensor in (output, *gradients)])

    exact, ours, theirs = results
    error = [
        [((a - b).abs().max() / b.abs().max()).item() for a, b in zip(found, exact, strict=True)]
        for found in (ours, theirs)
    ]
    return error[0], error[1]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("dtype", "mean"), [(torch.float32, 1e3), (torch.bfloat16, 10.0), (torch.bfloat16, 100.0)]
)
def test_accuracy_far_from_zero(path, layout, dtype, mean):
    torch.manual_seed(2)
    x = (torch.randn(8, 16, 32, 32) + mean).to(dtype).contiguous(memory_format=layout)
    gradient = torch.randn(x.shape).to(dtype)
    for ours, theirs in zip(*worst_errors(x, gradient), strict=True):
        # A few roundings: where BatchNorm is exact, the order of summing decides.
        assert ours <= 3 * theirs + 3e-7


def test_low_precision_keeps_the_shift_exact(path):
    """A shift that bfloat16 cannot hold must not be rounded before it is added."""
    layer = SepBatchNorm2d(2, num_sets=2)
    scale, shift = 2**-9, 1 + 2**-8 - 2**-11  # bfloat16 numbers around 1 are 2**-7 apart
    nn.init.constant_(layer.weight, scale)
    nn.init.constant_(layer.bias, shift)
    x = torch.randn(4, 2, 16, 16).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = layer(x)
    exact = F.batch_norm(x.double(), None, None, training=True) * scale + shift

    assert output.dtype == torch.bfloat16
    assert (output.double() - exact).abs().max() <= 2**-8 + 1e-6  # half of that distance


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_backward_twice_and_in_parts(path, training, affine):
    """The passes hand coefficients over: again each time, and for whatever part is asked for."""
    layer = make_layer(4, num_sets=2, groups=2) if affine else SepBatchNorm2d(4, affine=False)
    x = make_input(3, 4, 5, 3)
    gradient = torch.randn(3, 4, 5, 3, dtype=torch.float64)
    inputs = (x, *layer.parameters())
    output = layer.train(training)(x)

    once = torch.autograd.grad(output, inputs, gradient, retain_graph=True)
    twice = torch.autograd.grad(output, inputs, 2 * gradient, retain_graph=True)
    for one, two in zip(once, twice, strict=True):
        torch.testing.assert_close(two, 2 * one, rtol=1e-12, atol=1e-12)

    for wanted, expected in zip(inputs, once, strict=True):
        (alone,) = torch.autograd.grad(output, wanted, gradient, retain_graph=True)
        assert torch.equal(alone, expected)


def test_backward_of_an_expanded_gradient_and_of_a_strided_input(path):
    layer = make_layer(4, num_sets=2)
    reference = ManyBatchNorms(layer)
    wide = make_input(3, 8, 6, 6)
    other = wide.detach().clone().requires_grad_()
    (layer(wide[:, ::2, ::2, 1:]) * 3).mean().backward()
    (reference(other[:, ::2, ::2, 1:]) * 3).mean().backward()
    torch.testing.assert_close(wide.grad, other.grad, rtol=0, atol=1e-12)


def test_gradient_reaches_the_input_only_through_what_was_asked(path):
    """Frozen maps and an input without gradient, as in fine-tuning."""
    layer = make_layer(4)
    layer.weight.requires_grad_(False)
    layer(make_input(2, 4, 3, 3).detach()).square().sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad.abs().sum() > 0 and layer.fc1.weight.grad is not None


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_saved_for_backward(layout, dtype):
    x = make_input(8, 64, 32, 32, layout=layout, dtype=dtype)
    assert saved_bytes(SepBatchNorm2d(64, 8, 2), x) <= 1.05 * saved_bytes(nn.BatchNorm2d(64), x)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("dtype", "groups", "forward", "backward"),
    [
        (torch.float32, 1, Work(big=2, passes=3, small=19), Work(big=5, passes=10, small=16)),
        (torch.float32, 2, Work(big=2, passes=3, small=20), Work(big=5, passes=10, small=17)),
        (torch.bfloat16, 2, Work(big=3, passes=5, small=20), Work(big=5, passes=10, small=19)),
    ],
)
def test_work_where_no_kernels_are_made_for_it(dtype, groups, forward, backward, layout):
    """Passes over the map and small kernels are what the layer costs on a GPU."""
    layer = SepBatchNorm2d(64, 3, groups, device="meta")
    x = torch.empty(8, 64, 32, 32, dtype=dtype, device="meta").contiguous(memory_format=layout)
    counted = count_step(layer, x)
    assert [counter.work for counter in counted] == [forward, backward]


@pytest.mark.parametrize("grid", [None, 2])
def test_attention_weights(grid):
    layer = make_layer(6, num_sets=3, groups=2, attention_grid=grid)
    x = make_input(5, 6, 4, 4)
    weights = layer.attention(x)

    assert weights.shape == (5, 2, 3)
    torch.testing.assert_close(weights.sum(2), torch.ones(5, 2, dtype=torch.float64))

    layer.temperature.fill_(1e6)
    torch.testing.assert_close(
        layer.attention(x), torch.full((5, 2, 3), 1 / 3).double(), rtol=0, atol=1e-4
    )

    seen = []
    layer.register_forward_pre_hook(lambda module, inputs: seen.append(module.attention(inputs[0])))
    layer(x)

    torch.testing.assert_close(seen[0], layer.attention(x))
    torch.testing.assert_close(
        layer.attention(x.float().bfloat16()), layer.attention(x).float(), rtol=0, atol=1e-2
    )


def test_initial_values_and_names():
    torch.manual_seed(5)
    layer = SepBatchNorm2d(64, 3, 2, temperature=30.0)
    assert set(layer.state_dict()) == {
        *("weight", "bias", "fc1.weight", "fc2.weight", "temperature"),
        *("running_mean", "running_var", "num_batches_tracked"),
    }
    assert layer.weight.eq(1).all() and layer.bias.eq(0).all() and layer.temperature == 30
    assert layer.fc1.weight.shape == (6, 64, 1, 1) and layer.fc2.weight.shape == (6, 6, 1, 1)
    assert layer.fc1.weight.abs().max() <= (6 / 64) ** 0.5 and layer.fc2.weight.abs().max() <= 1
    assert SepBatchNorm2d(4).fc1.weight.shape[0] == 1  # the bottleneck is never empty

    grid = SepBatchNorm2d(64, 3, 2, attention_grid=4)
    assert grid.fc1.weight.shape == (2, 64, 1, 1) and grid.fc2.weight.shape == (6, 32, 1, 1)
    assert repr(layer).startswith("SepBatchNorm2d(\n  64, ")
    assert "num_sets=3, groups=2" in repr(layer)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_features": 6, "groups": 4}, "divisible"),
        ({"num_features": 6, "groups": 0}, "divisible"),
        ({"num_features": 6, "num_sets": 0}, "num_sets"),
        ({"num_features": 6, "attention_grid": 0}, "attention_grid"),
        ({"num_features": 6, "temperature": 0.0}, "temperature"),
        ({"num_features": 6, "temperature": float("nan")}, "temperature"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SepBatchNorm2d(**arguments)


class Compiled(nn.Module):
    def __init__(self, grid: int | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = SepBatchNorm2d(8, 3, 2, attention_grid=grid, temperature=3.0)
        nn.init.normal_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


def check_compiled(
    backend, batches: tuple[int, ...], training: bool, grid: int | None = None
) -> None:
    torch.manual_seed(6)
    eager = Compiled(grid).train(training)
    module = copy.deepcopy(eager)
    compiled = torch.compile(module, backend=backend, fullgraph=True)

    for step, batch in enumerate(batches):
        for layer in (eager.norm, module.norm):
            layer.temperature.fill_(30.0 - step)
        x = torch.randn(batch, 3, 10, 10)
        output, expected = compiled(x), eager(x)
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
        gradient = torch.randn_like(output)
        for ours, theirs in zip(
            torch.autograd.grad(output, list(module.norm.parameters()), gradient),
            torch.autograd.grad(expected, list(eager.norm.parameters()), gradient),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    for name, buffer in module.norm.named_buffers():
        torch.testing.assert_close(buffer, eager.norm.get_buffer(name), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("training", "grid"), [(True, None), (False, None), (True, 4)])
def test_compiles_into_one_graph_for_all_temperatures(training, grid):
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    check_compiled(counter, (8, 4, 6, 1, 5, 8), training, grid)
    assert counter.frame_count <= 3


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_compiles_with_inductor():
    torch._dynamo.reset()
    check_compiled("inductor", (4,), training=True)


def test_exports_with_a_dynamic_batch():
    model = Compiled().eval()
    x = torch.randn(2, 3, 10, 10)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert "aten.mean.dim" in names and not any("batch_norm" in name for name in names)
    x = torch.randn(5, 3, 10, 10)
    torch.testing.assert_close(program.module()(x), model(x))


def test_traces_for_older_tools():
    model = Compiled().eval()
    with torch.no_grad():
        traced = torch.jit.trace(model, torch.randn(2, 3, 10, 10))
        x = torch.randn(5, 3, 10, 10)
        torch.testing.assert_close(traced(x), model(x))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_cuda_equals_cpu(layout, dtype):
    torch.manual_seed(7)
    layer = make_layer(
        6, num_sets=3, groups=2, dtype=torch.float64 if dtype == torch.float64 else torch.float32
    )
    there = copy.deepcopy(layer).cuda()
    x = make_input(4, 6, 5, 3, layout=layout, dtype=dtype)
    y = x.detach().cuda().requires_grad_()
    tolerance = {"rtol": 0, "atol": 1e-11 if dtype == torch.float64 else 0.1}

    for mode in (True, False):
        output, expected = there.train(mode)(y), layer.train(mode)(x)
        gradient = torch.randn(output.shape).to(dtype)
        output.backward(gradient.cuda())
        expected.backward(gradient)
        assert output.dtype == dtype and in_layout(output, layout)
        torch.testing.assert_close(output.cpu(), expected, **tolerance)

    torch.testing.assert_close(y.grad.cpu(), x.grad, **tolerance)
