"""Errors that a user can cause, and files that are never half-written."""

from __future__ import annotations

import errno
import functools
import json
import math
import os
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


@contextmanager
def atomic_write(path: str | os.PathLike, mode: str = "wb") -> Iterator[IO]:
    """Write a file so that a crash at any point leaves either the old content or the new, never a
    part.

    The content goes to a temporary name in the same folder, is flushed to the disk, and is then
    renamed.

    Args:
        path: the file to write; its folder must exist.
        mode: ``"wb"`` for bytes or ``"w"`` for UTF-8 text.

    Raises:
        InputError: the folder is missing or read-only, or the disk is full; an older file survives.
    """
    path = Path(path)
    temporary = None

    try:
        descriptor, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"
        )
        os.fchmod(descriptor, 0o644)

        with os.fdopen(descriptor, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())

        os.replace(temporary, path)
        temporary = None
        _sync_folder(path.parent)
    except OSError as error:
        raise describe_os_error(error, path) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


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


def read_json(path: str | os.PathLike, *, advice: str = "delete it") -> dict[str, Any] | None:
    """The object that a JSON file holds; None where there is no file.

    Raises:
        InputError: it cannot be read, or is not a JSON object; says what to do, ``advice``.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise InputError(f"{path}: damaged, not JSON; {advice}") from None

    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, not an object; {advice}")

    return content


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
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130

    return wrapper
