"""The Vanilla CNN: counts, values, initialisation and the weights of the released training code."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import Baseline, BaselineSepDyBN, VanillaCNN
from models.vanilla import released_state_dict


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (lambda: Baseline("none"), 42_327_876),
        (lambda: Baseline(), 42_335_940),
        (lambda: BaselineSepDyBN(groups=1), 42_909_940),
        (lambda: BaselineSepDyBN(), 42_911_140),
    ],
)
def test_parameter_counts_as_published(make, count):
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in make().parameters()) == count


@pytest.mark.parametrize("norm", ["none", "bn"])
def test_values_as_the_released_order_of_layers(norm):
    """Convolution, normalisation, LeakyReLU, then the pool: the values of pooling first."""
    torch.manual_seed(0)
    model = Baseline(norm, num_landmarks=5, width=4)
    x = torch.randn(3, 3, 128, 128)
    expected = x

    for stage in range(1, 7):
        expected = getattr(model, f"conv{stage}")(expected)
        if norm == "bn":
            expected = F.batch_norm(expected, None, None, training=True)

        expected = F.max_pool2d(F.leaky_relu(expected, 0.01), 2)

    expected = model.fc2(F.leaky_relu(model.fc1(expected.reshape(3, -1)), 0.01))
    output = model(x)
    assert output.shape == (3, 10)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)

    layout = {"memory_format": torch.channels_last}
    output = model.to(**layout)(x.contiguous(**layout))
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)


def test_initial_weights():
    torch.manual_seed(3)
    model = BaselineSepDyBN(width=16)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = (6 / module.weight[0].numel()) ** 0.5  # Kaiming-uniform, fan-in, gain sqrt(2)
            assert 0.9 * bound < module.weight.abs().max() <= bound or module.weight.numel() < 100
            assert module.bias is None or module.bias.eq(0).all()

    torch.manual_seed(3)
    again = BaselineSepDyBN(width=16)
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_unknown_norm():
    with pytest.raises(ValueError, match="norm"):
        Baseline("batch")


class ReleasedNorm(nn.Module):
    """The released layer, from its description: K BatchNorms in `bn`, their outputs stacked,
    weighted and summed.
    """

    def __init__(self, channels: int, num_sets: int):
        super().__init__()
        self.bn = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(num_sets))
        self.fc1 = nn.Conv2d(channels, max(1, channels // 10), 1, bias=False)
        self.fc2 = nn.Conv2d(max(1, channels // 10), num_sets, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # (N, K, 1, 1), temperature 1
        logits = self.fc2(F.leaky_relu(self.fc1(x.mean((2, 3), keepdim=True)), 0.01))
        outputs = torch.stack([norm(x) for norm in self.bn], dim=1)  # (N, K, C, H, W)
        return (torch.softmax(logits, 1)[:, :, None] * outputs).sum(1)


def released_network(num_sets: int, *, same_statistics: bool) -> VanillaCNN:
    torch.manual_seed(4)
    model = VanillaCNN(lambda channels: ReleasedNorm(channels, num_sets), num_landmarks=5, width=10)
    for layer in model.modules():
        for norm in layer.bn if isinstance(layer, ReleasedNorm) else ():
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
            norm.num_batches_tracked.fill_(12)
            if not same_statistics:
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.5, 2)

    return model.eval()


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("same_statistics", [True, False])
def test_released_weights_load(prefix, same_statistics):
    reference = released_network(3, same_statistics=same_statistics)
    state = {prefix + name: value for name, value in reference.state_dict().items()}
    names = set(state)
    model = BaselineSepDyBN(3, 1, 30.0, num_landmarks=5, width=10).eval()
    model.load_state_dict(state, strict=True)

    assert set(state) == names  # the caller's dictionary is left alone
    assert model.bn1.temperature == model.bn6.temperature == 1
    assert model.bn1.num_batches_tracked == 12

    x = torch.randn(4, 3, 128, 128)
    with torch.no_grad():
        torch.testing.assert_close(model(x), reference(x), rtol=1e-5, atol=1e-5)


def test_released_weights_go_back():
    reference = released_network(3, same_statistics=True)
    model = BaselineSepDyBN(3, 1, num_landmarks=5, width=10)
    model.load_state_dict(reference.state_dict())
    written = released_state_dict(model)
    assert set(written) == set(reference.state_dict())

    for name, value in reference.state_dict().items():
        torch.testing.assert_close(written[name], value, rtol=1e-6, atol=1e-7)

    plain = Baseline("none", 5, 4)
    assert released_state_dict(plain).keys() == plain.state_dict().keys()


@pytest.mark.parametrize(
    ("groups", "temperature", "grid", "words"),
    [(2, 1, None, "channel group.*2"), (1, 30, None, "temperature.*30"), (1, 1, 2, "on a grid")],
)
def test_what_the_released_form_cannot_hold(groups, temperature, grid, words):
    model = BaselineSepDyBN(3, groups, temperature, attention_grid=grid, width=4)
    with pytest.raises(ValueError, match=f"bn1.*{words}"):
        released_state_dict(model)


def test_released_weights_that_do_not_fit_are_refused():
    state = released_network(2, same_statistics=True).state_dict()
    with pytest.raises(RuntimeError, match=r"bn1\.weight"):  # two sets for three
        BaselineSepDyBN(3, 1, num_landmarks=5, width=10).load_state_dict(state)

    del state["bn2.bn.1.running_var"]
    with pytest.raises(RuntimeError, match=r"bn2\.weight"):
        BaselineSepDyBN(2, 1, num_landmarks=5, width=10).load_state_dict(state)

    with pytest.raises(RuntimeError, match="temperature"):  # our own form has one
        own = BaselineSepDyBN(2, 1, num_landmarks=5, width=10)
        own.load_state_dict({k: v for k, v in own.state_dict().items() if k != "bn1.temperature"})
