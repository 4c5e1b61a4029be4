"""What torch's BatchNorm layers do as modules, SepBN does, with one set and with several.

With all sets alike SepBN is BatchNorm whatever its attention says, so each property is compared
with the layer of torch that stands beside it.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel, update_bn
from torch.utils.checkpoint import checkpoint

from models.sepbn import SepBatchNorm1d, SepBatchNorm2d, SepBatchNorm3d

CHANNELS = 4
KINDS = {
    "(N, C)": (SepBatchNorm1d, nn.BatchNorm1d, ()),
    "(N, C, L)": (SepBatchNorm1d, nn.BatchNorm1d, (7,)),
    "(N, C, H, W)": (SepBatchNorm2d, nn.BatchNorm2d, (5, 3)),
    "(N, C, D, H, W)": (SepBatchNorm3d, nn.BatchNorm3d, (2, 3, 4)),
}
SETS = {"K=1": {"num_sets": 1}, "K=3 G=2": {"num_sets": 3, "groups": 2}}

Make = Callable[..., tuple[nn.Module, nn.Module]]


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture(params=SETS)
def make(request, kind) -> Make:
    """Makes SepBN and the BatchNorm that it equals, with affine map and estimates at random."""

    def pair(**options) -> tuple[nn.Module, nn.Module]:
        torch.manual_seed(0)
        ours = KINDS[kind][0](CHANNELS, **SETS[request.param], **options)
        theirs = KINDS[kind][1](CHANNELS, **options)
        with torch.no_grad():
            for parameter in theirs.parameters():
                parameter.normal_()
            if theirs.running_mean is not None:
                theirs.running_mean.normal_()
                theirs.running_var.uniform_(0.5, 2)
        ours.load_state_dict(theirs.state_dict(), strict=theirs.affine)
        return ours, theirs

    return pair


@pytest.fixture
def data(kind) -> Callable[..., Tensor]:
    def draw(batch: int = 6, *, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        x = 2 * torch.randn(batch, CHANNELS, *KINDS[kind][2], generator=generator) + 1
        return x.to(dtype)

    return draw


def check_equal(ours: nn.Module, theirs: nn.Module, x: Tensor, tolerance: float = 1e-5) -> None:
    """Outputs, gradients of input and affine map, and running estimates."""
    inputs = [x.clone(memory_format=torch.preserve_format).requires_grad_() for _ in range(2)]
    outputs = [layer(value) for layer, value in zip((ours, theirs), inputs, strict=True)]
    assert outputs[0].dtype == outputs[1].dtype and outputs[0].shape == outputs[1].shape
    close = partial(torch.testing.assert_close, rtol=tolerance, atol=tolerance, equal_nan=True)
    close(*outputs)

    if outputs[0].requires_grad:
        for output in outputs:
            output.backward(torch.linspace(-1, 2, output.numel()).view(x.shape).to(output.dtype))
        close(inputs[0].grad, inputs[1].grad)
        for name, parameter in theirs.named_parameters():
            gradient = getattr(ours, name).grad.sum(0)
            close(gradient.to(parameter.dtype), parameter.grad, rtol=1e-4, atol=10 * tolerance)

    for name, buffer in theirs.named_buffers():
        close(ours.get_buffer(name), buffer)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"affine": False},
        {"track_running_stats": False},
        {"momentum": None},
        {"momentum": 0.7, "eps": 0.1},
        {"dtype": torch.float64},
    ],
    ids=str,
)
def test_training_and_evaluation(make, data, options):
    ours, theirs = make(**options)
    for seed in range(3):
        check_equal(ours, theirs, data(seed=seed, dtype=options.get("dtype", torch.float32)))
    check_equal(ours.eval(), theirs.eval(), data(dtype=options.get("dtype", torch.float32)))


@pytest.mark.skipif(torch.__version__ < "2.13", reason="needs 2.13")
def test_without_shifts(make, data):
    ours, theirs = make(bias=False)
    assert ours.bias is None and "bias" not in ours.state_dict()
    check_equal(ours, theirs, data())


@pytest.mark.parametrize("training", [True, False])
def test_tracking_switched_off_later(make, data, training):
    """In training the estimates then stay; in evaluation they serve all the same."""
    ours, theirs = (layer.train(training) for layer in make())
    ours.track_running_stats = theirs.track_running_stats = False
    check_equal(ours, theirs, data())
    assert ours.num_batches_tracked == 0


def test_settings_changed_later(make, data):
    ours, theirs = make()
    for name, value in (("momentum", 0.9), ("momentum", None), ("eps", 0.3), ("momentum", 0.0)):
        setattr(ours, name, value)
        setattr(theirs, name, value)
        check_equal(ours, theirs, data())
    ours.reset_running_stats()
    assert ours.running_mean.eq(0).all() and ours.running_var.eq(1).all()
    assert ours.num_batches_tracked == 0 and not ours.weight.eq(1).all()
    ours.reset_parameters()
    assert ours.weight.eq(1).all() and ours.bias.eq(0).all()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(0, CHANNELS), (3, CHANNELS)], ids=["no samples", "no pixels"])
def test_empty_batches(kind, make, training, shape):
    size = KINDS[kind][2]
    if shape[0] and not size:
        pytest.skip("(N, C) has no pixels to lack")
    ours, theirs = (layer.train(training) for layer in make())
    check_equal(ours, theirs, torch.zeros(*shape, *(size if not shape[0] else (0,) * len(size))))


@pytest.mark.parametrize(
    "shape", [(3,), (2, 3), (2, 3, 4), (2, 3, 4, 5), (2, 3, 4, 5, 6), (2, 3, 4, 5, 6, 7)], ids=len
)
def test_wrong_numbers_of_dimensions(make, shape):
    ours, theirs = make()
    for layer in (ours, theirs):
        layer.eval()
    shape = (shape[0], CHANNELS, *shape[2:])[: len(shape)]
    errors = []
    for layer in (ours, theirs):
        try:
            layer(torch.zeros(shape))
            errors.append("")
        except ValueError as error:
            errors.append(str(error))
    assert errors[0] == errors[1]


def test_wrong_channels_and_single_values(kind, make, data):
    ours, theirs = make()
    size = KINDS[kind][2]
    for layer in (ours, theirs):
        with pytest.raises((ValueError, RuntimeError), match=f"{CHANNELS}"):
            layer(torch.zeros(3, CHANNELS + 1, *size))
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            layer(torch.zeros(1, CHANNELS, *(1 for _ in size)))


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
def test_numbers_that_are_not_real(make, data, dtype):
    """Refused by plain operations, too, which could round the output or take its real part."""
    for layer in make():
        with pytest.raises((TypeError, NotImplementedError)), dual_level():
            layer(data().to(dtype))
        with pytest.raises((TypeError, NotImplementedError)):
            layer(input=data().to(dtype))


def test_another_default_device(make, data):
    for layer in make():
        expected = copy.deepcopy(layer)(data())
        x = data()
        with torch.device("meta"):
            assert torch.equal(layer(x), expected)


def test_layouts(kind, make, data):
    """Expanded, strided, transposed and channels-last inputs; the output has the input's layout."""
    x = data()
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    layouts = [x, x[:1].expand_as(x), torch.cat((x, x))[::2], x.transpose(0, -1).contiguous()]
    layouts[-1] = layouts[-1].transpose(0, -1)
    layouts += [x.contiguous(memory_format=last)] if last else []

    for value in layouts:
        ours, theirs = make()
        check_equal(ours, theirs, value)
        for layer in (ours, theirs):
            layer.eval()
        check_equal(ours, theirs, value)
    if last:
        assert ours(layouts[-1]).is_contiguous(memory_format=last)
        assert ours.train()(layouts[-1]).is_contiguous(memory_format=last)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("whole", [True, False], ids=["layer too", "input only"])
