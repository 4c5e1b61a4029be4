"""The machine a run finds itself on: device, versions, processes, signals, progress bars."""

from __future__ import annotations

import ctypes
import os
import platform
import signal as signals
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tqdm import tqdm

from utils.files import UserError, wait_for_first_process

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
    except RuntimeError:
        raise UserError(f"--device {name}: no such device; use auto, cpu, cuda or cuda:N") from None

    if device.type == "cpu":
        return torch.device("cpu")

    if device.type != "cuda":
        raise UserError(f"--device {name}: only cpu and cuda are supported")

    count = torch.cuda.device_count()
    if (device.index or 0) >= count:
        raise UserError(f"--device {name}: torch sees {count} CUDA devices; use --device cpu")

    try:  # a driver that is too old, or a GPU for which this torch has no kernels, shows here
        torch.zeros(1, device=device).add_(1).item()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"--device {asked}: the GPU cannot be used ({reason}); use --device cpu"
        ) from None

    return device


def note(text: str) -> None:
    """One line for the user on stderr, past a progress bar."""
    tqdm.write(text, file=sys.stderr)


def progress(
    iterable: Iterable | None = None,
    *,
    desc: str,
    total: int | None = None,
    initial: int = 0,
    unit: str,
) -> tqdm:
    """A progress bar on stderr; where that is not a terminal, plain lines at least 10 s apart."""
    kind = tqdm if sys.stderr.isatty() else _PlainLines

    return kind(iterable, desc=desc, total=total, initial=initial, unit=unit, dynamic_ncols=True)


class _PlainLines(tqdm):
    """A progress bar for log files: whole lines instead of one that is drawn over and over."""

    SECONDS = 10.0  # between two lines

    def __init__(self, *args: Any, **options: Any) -> None:
        self._last_line = time.monotonic()
        self._last_shown: float = -1
        super().__init__(*args, **options | {"mininterval": self.SECONDS, "leave": False})

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if msg == "":  # the bar is closed: there is nothing to wipe away
            return

        now = time.monotonic()
        if now - self._last_line < self.SECONDS or self.n == self._last_shown:
            return

        self._last_line, self._last_shown = now, self.n
        values = self.format_dict
        rate = values["rate"] or (self.n - self.initial) / max(values["elapsed"], 1e-9)
        left = (self.total - self.n) / rate if self.total and rate else None

        parts = [
            f"{self.desc}: {self.unit} {self.n:,}" + (f" of {self.total:,}" if self.total else "")
        ]
        parts += [str(self.postfix or "") or f"{rate:,.1f} {self.unit}/s"]
        parts += [] if left is None else [f"{duration(left)} left"]
        print(", ".join(parts), file=sys.stderr, flush=True)

    def clear(self, *_: Any, **__: Any) -> None:
        """Nothing to wipe away: what was printed stays."""


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them: "95 s", "7 min", "3.2 h", "11 days"."""
    for unit, size, digits in (("days", 86400, 1), ("h", 3600, 1), ("min", 60, 0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.{digits}f} {unit}"

    return f"{seconds:.0f} s"


def available_cores() -> int:
    """Number of CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory() -> int | None:
    """Bytes of memory that programs may still take; None where that is not known."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass

    return None


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
    import torch

    cuda = None
    if device is not None and device.type == "cuda":
        cuda = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"

    return {
        "cpu": _cpu_name(),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # a plain string, which loads safely
        "numpy": metadata.version("numpy"),
        "opencv": _opencv_version(),
        "cuda": cuda,
    }


def _opencv_version() -> str | None:
    for package in ("opencv-python-headless", "opencv-python"):
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return None


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def git_commit() -> str | None:
    """Commit of the checkout that runs, with ``+`` when files differ from it; None outside a
    checkout.
    """
    root = Path(__file__).resolve().parent.parent
    try:
        commit = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

        changed = subprocess.run(
            ["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None

    return commit + ("+" if changed else "")


@dataclass(frozen=True)
class Processes:
    """The processes that train together; a run without ``torchrun`` is rank 0 of 1."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0


@contextmanager
def process_group(device_name: str) -> Iterator[tuple[Processes, torch.device]]:
    """Join the group that ``torchrun`` announces (NCCL on CUDA, gloo on the CPU), or stay alone.

    Args:
        device_name: as for :func:`select_device`; with several processes each takes the CUDA device
            of its local rank.
    """
    import torch
    from torch import distributed

    size = os.environ.get("WORLD_SIZE", "1")
    if not (size.isdecimal() and 0 < int(size) < 2**31):
        raise UserError(f"WORLD_SIZE is {size!r}; start several processes with torchrun")

    count = int(size)

    device = select_device(device_name)

    if count == 1:
        if device.index is not None:
            torch.cuda.set_device(device)  # streams and graphs belong to the current device

        yield Processes(), device
        return

    numbers = {name: os.environ.get(name, "") for name in ("RANK", "LOCAL_RANK")}
    for name, text in numbers.items():
        if not (text.isdecimal() and int(text) < count):
            raise UserError(
                f"WORLD_SIZE is {count}, but {name} is {text!r}; start several processes with "
                "torchrun"
            )

    processes = Processes(int(numbers["RANK"]), count, int(numbers["LOCAL_RANK"]))

    if device.type == "cuda":
        device = select_device(f"cuda:{processes.local_rank}")
        torch.cuda.set_device(device)

    try:
        if device.type == "cuda":
            distributed.init_process_group("nccl", device_id=device)
        else:
            distributed.init_process_group("gloo")
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"the {count} processes do not find each other ({str(error).splitlines()[0]}); start "
            "them with torchrun"
        ) from None

    try:
        yield processes, device
    except BaseException as error:
        _leave_at_once(error)

    distributed.destroy_process_group()


def _leave_at_once(error: BaseException) -> None:
    """End this process of several: the others wait for it, and leaving their group waits for them.

    torchrun ends the others once one has failed.
    """
    code = 1
    wait_for_first_process()
    if isinstance(error, UserError):
        print(f"error: {error}", file=sys.stderr)
    elif isinstance(error, KeyboardInterrupt):
        code = 130
    else:
        traceback.print_exception(error)

    _exit(code)


def exit_code(code: int) -> int:
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


class StopRequest:
    """Remembers SIGTERM, SIGINT or SIGHUP instead of dying at once: a loop can save and leave.

    Use as a context manager; ``signal`` is the number of the signal that came, or 0. A second one
    acts as usual. Of several processes, ``training.loop`` asks whether any has one.
    """

    SIGNALS = (signals.SIGTERM, signals.SIGINT, signals.SIGHUP)

    def __init__(self) -> None:
        self.signal = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in self.SIGNALS:
            if signals.getsignal(number) is not signals.SIG_IGN:  # nohup ignores SIGHUP: keep that
                self._previous[number] = signals.signal(number, self._note)

        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _note(self, number: int, _frame: object) -> None:
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signals.signal(number, handler)
