"""The patches of a crop list as one memory-mapped array: decoded once, on all cores.

Beside the list ``NAME.txt`` lies ``NAME.patches``: N x 256 x 256 x 3 bytes (RGB), N sums (int64, of
each patch's values), and a digest of what it was made from. Later runs map it and start at once;
all processes on a machine share its pages, and it need not fit in memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path

import cv2
import numpy as np
from filelock import FileLock

from dataset.crop import PATCH_SIZE
from dataset.pictures import decode
from utils.device import available_cores
from utils.files import UserError, about, describe_os_error, read_bytes
from utils.progress import note, progress

SHAPE = (PATCH_SIZE, PATCH_SIZE, 3)
PATCH_BYTES = PATCH_SIZE * PATCH_SIZE * 3
DIGEST_BYTES = 32
FEW = 1_000  # faces, 0.2 GB: what a limit leaves may go to memory
AT_A_TIME = 256  # faces, 50 MB: decoded ahead of what is written


def open_patches(
    source: Path, paths: list[Path], *, limit: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The patches of a crop list, from its memory-mapped file, which is made where it is missing.

    Args:
        source: the crop list.
        paths: the N patch files that it names.
        limit: use the first ``limit`` faces only; where there is no file to map and they are at
            most ``FEW``, these alone are decoded, into memory.

    Returns:
        (N, 256, 256, 3) uint8, RGB, and (N,) int64, the sum of each patch's values.

    Raises:
        UserError: a patch is missing, not a readable picture, or not 256 x 256.
    """
    count = len(paths[:limit])
    store = source.with_suffix(".patches")
    digest = _digest(source, paths)

    found = _map(store, len(paths), digest)
    if found is None and (count == len(paths) or count > FEW):
        try:
            # One process makes it while the others, of a torchrun for example, wait.
            with FileLock(store.with_name(f".{store.name}.lock")):
                found = _map(store, len(paths), digest)
                if found is None:
                    _make(store, source, paths, digest)
                    found = _map(store, len(paths), digest)
        except OSError as error:
            reason = describe_os_error(error, store)
            note(f"note: {reason}: patches are held in memory and decoded again by every run")

    if found is None:
        decoded = _decoded(source, paths[:limit])
        patches = np.fromiter(decoded, np.dtype((np.uint8, SHAPE)), count)
        found = patches, patches.reshape(count, -1).sum(axis=1, dtype=np.int64)

    return found[0][:count], found[1][:count]


def _digest(source: Path, paths: list[Path]) -> bytes:
    """Of the list, and of the size and time of change of every patch that it names."""
    digest = blake2b(source.read_bytes(), digest_size=DIGEST_BYTES)
    for path in paths:
        state = path.stat()
        digest.update(f"{state.st_size} {state.st_mtime_ns};".encode())

    return digest.digest()


def _map(store: Path, count: int, digest: bytes) -> tuple[np.ndarray, np.ndarray] | None:
    """The arrays of a store; None where it is missing, incomplete or made from something else."""
    try:
        with store.open("rb") as file:
            file.seek(count * (PATCH_BYTES + 8))
            if file.read() != digest:
                return None

            file.seek(count * PATCH_BYTES)
            sums = np.frombuffer(file.read(count * 8), np.int64)
            # Mode "c", copy on write, since torch wants memory that may be written; nobody does.
            patches = np.memmap(file, np.uint8, mode="c", shape=(count, *SHAPE))
    except OSError:
        return None

    return patches, sums


def _make(store: Path, source: Path, paths: list[Path], digest: bytes) -> None:
    """Decode all patches into a new store, which takes its name when it is complete."""
    temporary = store.with_name(f".{store.name}.tmp")  # of the one process that holds the lock
    sums = np.zeros(len(paths), np.int64)

    try:
        with temporary.open("wb") as file:
            for i, patch in enumerate(_decoded(source, paths)):
                sums[i] = patch.sum(dtype=np.int64)
                file.write(patch.tobytes())

            file.write(sums.tobytes() + digest)
            file.flush()
            os.fsync(file.fileno())

        os.replace(temporary, store)
    finally:
        temporary.unlink(missing_ok=True)


def _decoded(source: Path, paths: list[Path]) -> Iterator[np.ndarray]:
    """Every patch, (256, 256, 3) uint8 RGB, in order; decoded on all cores."""

    def read(i: int) -> np.ndarray:
        return _read_patch(paths[i], f"{source}, line {i + 1}")

    with (
        ThreadPoolExecutor(available_cores()) as pool,
        progress(desc=f"reading {source.stem}", total=len(paths), unit="face") as bar,
    ):
        for start in range(0, len(paths), AT_A_TIME):
            for patch in pool.map(read, range(len(paths))[start : start + AT_A_TIME]):
                yield patch
                bar.update()


def _read_patch(path: Path, where: str) -> np.ndarray:
    with about(where):
        pixels = decode(read_bytes(path, "patch"))
        if pixels is None or pixels.shape != SHAPE:
            raise UserError(f"patch {path} is no picture of 256 x 256; prepare the folder again")

    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