def test_low_precision(make, data, dtype, whole):
    ours, theirs = make()
    if whole:
        ours, theirs = ours.to(dtype), theirs.to(dtype)
    assert ours(data().to(dtype)).dtype == theirs(data().to(dtype)).dtype == dtype
    torch.testing.assert_close(ours(data().to(dtype)), theirs(data().to(dtype)), atol=0.1, rtol=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(data().bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("training", [True, False])
def test_in_place_around_the_layer(make, data, training):
    """What follows may overwrite the output; what precedes may not be overwritten unnoticed."""
    ours, theirs = (layer.train(training) for layer in make())
    check_equal(nn.Sequential(ours)[0], theirs, data())
    x = data().requires_grad_()
    copies = [copy.deepcopy(ours) for _ in range(2)]
    expected = torch.autograd.grad(F.relu(copies[0](x)).sum(), x)
    found = torch.autograd.grad(F.relu(copies[1](x), inplace=True).sum(), x)
    assert torch.equal(expected[0], found[0])

    y = x * 1
    output = ours(y)
    y.add_(1)
    with pytest.raises(RuntimeError, match="inplace"):
        output.sum().backward()


def test_training_between_the_passes_of_evaluation(make, data):
    """As where one loss has a part in evaluation and a part in training mode."""
    (ours, _), x = make(), data().requires_grad_()
    gradients = []
    for moved in (False, True):
        loss = ours.eval()(x).square().sum()
        if moved:
            ours.train()(data(seed=2))
        gradients += torch.autograd.grad(loss, x)
    assert torch.equal(*gradients)


def test_gradients_where_they_are_asked_for(make, data):
    ours, theirs = make()
    for layer in (ours, theirs):
        layer.requires_grad_(False)
    assert not ours(data()).requires_grad and not theirs(data()).requires_grad
    check_equal(ours.requires_grad_(), theirs.requires_grad_(), data())
    with torch.no_grad():
        assert not ours(data()).requires_grad
    with torch.inference_mode():
        assert ours(data()).is_inference()


def test_hooks(make, data):
    ours, theirs = make()
    called: dict[nn.Module, list[str]] = {ours: [], theirs: []}
    for layer, names in called.items():
        layer.register_forward_pre_hook(lambda *_, names=names: names.append("before"))
        layer.register_forward_hook(lambda *_, names=names: names.append("after"))
        layer.register_full_backward_pre_hook(lambda *_, names=names: names.append("back"))
        layer.register_full_backward_hook(
            lambda _, ins, outs, names=names: names.append((ins[0].shape, outs[0].shape))
        )
        layer(data().requires_grad_()).sum().backward()
    assert called[ours] == called[theirs] and len(called[ours]) == 4

    gradients = []
    ours.weight.register_hook(gradients.append)
    ours(data().requires_grad_()).sum().backward()
    assert len(gradients) == 1


def test_recomputed_in_checkpoints(make, data):
    for reentrant in (True, False):
        (ours, _), (other, _) = make(), make()
        x = data().requires_grad_()
        (expected,) = torch.autograd.grad(ours(x).square().sum(), x)
        checkpoint(other, x, use_reentrant=reentrant).square().sum().backward()
        assert torch.equal(x.grad, expected)


def saved(layer: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def reloaded(layer: nn.Module, device: str, *, assign: bool = False) -> nn.Module:
    """Another layer, made on a device, with this one's state dict."""
    with torch.device(device):
        other = type(layer)(CHANNELS, layer.num_sets, layer.groups)
    if device == "meta" and not assign:
        rubbish = [torch.full((5000,), 7e7) for _ in range(50)]
        del rubbish  # memory that others have written into
        other.to_empty(device="cpu")
    other.load_state_dict(layer.state_dict(), assign=assign)
    return other


@pytest.mark.parametrize(
    "another",
    [
        *(copy.copy, copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer)), saved),
        *(lambda layer: copy.deepcopy(layer).double().float(), nn.Module.share_memory),
        *(partial(reloaded, device="cpu"), partial(reloaded, device="cpu", assign=True)),
        *(partial(reloaded, device="meta"), partial(reloaded, device="meta", assign=True)),
    ],
)
def test_copies(make, data, another):
    ours, theirs = make(momentum=0.1)
    ours.temperature.fill_(7)
    ours(data())
    assert set(theirs.state_dict()) <= set(ours.state_dict())
    other = another(ours)
    assert torch.equal(other.eval()(data()), ours.eval()(data()))
    assert other.temperature == 7 and other.num_batches_tracked.dtype == torch.long


def test_state_dicts_of_others(make, data):
    ours, _ = make()
    state = ours.state_dict()
    del state["running_mean"]
    with pytest.raises(RuntimeError, match="running_mean"):
        ours.load_state_dict(state)
    state = ours.state_dict()
    del state["num_batches_tracked"]  # before torch 0.4.1
    state._metadata[""]["version"] = 1
    ours.load_state_dict(state)

    doubled = {name: value.detach() * 2 for name, value in ours.eval().state_dict().items()}
    found = torch.func.functional_call(ours, doubled, (data(),))
    ours.load_state_dict(doubled)
    assert torch.equal(found, ours(data()))


def test_meta_device(kind, make, data):
    ours, _ = make()
    with torch.device("meta"):
        layer = KINDS[kind][0](CHANNELS, ours.num_sets, ours.groups, temperature=5.0)
    assert layer(data().to("meta")).shape == data().shape
    assert ours.to("meta").running_mean.device.type == "meta"

    layer.to_empty(device="cpu").reset_parameters()
    assert layer.temperature == 5
    torch.testing.assert_close(layer(data()), KINDS[kind][1](CHANNELS)(data()))

    weights = []
    for parts in [layer], [layer.fc1, layer.fc2]:  # a part may be reset alone
        torch.manual_seed(0)
        for part in parts:
            part.reset_parameters()
        weights.append((layer.fc1.weight.clone(), layer.fc2.weight.clone()))
    assert all(map(torch.equal, *weights))


def test_transforms_of_functions(make, data):
    ours, theirs = (layer.eval() for layer in make())
    results: list[list[Tensor]] = []
    for layer in (ours, theirs):

        def loss(x: Tensor, layer: nn.Module = layer) -> Tensor:
            return layer(x).square().sum()

        x = data()
        results.append(
            [
                torch.func.grad(loss)(x),
                torch.func.vmap(torch.func.grad(lambda one, loss=loss: loss(one[None])))(x),
                torch.func.jvp(layer, (x,), (x,))[1],
                torch.func.hessian(loss)(x[:2]),
            ]
        )
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def gradients_twice(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """As PyHessian and gradient penalties have them: the loss itself, and of its gradients."""
    inputs = (x, *(getattr(layer, name) for name in ("weight", "bias")))
    loss = layer(x).pow(3).sum()
    usual = torch.autograd.grad(loss, inputs, retain_graph=True)
    first = torch.autograd.grad(loss, inputs, create_graph=True)
    penalty = sum(part.square().sum() for part in first)
    products = torch.autograd.grad(penalty, inputs, retain_graph=True)
    together = torch.autograd.grad(loss + penalty, inputs)
    batches = torch.autograd.grad(
        layer(x), inputs, torch.stack((x, x * 2)).detach(), is_grads_batched=True
    )
    return [*usual, *first, *products, *together, *batches]


@pytest.mark.parametrize("training", [True, False])
def test_second_derivatives_and_batches_of_gradients(make, data, training):
    ours, theirs = (layer.double().train(training) for layer in make())
    x = data(dtype=torch.float64).requires_grad_()
    if ours.num_sets == 1:
        for found, expected in zip(
            gradients_twice(ours, x), gradients_twice(theirs, x), strict=True
        ):
            torch.testing.assert_close(found.view_as(expected), expected, rtol=1e-9, atol=1e-9)

    nn.init.normal_(ours.weight)
    with dual_level():
        plain = gradients_twice(ours, x)
    for found, expected in zip(gradients_twice(ours, x), plain, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    names, parameters = zip(*ours.named_parameters(), strict=True)

    def call(layer: nn.Module, x: Tensor, *values: Tensor) -> Tensor:
        buffers = {name: buffer.clone() for name, buffer in layer.named_buffers()}
        state = {**buffers, **dict(zip(names, values, strict=True))}
        return torch.func.functional_call(layer, state, (x,))

    inputs = (data(3, dtype=torch.float64).requires_grad_(), *parameters)
    function = partial(call, ours)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True, fast_mode=True)


@pytest.mark.parametrize("training", [True, False])
def test_forward_mode(make, data, training):
    x, tangents = data(), []
    for layer in make():
        with torch.no_grad(), dual_level():
            output = layer.train(training)(make_dual(x, x.flip(0)))
            tangents.append(unpack_dual(output).tangent)
    torch.testing.assert_close(*tangents, rtol=1e-4, atol=1e-5)


def test_plain_operations_give_the_same(make, data):
    (ours, theirs), x = make(), data()
    with dual_level():
        check_equal(ours, theirs, x)
        check_equal(ours.eval(), theirs.eval(), x)


def test_recipes_for_batchnorm_find_it(kind, make, data):
    ours, theirs = make()
    assert isinstance(ours, KINDS[kind][1])  # no_decay rules, PreciseBN, freezing
    batches = [data(seed=seed) for seed in range(4)]
    for layer in (ours, theirs):
        averaged = AveragedModel(layer)
        update_bn(batches, averaged)
        torch.testing.assert_close(
            averaged.module.running_mean,
            torch.cat(batches).transpose(0, 1).flatten(1).mean(1),
        )
        assert averaged.module.momentum == 0.1 and averaged.module.num_batches_tracked == 4


def test_compiled(make, data):
    torch._dynamo.reset()
    ours, _ = make()
    compiled = torch.compile(copy.deepcopy(ours), backend="aot_eager", fullgraph=True)
    with torch.device("cpu"):  # a default device, under which dynamo knows fewer methods of tensors
        torch.testing.assert_close(compiled(data()), ours(data()), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(compiled.running_var, ours.running_var, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(compiled.eval()(data()), ours.eval()(data()), rtol=1e-5, atol=1e-5)


def test_symbolic_tracing_takes_it_for_one_node(make, data):
    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, module: nn.Module, name: str) -> bool:
            return isinstance(module, nn.modules.batchnorm._BatchNorm)

    net = nn.Sequential(make()[0], nn.ReLU()).eval()
    with pytest.raises(torch.fx.proxy.TraceError, match="is_leaf_module"):
        torch.fx.symbolic_trace(net)
    with pytest.raises(TypeError, match=r"jit\.script cannot read SepBatchNorm"):
        torch.jit.script(net)
    traced = torch.fx.GraphModule(net, Tracer().trace(net))
    assert torch.equal(traced(data()), net(data()))


def test_attention_follows_its_modules(make, data):
    """Forward hooks of fc1 and fc2 act: parametrisations, spectral norm, pruning."""
    ours, _ = make()
    before = ours.attention(data()).detach()
    for layer in (ours.fc1, ours.fc2):
        nn.utils.spectral_norm(layer)
    nn.init.normal_(ours.weight)
    for _ in range(2):
        ours(data()).square().sum().backward()
    assert ours.fc2.weight_orig.grad is not None and before.shape == ours.attention(data()).shape

    ours, _ = make()
    for layer in (ours.fc1, ours.fc2):
        prune.l1_unstructured(layer, "weight", amount=1.0)
    for _ in range(2):
        ours(data()).square().sum().backward()
    even = torch.full_like(before, 1 / ours.num_sets)
    torch.testing.assert_close(ours.attention(data()), even)
