"""A file that is fetched once, checked, and from then on used from the cache folder."""

from __future__ import annotations

import hashlib
import socket
import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

import torch

from utils.files import UserError, describe_os_error, make_folder, require_file_or_nothing

TIMEOUT = 20.0  # s without a byte, after which a network counts as absent


@dataclass(frozen=True)
class RemoteFile:
    """Where a file is to be had, and how to know it."""

    url: str
    sha256: str  # hexadecimal

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[1]


def cache_folder() -> Path:
    """Torch's folder of fetched weights: ``$TORCH_HOME/hub/checkpoints``, else
    ``$XDG_CACHE_HOME/torch/…``, else ``~/.cache/torch/…``.
    """
    return Path(torch.hub.get_dir()) / "checkpoints"


def fetch_once(wanted: RemoteFile, *, otherwise: str) -> Path:
    """The file's place in the cache folder; it is fetched where it is not there yet.

    A cached file is looked at too: a damaged one is fetched again.

    Args:
        otherwise: what a user can do who has neither the file nor a network, for the message.

    Raises:
        UserError: no network, another file than the wanted one, a cache that cannot be written.
    """
    path = cache_folder() / wanted.name
    if _sha256(path) == wanted.sha256:
        return path

    print(f"fetching {wanted.url}, once, to {path}")
    try:
        make_folder(path.parent)
        require_file_or_nothing(path)
        problem = _download(wanted, path)
    except OSError as error:
        problem = str(describe_os_error(error, path))
    except UserError as error:
        problem = str(error)

    if problem is None:
        return path

    raise UserError(
        f"{wanted.name}: {problem}; put the file (sha256 {wanted.sha256}) at {path} yourself, or "
        f"{otherwise}"
    )


def _download(wanted: RemoteFile, path: Path) -> str | None:
    """Fetch and check the file, under its name only when it is whole; what went wrong, or None."""
    try:
        with _impatient():
            torch.hub.download_url_to_file(
                wanted.url, str(path), hash_prefix=wanted.sha256, progress=sys.stderr.isatty()
            )
    except (URLError, HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
        reason = str(getattr(error, "reason", None) or error) or type(error).__name__
        return f"cannot be fetched from {wanted.url} ({reason.splitlines()[0]})"
    except RuntimeError:  # torch's word for another sha256
        return "what arrived is incomplete or another file (its sha256 differs), and is not kept"

    return None


@contextmanager
def _impatient() -> Iterator[None]:
    """torch.hub waits for ever where nothing answers."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _sha256(path: Path) -> str | None:
    """Of a file's content; None where there is no file that can be read."""
    try:
        with open(path, "rb") as file:
            digest = hashlib.sha256()
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError:
        return None

    return digest.hexdigest()
