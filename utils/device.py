"""The machine a run finds itself on: device, memory, hardware, versions."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.files import UserError

if TYPE_CHECKING:
    import torch


def select_device(name: str) -> torch.device:
    """``"auto"`` (CUDA where there is one), ``"cpu"``, ``"cuda"`` or ``"cuda:N"`` -> a usable
    device.

    Raises:
        UserError: the name is no device or the device is not there.
    """
    import torch

    asked = name
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"

    try:
        device = torch.device(name)
        if device.type == "cpu":
            return torch.device("cpu")
        if device.type != "cuda":
            raise RuntimeError("only cpu and cuda are supported")

        # a driver that is too old, or a GPU for which this torch has no kernels, shows here
        torch.zeros(1, device=device).add_(1).item()
    except (AssertionError, RuntimeError) as error:  # assertions of a torch without CUDA
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"--device {asked} cannot be used ({reason}); use auto, cpu, cuda or cuda:N"
        ) from None

    return device


def available_cores() -> int:
    """Number of CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_freed_memory() -> None:
    """Let glibc keep freed memory instead of giving it back to the system at once.

    A network on the CPU frees and takes large activations in every step; handing their pages back
    and forth was measured to take a fifth of a training step. Elsewhere than on Linux with glibc
    nothing happens.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return

    # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX of malloc.h
    trim_threshold, top_pad, mmap_max = -1, -2, -4

    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 2**26)


def describe_machine(device: torch.device | None = None) -> dict[str, Any]:
    """Hardware and versions, for run headers and benchmark tables.

    Args:
        device: the device in use; only a CUDA device is looked at, so that runs on the CPU open
            no CUDA context.
    """
    import cv2
    import torch

    cuda = None
    if device is not None and device.type == "cuda":
        cuda = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"

    cpu = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
        cpu = next(names, cpu)

    return {
        "cpu": cpu,
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # a plain string, which loads safely
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "cuda": cuda,
    }


def git_commit() -> str | None:
    """Commit of the checkout that runs, with ``+`` when files differ from it; None outside a
    checkout.
    """
    root = Path(__file__).resolve().parent.parent
    describe = ["describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    try:
        command = ["git", "-C", str(root), *describe]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
