"""Errors that a user can cause, and files that are never half-written."""

from __future__ import annotations

import functools
import io
import json
import os
import re
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

PATIENCE = 5.0  # s; torchrun looks ten times a second whether a process has failed

# What would break a message's line, or a terminal: a file's name may hold it.
_CONTROLS = {code: repr(chr(code))[1:-1] for code in (*range(32), *range(127, 160), 0x2028, 0x2029)}

# How torch and OpenCV, which have no MemoryError, say that they were refused memory.
_NO_MEMORY = re.compile(
    "(not enough|out of|insufficient|can't allocate|cannot allocate) memory|can't start new thread"
    "|failed to map segment",  # of a library, when it is imported
    re.IGNORECASE,
)


class UserError(Exception):
    """Something the user can mend; its message is one line: what, where, what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(message.translate(_CONTROLS))


def lacks_memory(error: Exception) -> bool:
    """Whether what went wrong is that the machine has too little memory."""
    return isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)) is not None


@contextmanager
def about(where: object) -> Iterator[None]:
    """A ``UserError`` of the body begins with the file, or the line of it, that it is about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def describe_os_error(error: OSError, path: str | os.PathLike) -> UserError:
    """An operating-system error met while writing ``path``, as one line for the user."""
    return UserError(f"cannot write {path}: {error.strerror or error}")


def make_folder(path: str | os.PathLike) -> Path:
    """Create a folder and its parents where missing; a ``UserError`` says why it cannot be made."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise describe_os_error(error, path) from error

    return path


def require_file_or_nothing(path: str | os.PathLike) -> None:
    """Refuse a path where a folder, a device or a pipe lies: a finished file is renamed to its
    path, which would put it in the place of a device.
    """
    if Path(path).exists() and not Path(path).is_file():
        raise UserError(f"cannot write {path}: it is no regular file; choose another name")


def is_utf8(path: str | os.PathLike) -> bool:
    """Whether a path holds text alone; OpenCV crashes on other names."""
    return not any("\ud800" <= character <= "\udfff" for character in str(path))


def read_bytes(path: str | os.PathLike, what: str = "") -> bytes:
    """The content of a file, or what comes through a pipe.

    Args:
        path: the file.
        what: what it is, for messages ("list", "image").

    Raises:
        UserError: it is missing, cannot be read, or is a device, which may have no end.
    """
    name = f"{what} {path}" if what else str(path)

    try:
        if Path(path).is_char_device():
            raise UserError(f"{name} is a device, not a file")

        return Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"{name} does not exist") from None
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror}") from None


@contextmanager
def atomic_write(path: str | os.PathLike, mode: str = "wb", *, wait: bool = True) -> Iterator[IO]:
    """Write a file so that a crash at any point leaves either the old content or the new, never a
    part.

    The content goes to a temporary name in the same folder, is flushed to the disk, and is then
    renamed. Errors of the body that have nothing to do with this file pass through unchanged.

    Args:
        path: the file to write; its folder must exist.
        mode: ``"wb"`` for bytes or ``"w"`` for UTF-8 text.
        wait: for the disk; without it a power cut may leave a part.

    Raises:
        UserError: the folder is missing or read-only, the disk is full, or something else than a
            file lies at the path; an older file survives.
    """
    path = Path(path)
    # a part of the name, so that the longest possible name does not become too long
    temporary = path.parent / f".{path.name[:40]}.{secrets.token_hex(4)}.tmp"
    # Bytes of a path that are not UTF-8 become \udcXX, which JSON reads back.
    text: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}

    try:
        require_file_or_nothing(path)
        with open(temporary, mode, **({} if "b" in mode else text)) as file:
            yield file
            if wait:
                file.flush()
                os.fsync(file.fileno())

        os.replace(temporary, path)
    except OSError as error:
        if error.filename not in (None, str(temporary), str(path)):
            raise  # of another file the body speaks itself
        raise describe_os_error(error, path) from error
    finally:
        with suppress(OSError):  # it may be gone, or have had no place
            temporary.unlink()


def write_json(path: Path, content: dict[str, Any], *, indent: int | None = 2) -> None:
    """Write strict JSON, whole or not at all: what is not a number becomes null.

    Args:
        path: the file to write.
        content: the object.
        indent: None: everything in one line, for programs and not for people.
    """
    dumps = functools.partial(json.dumps, indent=indent, allow_nan=False, ensure_ascii=False)
    try:
        text = dumps(content)
    except ValueError:  # some number is none; copying large content is for this case only
        text = dumps(json.loads(json.dumps(content), parse_constant=lambda _: None))

    with atomic_write(path, "w") as file:
        file.write(text if indent is None else text + "\n")


def read_json(path: str | os.PathLike, *, advice: str = "delete it") -> dict[str, Any] | None:
    """The object that a JSON file holds; None where there is no file.

    Raises:
        UserError: it cannot be read, or is not a JSON object; says what to do, ``advice``.
    """
    if not os.path.lexists(path):
        return None

    try:
        content = json.loads(read_bytes(path).decode("utf-8-sig"))
    except (ValueError, RecursionError):
        raise UserError(f"{path}: damaged, not JSON; {advice}") from None

    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not an object; {advice}")

    return content


def reports_user_errors(main: Callable[..., int]) -> Callable[..., int]:
    """Decorate a script's ``main(argv)``: what a user or the machine caused becomes one line on
    stderr and exit code 1, Ctrl-C 130; our own mistakes keep their traceback.

    Of a damaged picture or video our line speaks: OpenCV and FFmpeg are told to be silent.
    """

    @functools.wraps(main)
    def wrapper(argv: list[str] | None = None) -> int:
        # both are read when OpenCV is imported
        os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                # an ASCII terminal, or a path that is not UTF-8
                stream.reconfigure(errors="backslashreplace")

        try:
            code = main(argv)
            print(end="", flush=True)  # what is wrong with stdout shows here
            return code
        except KeyboardInterrupt as error:
            print(str(error) or "interrupted", file=sys.stderr)
            return 130
        except BrokenPipeError:  # nobody reads on, as in `| head -1`; nor may Python at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except Exception as error:
            message = _one_line(error)
            if message is None:
                raise

            wait_for_first_process()
            print(f"error: {message}", file=sys.stderr)
            return 1

    return wrapper


def wait_for_first_process() -> None:
    """Of several processes, let the first one speak: torchrun ends the others as soon as it has
    failed, and what they had to say was the same, or a consequence.
    """
    if os.environ.get("RANK", "0") != "0":
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # what torchrun ends them by
        time.sleep(PATIENCE)


def _one_line(error: Exception) -> str | None:
    """What to tell the user of an error that is theirs or the machine's; None: it is a bug."""
    if isinstance(error, UserError):
        return str(error)

    if isinstance(error, OSError) and error.strerror:
        named = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        return str(UserError(named + error.strerror))

    if lacks_memory(error):
        return (
            "there is not enough memory for this; ask for less (a smaller network, batch or "
            "picture, fewer faces), or free some"
        )

    return None
