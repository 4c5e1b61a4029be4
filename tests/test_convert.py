"""convert_batchnorm on networks that other people could have written."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import converted
from models import SepBatchNorm2d, convert_batchnorm, synchronize_statistics


class Block(nn.Module):
    def __init__(self, channels: int, shared: nn.Module | None = None):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = shared or nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = self.bn1 if shared else nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class SmallResNet(nn.Module):
    def __init__(self, shared: nn.Module | None = None):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.blocks = nn.ModuleList([Block(12), Block(12, shared)])
        self.down = nn.ModuleDict({"conv": nn.Conv2d(12, 8, 1, 2), "norm": nn.SyncBatchNorm(8)})
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        x = self.down["conv"](x)
        norm = self.down["norm"]

        if isinstance(norm, nn.SyncBatchNorm):  # refuses CPU tensors in training
            x = F.batch_norm(
                x,
                norm.running_mean,
                norm.running_var,
                norm.weight,
                norm.bias,
                norm.training,
                norm.momentum,
                norm.eps,
            )
        else:
            x = norm(x)

        return self.head(x.mean((2, 3)))


def randomise(model: nn.Module) -> nn.Module:
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d | nn.SyncBatchNorm) and layer.affine:
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    return model


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_same_function_after_conversion(training, layout):
    torch.manual_seed(0)
    model = randomise(SmallResNet()).train(training).to(memory_format=layout)
    x = torch.randn(4, 3, 16, 16).contiguous(memory_format=layout)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    expected = model(x)
    model.load_state_dict(state)  # the running estimates have moved in training
    converted = convert_batchnorm(model, num_sets=4, groups=2)

    assert converted is model
    assert not {nn.BatchNorm2d, nn.SyncBatchNorm} & {type(layer) for layer in model.modules()}
    assert sum(isinstance(layer, SepBatchNorm2d) for layer in model.modules()) == 6

    for layer in model.modules():
        if isinstance(layer, SepBatchNorm2d):  # whatever the attention says
            nn.init.normal_(layer.fc1.weight, std=3)
            nn.init.normal_(layer.fc2.weight, std=3)
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-5)

    before = model.blocks[0].bn1.running_mean.clone()
    model.train()(x).sum().backward()
    assert not torch.equal(before, model.blocks[0].bn1.running_mean)
    assert model.blocks[0].bn1.weight.grad.abs().sum() > 0


def test_settings_are_kept():
    norm = nn.BatchNorm2d(6, eps=0.01, momentum=None, dtype=torch.float64).eval()
    norm.num_batches_tracked.fill_(7)
    norm.running_var.fill_(3)
    norm.bias.requires_grad_(False)
    new = convert_batchnorm(norm, 2, 3, temperature=5.0, reduction=0.5)

    assert isinstance(new, SepBatchNorm2d)
    assert (new.num_sets, new.groups) == (2, 3)
    assert (new.eps, new.momentum, new.training) == (0.01, None, False)
    assert new.temperature == 5 and new.fc1.weight.shape[0] == 3 and new.num_batches_tracked == 7
    assert new.running_var.eq(3).all()
    assert new.weight.dtype == new.running_mean.dtype == torch.float64
    assert new.weight.requires_grad and not new.bias.requires_grad and new.fc1.weight.requires_grad
    assert not new.synchronized and convert_batchnorm(nn.SyncBatchNorm(6)).synchronized


def test_frozen_layers_stay_frozen():
    norm = nn.BatchNorm2d(6).requires_grad_(False)
    assert not any(parameter.requires_grad for parameter in convert_batchnorm(norm).parameters())


@pytest.mark.parametrize("options", [{"affine": False}, {"track_running_stats": False}])
def test_layers_without_maps_or_without_statistics(options):
    model = nn.Sequential(nn.BatchNorm2d(4, **options))
    x = torch.randn(3, 4, 5, 5)
    expected = [model.train(mode)(x) for mode in (True, False)]
    model[0].reset_running_stats()
    convert_batchnorm(model)

    assert isinstance(model[0], SepBatchNorm2d)
    assert (model[0].affine, model[0].track_running_stats) == (
        options.get("affine", True),
        options.get("track_running_stats", True),
    )

    for mode, output in zip((True, False), expected, strict=True):
        torch.testing.assert_close(model.train(mode)(x), output)


def test_shared_layers_stay_shared():
    shared = nn.BatchNorm2d(12)
    model = convert_batchnorm(SmallResNet(shared))
    assert isinstance(model.blocks[1].bn1, SepBatchNorm2d)
    assert model.blocks[1].bn1 is model.blocks[1].bn2
    twice = nn.Sequential(shared, nn.ReLU(), shared)
    convert_batchnorm(twice)
    assert twice[0] is twice[2] and isinstance(twice[0], SepBatchNorm2d)


class BatchNormAct2d(nn.BatchNorm2d):
    """Like timm's: it is a BatchNorm2d, and it carries the activation."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


