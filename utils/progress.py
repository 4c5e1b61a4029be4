"""Progress for those who watch, and for those who read a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


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
        super().__init__(
            *args, **options | {"mininterval": self.SECONDS, "delay": self.SECONDS, "leave": False}
        )

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
