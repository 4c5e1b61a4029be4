"""Errors that a user can cause, and files that are never half-written."""

from __future__ import annotations

import errno
import functools
import io
import json
import math
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


class InputError(Exception):
    """Something the user can mend; its message is one line: what, where, what to do."""


def describe_os_error(error: OSError, path: str | os.PathLike) -> InputError:
    """Translate an operating-system error met while writing ``path`` into one line for the user."""
    advice = {
        errno.ENOSPC: "the disk is full; free some space and run again",
        errno.EDQUOT: "the disk quota is used up; free some space and run again",
        errno.EACCES: "no permission to write there; choose another folder, or allow it",
        errno.EPERM: "no permission to write there; choose another folder, or allow it",
        errno.EROFS: "the file system is read-only; choose another folder",
        errno.ENOTDIR: "a file is in the way where a folder is needed; choose another folder",
        errno.EEXIST: "a file is in the way where a folder is needed; choose another folder",
        errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
        errno.ELOOP: "links in its path lead in a circle; choose another path",
    }.get(error.errno, error.strerror or str(error))
    return InputError(f"cannot write {path}: {advice}")


def make_folder(path: str | os.PathLike) -> Path:
    """Create a folder and its parents where missing; an ``InputError`` says why it cannot be
    made.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise describe_os_error(error, path) from error

    return path


def require_file_or_nothing(path: str | os.PathLike) -> None:
    """Refuse a path that something else than a regular file lies at, by itself or by a link.

    A finished file is renamed to its path; that would put it in the place of a device.

    Raises:
        InputError: a folder, device, pipe or socket lies there, or the path cannot be looked at.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise describe_os_error(error, path) from error

    if not stat.S_ISREG(mode):
        raise InputError(f"cannot write {path}: it is no regular file; choose another name")


def require_utf8(path: str | os.PathLike) -> None:
    """Refuse a path that holds bytes which are not UTF-8, for libraries that take text only."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        raise InputError(
            f"{path}: the name holds bytes that are not UTF-8; rename it, or link to it"
        ) from None


class _NamedTarget(io.FileIO):
    """A temporary file; what goes wrong in writing to it is said of the file it is to become."""

    def __init__(self, descriptor: int, path: Path) -> None:
        super().__init__(descriptor, "w")
        self._path = path

    def write(self, data: bytes) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise describe_os_error(error, self._path) from error


@contextmanager
def atomic_write(path: str | os.PathLike, mode: str = "wb") -> Iterator[IO]:
    """Write a file so that a crash at any point leaves either the old content or the new, never a
    part.

    The content goes to a temporary name in the same folder, is flushed to the disk, and is then
    renamed. Errors of the body that have nothing to do with this file pass through unchanged.

    Args:
        path: the file to write; its folder must exist.
        mode: ``"wb"`` for bytes or ``"w"`` for UTF-8 text.

    Raises:
        InputError: the folder is missing or read-only, the disk is full, or something else than a
            file lies at the path; an older file survives.
    """
    path = Path(path)
    require_file_or_nothing(path)
    temporary = None

    try:
        with _said_of(path):
            # a part of the name, so that the longest possible name does not become too long
            descriptor, temporary = tempfile.mkstemp(
                dir=path.parent, prefix=f".{path.name[:40]}.", suffix=".tmp"
            )
            os.fchmod(descriptor, 0o644)

        file: IO = io.BufferedWriter(_NamedTarget(descriptor, path))
        if mode == "w":
            # Bytes of a path that are not UTF-8 become \udcXX, which JSON reads back.
            file = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace")

        with file:
            yield file

            with _said_of(path):
                file.flush()
                os.fsync(file.fileno())

        with _said_of(path):
            os.replace(temporary, path)
            temporary = None
            _sync_folder(path.parent)
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


@contextmanager
def _said_of(path: Path) -> Iterator[None]:
    """Operating-system errors met inside concern the writing of ``path``."""
    try:
        yield
    except OSError as error:
        raise describe_os_error(error, path) from error


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Strict JSON: what is not a number becomes null."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): plain(item) for key, item in value.items()}
        if isinstance(value, list):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    with atomic_write(path, "w") as file:
        json.dump(plain(content), file, indent=1, allow_nan=False, ensure_ascii=False)


def _sync_folder(folder: Path) -> None:
    """Make a rename inside ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def reports_input_errors(main: Callable[..., int]) -> Callable[..., int]:
    """Decorate a script's ``main(argv)``: an ``InputError`` becomes one line on stderr and exit
    code 1, Ctrl-C 130.
    """

    @functools.wraps(main)
    def wrapper(argv: list[str] | None = None) -> int:
        try:
            return main(argv)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt as error:
            print(str(error) or "interrupted", file=sys.stderr)
            return 130

    return wrapper