def test_unknown_subclasses_are_named_and_nothing_changes():
    model = SmallResNet()
    model.blocks[1].bn2 = BatchNormAct2d(12)
    with pytest.raises(TypeError, match=r"blocks\.1\.bn2.*BatchNormAct2d"):
        convert_batchnorm(model)
    assert type(model.stem[1]) is nn.BatchNorm2d

    model = SmallResNet()
    with pytest.raises(ValueError, match=r"down\.norm.*\(8\).*groups \(3\)"):
        convert_batchnorm(model, groups=3)
    assert type(model.stem[1]) is nn.BatchNorm2d


def test_layers_before_their_first_pass_are_named():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.LazyBatchNorm2d())
    with pytest.raises(TypeError, match=r"1: LazyBatchNorm2d .* first forward"):
        convert_batchnorm(model)
    model(torch.randn(2, 1, 5, 5))
    assert isinstance(convert_batchnorm(model)[1], SepBatchNorm2d)


def test_other_layers_are_left_alone():
    model = nn.Sequential(nn.InstanceNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm(4))
    with pytest.warns(UserWarning, match="no BatchNorm"):
        kinds = [type(layer) for layer in convert_batchnorm(model)]
    assert kinds == [nn.InstanceNorm2d, nn.GroupNorm, nn.LayerNorm]


@pytest.mark.parametrize("option", ["eps", "momentum", "affine", "device", "set_count"])
def test_what_the_layers_say_themselves_is_no_option(option):
    model = nn.Sequential(nn.BatchNorm2d(4))
    with pytest.raises(TypeError, match=option):
        convert_batchnorm(model, **{option: 1})
    assert type(model[0]) is nn.BatchNorm2d


def network_1d() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.AdaptiveAvgPool1d(2)),
        *(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1)),
    )


def network_2d() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 1))
    )


def network_3d() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv3d(3, 8, 3), nn.BatchNorm3d(8), nn.ReLU(), nn.AdaptiveAvgPool3d(2)),
        *(nn.Flatten(), nn.Linear(64, 1)),
    )


@pytest.mark.parametrize(
    ("build", "shape"),
    [(network_1d, (16, 3, 20)), (network_2d, (16, 3, 8, 8)), (network_3d, (16, 3, 6, 6, 6))],
)
def test_networks_of_any_dimension_train(build, shape, caplog):
    torch.manual_seed(0)
    model = build()
    x, target = torch.randn(shape), torch.randn(shape[0], 1)
    model.train()(x)  # moves the running estimates
    saved = {key: value.clone() for key, value in model.state_dict().items()}
    expected = model.eval()(x)

    count = sum(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in model)
    with caplog.at_level("INFO"):
        convert_batchnorm(model, groups=2, hidden=3)
    assert f"converted {count} " in caplog.text
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-6)
    widths = [layer.fc1.weight.shape[0] for layer in model if hasattr(layer, "fc1")]
    assert widths == [3] * count

    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(60):
        loss = F.mse_loss(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]

    with pytest.raises(RuntimeError, match="unexpected"):
        model.load_state_dict({**saved, "unexpected": torch.zeros(1)})
    fresh = convert_batchnorm(build(), groups=2, hidden=3)
    fresh.load_state_dict(saved)  # from before the conversion
    torch.testing.assert_close(fresh.eval()(x), expected, rtol=0, atol=1e-6)


@pytest.mark.skipif(torch.__version__ < "2.13", reason="needs 2.13")
def test_layers_without_shifts():
    new = convert_batchnorm(nn.BatchNorm2d(6, bias=False))
    assert new.bias is None and new.weight.shape == (3, 6)
    frozen = convert_batchnorm(nn.BatchNorm2d(6, bias=False).requires_grad_(False))
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_synchronised_layers_keep_their_group_and_take_any_dimensions():
    group = object()
    model = nn.Sequential(nn.Linear(5, 8), nn.SyncBatchNorm(8, process_group=group))
    x = torch.randn(3, 5)
    expected = model.eval()(x)
    convert_batchnorm(model)
    assert model[1].process_group is group and model[1].synchronized
    assert synchronize_statistics(model)[1].process_group is group
    torch.testing.assert_close(model(x), expected)


def test_table_of_costs(capsys):
    threads = torch.get_num_threads()
    try:
        assert converted.main(["--networks", "U-Net", "3-D", "--steps", "1"]) == 0
    finally:
        torch.set_num_threads(threads)
    u_net, volume = capsys.readouterr().out.splitlines()[-2:]
    assert u_net.startswith("| U-Net | 2 x 3 x 64 x 64 | 14 |") and volume.startswith("| 3-D |")
