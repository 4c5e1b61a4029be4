"""A file that is fetched once, checked, and from then on used from the cache folder."""

from __future__ import annotations

import hashlib
import socket
import sys
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import torch

from utils.files import UserError, make_folder

TIMEOUT = 20.0  # s without a byte, after which a network counts as absent


class RemoteFile(NamedTuple):
    """Where a file is to be had, and how to know it."""

    url: str
    sha256: str  # hexadecimal

    @property
    def cached(self) -> Path:
        """Its place in torch's folder of fetched weights: ``$TORCH_HOME/hub/checkpoints``, else
        ``$XDG_CACHE_HOME/torch/…``, else ``~/.cache/torch/…``.
        """
        return Path(torch.hub.get_dir()) / "checkpoints" / self.url.rsplit("/", 1)[1]


def fetch_once(wanted: RemoteFile, *, otherwise: str) -> Path:
    """The file's place in the cache folder; it is fetched where it is not there yet.

    A cached file is looked at too: a damaged one is fetched again.

    Args:
        otherwise: what a user can do who has neither the file nor a network, for the message.

    Raises:
        UserError: no network, another file than the wanted one, a cache that cannot be written.
    """
    path = wanted.cached
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == wanted.sha256:
        return path

    print(f"fetching {wanted.url}, once, to {path}")
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)  # torch.hub waits for ever where nothing answers
    try:
        make_folder(path.parent)
        torch.hub.download_url_to_file(
            wanted.url, str(path), hash_prefix=wanted.sha256, progress=sys.stderr.isatty()
        )
        return path
    except UserError as error:
        problem = str(error)
    except RuntimeError:  # torch's word for another sha256
        problem = "what arrived is incomplete or another file (its sha256 differs), and is not kept"
    except (OSError, HTTPException) as error:
        problem = f"cannot be fetched from {wanted.url} ({getattr(error, 'reason', '') or error})"
    finally:
        socket.setdefaulttimeout(before)

    raise UserError(
        f"{path.name}: {problem}; put the file (sha256 {wanted.sha256}) at {path} yourself, or "
        f"{otherwise}"
    )
