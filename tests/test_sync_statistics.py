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


def second_derivative(model: nn.Module, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(model(x).pow(3).sum(), x, create_graph=True)
    return torch.autograd.grad(first.square().sum(), x)[0]


def process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    shares = [(x[rank::2], target[rank::2]) for x, target in make_batches()]
    results = {"equal": train(synchronize_statistics(make_model()), shares, average_over_ranks)}
    # DistributedDataParallel averages the gradients itself and must find every parameter's.
    wrapped = nn.parallel.DistributedDataParallel(synchronize_statistics(make_model()))
    state = train(wrapped, shares, lambda gradient: None)
    results["ddp"] = {name.removeprefix("module."): value for name, value in state.items()}
    # Compiled, the layers leave the gradients of their statistics to autograd.
    compiled = torch.compile(synchronize_statistics(make_model()), backend="eager")
    state = train(compiled, shares, average_over_ranks)
    results["compiled"] = {name.removeprefix("_orig_mod."): value for name, value in state.items()}
    # Unequal shares (4 and 2 samples): the statistics weigh samples, not processes.
    x = make_batches()[0][0]
    layers = synchronize_statistics(make_model())
    results["unequal"] = layers(x[:4] if rank == 0 else x[4:]).detach()
    results["unequal_state"] = layers.state_dict()
    results["evaluation"] = layers.eval()(x).detach()
    # One process without samples takes part all the same.
    layers = synchronize_statistics(make_model())
    share = (x if rank == 0 else x[:0]).clone().requires_grad_()
    output = layers(share)
    output.square().sum().backward()
    results["empty"] = {**layers.state_dict(), "output": output.detach(), "dx": share.grad}
    results["empty"]["weight"] = layers[4].weight.grad
    results["twice"] = second_derivative(synchronize_statistics(make_model()), x[rank::2])
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
    for rank in range(2):
        assert set(two_processes[rank][how]) == set(expected)
        for name, value in expected.items():
            torch.testing.assert_close(
                two_processes[rank][how][name], value, rtol=0, atol=1e-10, msg=f"{how}: {name}"
            )


def test_unequal_shares_and_evaluation(two_processes):
    model, (x, _) = make_model(), make_batches()[0]
    output = model(x)
    found = torch.cat([two_processes[rank]["unequal"] for rank in range(2)])
    torch.testing.assert_close(found, output, rtol=0, atol=1e-10)

    for name, value in model.state_dict().items():
        torch.testing.assert_close(
            two_processes[0]["unequal_state"][name], value, rtol=0, atol=1e-10
        )

    for rank in range(2):
        torch.testing.assert_close(
            two_processes[rank]["evaluation"], model.eval()(x), rtol=0, atol=1e-10
        )


def test_a_process_without_samples(two_processes):
    model, x = make_model(), make_batches()[0][0].requires_grad_()
    output = model(x)
    output.square().sum().backward()
    full, empty = (two_processes[rank]["empty"] for rank in range(2))
    torch.testing.assert_close(full["output"], output, rtol=0, atol=1e-10)
    torch.testing.assert_close(full["dx"], x.grad, rtol=0, atol=1e-9)
    assert empty["output"].shape[0] == empty["dx"].shape[0] == 0 and empty["weight"].eq(0).all()
    for name, value in model.state_dict().items():
        if "running" in name:
            for found in (full[name], empty[name]):
                torch.testing.assert_close(found, value, rtol=0, atol=1e-10)


def test_second_derivatives_over_processes(two_processes):
    x = make_batches()[0][0]
    expected = second_derivative(make_model(), x)
    for rank in range(2):
        found = two_processes[rank]["twice"]
        torch.testing.assert_close(found, expected[rank::2], rtol=1e-8, atol=1e-8)


def test_one_process_evaluates_alone(two_processes):
    layer = SepBatchNorm2d(2, track_running_stats=False).double().eval()
    expected = layer(make_batches()[0][0])
    torch.testing.assert_close(two_processes[0]["alone"], expected)


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
