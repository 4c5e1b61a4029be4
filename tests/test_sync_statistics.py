"""Statistics over two processes (gloo, CPU) against one process with the whole batch."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from models import SepBatchNorm2d, synchronize_statistics

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="needs torch.distributed")


def make_model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.LeakyReLU(0.1),
        nn.Conv2d(4, 6, 3),
        SepBatchNorm2d(6, 3, 2, momentum=None),
        nn.LeakyReLU(0.1),
        nn.BatchNorm2d(6, affine=False, eps=0.1),
        nn.Flatten(),
    ).double()
    nn.init.normal_(model[1].weight)
    nn.init.normal_(model[4].weight)
    return model


def make_batches() -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    return [
        (3 * torch.randn(6, 2, 7, 7).double() + 5, torch.randn(6, 54).double()) for _ in range(2)
    ]


def train(model: nn.Module, batches: list[tuple[Tensor, Tensor]], average) -> dict[str, Tensor]:
    """Two SGD steps; returns parameters, buffers and the last gradients."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for x, target in batches:
        optimizer.zero_grad()
        (model(x) - target).abs().mean().backward()
        for parameter in model.parameters():
            average(parameter.grad)
        optimizer.step()

    gradients = {f"{name}.grad": parameter.grad for name, parameter in model.named_parameters()}
    return {**model.state_dict(), **gradients}


def average_over_ranks(gradient: Tensor) -> None:
    dist.all_reduce(gradient)
    gradient /= dist.get_world_size()


def one_pass(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Output, gradient of the input, a gradient of that, and running estimates."""
    x = x.clone().requires_grad_()
    output = model(x)
    (first,) = torch.autograd.grad(output.pow(3).sum(), x, retain_graph=True)
    (differentiable,) = torch.autograd.grad(output.pow(3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(differentiable.square().sum(), x)
    found = {"output": output.detach(), "first": first, "second": second}
    return found | {f"state {name}": value for name, value in model.state_dict().items()}


SHARES = {"every other": (slice(0, 6, 2), slice(1, 6, 2)), "4 and 2": (slice(4), slice(4, 6))}
SHARES["all and none"] = (slice(6), slice(6, 6))


def process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    shares = [(x[rank::2], target[rank::2]) for x, target in make_batches()]
    results = {"equal": train(synchronize_statistics(make_model()), shares, average_over_ranks)}
    # DistributedDataParallel averages the gradients itself and must find every parameter's.
    wrapped = nn.parallel.DistributedDataParallel(synchronize_statistics(make_model()))
    results["ddp"] = train(wrapped, shares, lambda gradient: None)
    # Compiled, the layers leave the gradients of their statistics to autograd.
    compiled = torch.compile(synchronize_statistics(make_model()), backend="eager")
    results["compiled"] = train(compiled, shares, average_over_ranks)

    x = make_batches()[0][0]
    for name, rows in SHARES.items():
        results[name] = one_pass(synchronize_statistics(make_model()), x[rows[rank]])
    results["evaluation"] = one_pass(synchronize_statistics(make_model()).eval(), x)
    if rank == 0:  # in evaluation, one process alone may ask
        alone = SepBatchNorm2d(2, track_running_stats=False).double().eval()
        results["alone"] = synchronize_statistics(alone)(x).detach()
    torch.save(results, os.path.join(folder, f"{rank}.pt"))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> list[dict]:
    folder: Path = tmp_path_factory.mktemp("processes")
    mp.start_processes(process, (str(folder),), nprocs=2, start_method="spawn")
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("how", ["equal", "ddp", "compiled"])
def test_two_processes_train_as_one(two_processes, how):
    expected = train(make_model(), make_batches(), lambda gradient: None)
    for results in two_processes:
        found = {
            name.removeprefix("module.").removeprefix("_orig_mod."): value
            for name, value in results[how].items()
        }
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("shares", SHARES)
def test_statistics_weigh_samples_and_not_processes(two_processes, shares):
    expected = one_pass(make_model(), make_batches()[0][0])
    for results, rows in zip(two_processes, SHARES[shares], strict=True):
        for name, value in expected.items():
            own = value if name.startswith("state") else value[rows]
            torch.testing.assert_close(results[shares][name], own, rtol=1e-8, atol=1e-8)


def test_evaluation(two_processes):
    x = make_batches()[0][0]
    expected = one_pass(make_model().eval(), x)
    for results in two_processes:
        torch.testing.assert_close(results["evaluation"], expected)
    layer = SepBatchNorm2d(2, track_running_stats=False).double().eval()
    torch.testing.assert_close(two_processes[0]["alone"], layer(x))


def test_nothing_changes_without_a_process_group():
    plain = make_model().float()
    synchronized = synchronize_statistics(copy.deepcopy(plain))
    assert isinstance(synchronized[1], nn.BatchNorm2d)
    assert list(synchronized.state_dict()) == list(plain.state_dict())
    x = make_batches()[0][0].float()
    for mode in (True, False):
        assert torch.equal(synchronized.train(mode)(x), plain.train(mode)(x))
    assert torch.equal(synchronized[1].running_var, plain[1].running_var)


def test_synchronized_models_copy_and_load():
    model = synchronize_statistics(nn.Sequential(nn.BatchNorm2d(3), SepBatchNorm2d(3)))
    clone = copy.deepcopy(model)
    assert type(clone[0]) is type(model[0]) and clone[1].synchronized
    nn.Sequential(nn.BatchNorm2d(3), SepBatchNorm2d(3)).load_state_dict(model.state_dict())
