"""Several processes that train one network, each on its share of every batch."""

from __future__ import annotations

import os
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from models.sepbn import synchronize_statistics
from utils.device import select_device
from utils.files import UserError, wait_for_first_process


@dataclass(frozen=True)
class Processes:
    """The processes that train together; a run without ``torchrun`` is rank 0 of 1."""

    rank: int = 0
    count: int = 1

    def rows(self, order: Tensor, i: int, batch_size: int) -> Tensor:
        """This process's share of the ``i``-th batch of an epoch's order."""
        share = batch_size // self.count
        start = i * batch_size + self.rank * share

        return order[start : start + share]

    def mean(self, value: Tensor) -> Tensor:
        """A number's mean over the processes, which must all ask."""
        if self.count == 1:
            return value

        total = value.clone()
        distributed.all_reduce(total)

        return total / self.count

    def agree(self, *numbers: int, device: torch.device) -> list[int]:
        """The largest of all processes' numbers, one by one; all must ask at the same step."""
        if self.count == 1:
            return [*numbers]

        flags = torch.tensor(numbers, device=device)
        distributed.all_reduce(flags, op=distributed.ReduceOp.MAX)

        return flags.tolist()

    def network(
        self, model: nn.Module, *, compiled: bool = False, bf16: bool = False
    ) -> Callable[[Tensor], Tensor]:
        """What a step calls for ``model``: maybe compiled, with gradients and batch statistics over
        all processes, maybe with its arithmetic in bfloat16.
        """
        if compiled and not any(map(shutil.which, ("c++", "g++", "clang++"))):
            raise UserError(
                "--compile needs a C++ compiler, and none was found; install g++ or leave "
                "--compile out"
            )

        network = torch.compile(model) if compiled else model
        if self.count > 1:
            network = _data_parallel(model, network)
        if not bf16:
            return network

        def in_bf16(images: Tensor) -> Tensor:
            with torch.autocast(images.device.type, torch.bfloat16):
                return network(images).float()

        return in_bf16


def _data_parallel(model: nn.Module, network: Any) -> nn.Module:
    """``network``, which is ``model`` or compiled from it, as all processes share it."""
    synchronize_statistics(model)
    # In channels_last, weights of 1 x 1 have strides that their gradients lack, of which
    # DistributedDataParallel warns.
    for weight in model.parameters():
        if weight.dim() == 4 and weight.shape[2:] == (1, 1):
            weight.data = weight.data.clone(memory_format=torch.contiguous_format)

    with warnings.catch_warnings():
        # torch 2.13 warns of this argument's name, 2.8 knows no other
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(
            network, broadcast_buffers=False, gradient_as_bucket_view=True
        )


@contextmanager
def process_group(device_name: str) -> Iterator[tuple[Processes, torch.device]]:
    """Join the group that ``torchrun`` announces (NCCL on CUDA, gloo on the CPU), or stay alone.

    Args:
        device_name: as for :func:`select_device`; with several processes each takes the CUDA device
            of its local rank.
    """
    device = select_device(device_name)

    if os.environ.get("WORLD_SIZE", "1") == "1":
        if device.index is not None:
            torch.cuda.set_device(device)  # streams and graphs belong to the current device

        yield Processes(), device
        return

    names = "RANK", "WORLD_SIZE", "LOCAL_RANK"
    try:
        rank, count, local = (int(os.environ[name]) for name in names)
        if device.type == "cuda":
            device = select_device(f"cuda:{local}")
            torch.cuda.set_device(device)
            distributed.init_process_group("nccl", device_id=device)
        else:
            distributed.init_process_group("gloo")
    except (KeyError, ValueError, RuntimeError) as error:
        raise UserError(
            f"the processes do not find each other ({str(error).splitlines()[0]}); start them with "
            "torchrun"
        ) from None

    try:
        yield Processes(rank, count), device
    except BaseException as error:
        _leave_at_once(error)

    distributed.destroy_process_group()


def _leave_at_once(error: BaseException) -> NoReturn:
    """End this process of several: the others wait for it, and leaving their group waits for them.

    torchrun ends the others once one has failed.
    """
    wait_for_first_process()
    if isinstance(error, UserError):
        print(f"error: {error}", file=sys.stderr)
    elif not isinstance(error, KeyboardInterrupt):
        traceback.print_exception(error)

    _exit(130 if isinstance(error, KeyboardInterrupt) else 1)


def leave(code: int) -> int:
    """The exit code of a finished script; one of several processes ends here and now.

    While Python takes itself down, torch's threads of a process group now and then abort the
    process, and torchrun then ends the first one, which may still have faces to test.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        _exit(code)

    return code


def _exit(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # nobody may be reading
            stream.flush()

    os._exit(code)
