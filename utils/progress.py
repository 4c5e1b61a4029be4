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
    FORMAT = "{desc}: {unit} {n:,} of {total_fmt}, {rate_fmt}{postfix}, {remaining} left"

    def __init__(self, *args: Any, **options: Any) -> None:
        self._last_line, self._last_shown = time.monotonic(), -1.0
        pace = {"mininterval": self.SECONDS, "delay": self.SECONDS}
        super().__init__(*args, **options | pace | {"bar_format": self.FORMAT, "leave": False})

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        now, closed = time.monotonic(), msg == ""
        if closed or now - self._last_line < self.SECONDS or self.n == self._last_shown:
            return

        self._last_line, self._last_shown = now, self.n
        print(self, file=sys.stderr, flush=True)

    def clear(self, *_: Any, **__: Any) -> None:
        """Nothing to wipe away: what was printed stays."""
