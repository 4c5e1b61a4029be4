"""Errors that a user can cause, and files that are never half-written."""

from __future__ import annotations

import errno
import functools
import io
import json
import math
import os
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TextIO

PATIENCE = 5.0  # s; torchrun looks ten times a second whether a process has failed

# What would break a message's line, or a terminal: a file's name may hold it.
_CONTROLS = {code: repr(chr(code))[1:-1] for code in (*range(32), *range(127, 160), 0x2028, 0x2029)}


class UserError(Exception):
    """Something the user can mend; its message is one line: what, where, what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(message.translate(_CONTROLS))


def describe_os_error(error: OSError, path: str | os.PathLike) -> UserError:
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
    }.get(error.errno or 0, error.strerror or str(error))
    return UserError(f"cannot write {path}: {advice}")


def make_folder(path: str | os.PathLike) -> Path:
    """Create a folder and its parents where missing; an ``UserError`` says why it cannot be
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
        UserError: a folder, device, pipe or socket lies there, there is no folder to write it in,
            or the path cannot be looked at.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        if not Path(path).parent.is_dir():
            raise UserError(f"cannot write {path}: its folder does not exist; make it") from None
        return
    except OSError as error:
        raise describe_os_error(error, path) from error

    if not stat.S_ISREG(mode):
        raise UserError(f"cannot write {path}: it is no regular file; choose another name")


def require_utf8(path: str | os.PathLike) -> None:
    """Refuse a path that holds bytes which are not UTF-8, for libraries that take text only."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{path}: the name holds bytes that are not UTF-8; rename it, or link to it"
        ) from None


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
        mode = os.stat(path).st_mode
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            raise UserError(f"{name} is a device, not a file")

        return Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"{name} does not exist") from None
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror}") from None


class _NamedTarget(io.FileIO):
    """A temporary file; what goes wrong in writing to it is said of the file it is to become."""

    def __init__(self, descriptor: int, path: Path) -> None:
        super().__init__(descriptor, "w")
        self._path = path

    def write(self, data: Any, /) -> int:
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
        UserError: the folder is missing or read-only, the disk is full, or something else than a
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


def write_json(path: Path, content: dict[str, Any], *, indent: int | None = 2) -> None:
    """Write strict JSON, whole or not at all: what is not a number becomes null.

    Args:
        path: the file to write.
        content: the object.
        indent: None: everything in one line, for programs and not for people.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    dumps = functools.partial(json.dumps, indent=indent, allow_nan=False, ensure_ascii=False)
    try:
        text = dumps(content)
    except ValueError:  # some number is none; copying large content is for this case only
        text = dumps(plain(content))

    with atomic_write(path, "w") as file:
        file.write(text if indent is None else text + "\n")


def read_json(path: str | os.PathLike, *, advice: str = "delete it") -> dict[str, Any] | None:
    """The object that a JSON file holds; None where there is no file.

    Raises:
        UserError: it cannot be read, or is not a JSON object; says what to do, ``advice``.
    """
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None

    try:
        content = json.loads(read_bytes(path).decode())
    except (ValueError, RecursionError):
        raise UserError(f"{path}: damaged, not JSON; {advice}") from None

    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not an object; {advice}")

    return content


def _sync_folder(folder: Path) -> None:
    """Make a rename inside ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def reports_user_errors(main: Callable[..., int]) -> Callable[..., int]:
    """Decorate a script's ``main(argv)``: what a user or the machine caused becomes one line on
    stderr and exit code 1, Ctrl-C 130; our own mistakes keep their traceback.

    An output that nobody reads (``| head -1``), that is full, closed or not for all characters does
    not end the work: files are whole all the same. A full one gives exit code 1.
    """

    @functools.wraps(main)
    def wrapper(argv: list[str] | None = None) -> int:
        with _lasting_outputs() as outputs:
            try:
                code = main(argv)
            except KeyboardInterrupt as error:
                print(str(error) or "interrupted", file=sys.stderr)
                code = 130
            except Exception as error:
                message = _one_line(error)
                if message is None:
                    raise

                wait_for_first_process()
                print(f"error: {message}", file=sys.stderr)
                code = 1

            sys.stdout.flush()
            for output in outputs:
                if output.problem is not None:
                    print(f"error: cannot print: {output.problem}", file=sys.stderr)
                    code = code or 1

            return code

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
        if isinstance(error.filename, (str, bytes, os.PathLike)):
            return str(UserError(f"{os.fsdecode(error.filename)}: {error.strerror}"))

        return error.strerror

    if isinstance(error, MemoryError) or _is_lack_of_memory(error):
        return (
            "there is not enough memory for this; ask for less (a smaller network, batch or "
            "picture, fewer faces), or free some"
        )

    # Path.resolve() on links that lead in a circle
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"):
        return str(error)

    return None


def _is_lack_of_memory(error: Exception) -> bool:
    """Whether torch or OpenCV, which have no MemoryError, were refused memory."""
    text = str(error).lower()
    signs = (
        "not enough memory",
        "failed to map segment",  # of a library, when it is imported
        "out of memory",
        "can't allocate memory",
        "cannot allocate memory",
        "insufficient memory",
        "can't start new thread",
    )

    kinds = {kind.__module__.split(".")[0] for kind in type(error).__mro__}

    refusing = isinstance(error, (RuntimeError, ImportError)) or "cv2" in kinds

    return refusing and any(sign in text for sign in signs)


class _LastingOutput:
    """A standard stream that is given up quietly, and not with an exception, when it fails."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self.problem: str | None = None  # what to say of it; nothing of a reader who left

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _give_up(self, error: OSError) -> None:
        if error.errno not in (errno.EPIPE, errno.EBADF):
            self.problem = error.strerror

        # From here on it leads to nowhere, for what is still in its buffer too.
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())


@contextmanager
def _lasting_outputs() -> Iterator[list[_LastingOutput]]:
    """stdout and stderr that no failure of theirs can end the work through."""
    before = sys.stdout, sys.stderr
    outputs = []

    for number, stream in enumerate(before, start=1):
        if stream is None:  # closed by the caller
            stream = _opened_nowhere(number)
        elif isinstance(stream, io.TextIOWrapper):
            # an ASCII terminal, or a path that is not UTF-8
            stream.reconfigure(errors="backslashreplace")
            if stream is sys.__stderr__:
                stream = _opened_anew(stream)

        outputs.append(_LastingOutput(stream))

    sys.stdout, sys.stderr = outputs

    try:
        yield outputs
    finally:
        for output in outputs:
            output.flush()

        sys.stdout, sys.stderr = (
            output if given is None else given
            for given, output in zip(before, outputs, strict=True)
        )


def _opened_anew(stderr: TextIO) -> TextIO:
    """stderr by a descriptor of its own: what libraries print to number 2 can then be silenced."""
    return open(os.dup(2), "w", encoding=stderr.encoding, errors="backslashreplace", buffering=1)


def _opened_nowhere(number: int) -> IO[str]:
    """Occupy a standard stream's closed descriptor, or else the next file opened would take its
    number and get what libraries print.
    """
    try:
        os.fstat(number)
    except OSError:
        descriptor = os.open(os.devnull, os.O_WRONLY)
        if descriptor != number:
            os.dup2(descriptor, number)
            os.close(descriptor)

    return open(number, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
