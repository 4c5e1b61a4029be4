"""Rendering many faces on many cores."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path

import cv2

from dataset.annotations import official_list
from synthetic.face import draw_face
from utils.files import UserError, atomic_write, describe_os_error, make_folder
from utils.progress import progress

_BATCH = 10  # faces that a worker renders at a time


def write_set(
    out: Path, counts: dict[str, int], workers: int, *, seed: int, without: frozenset[str]
) -> None:
    """Render and store all faces of a data set, then its lists.

    Args:
        out: the data set's folder.
        counts: number of faces of each split.
        workers: number of processes; the bytes do not depend on it.
        seed: the data set's seed.
        without: variations to leave out (see synthetic.SWITCHES).
    """
    images, splits = out / "WFLW_images", counts.items()
    jobs = [(split, range(n)[k : k + _BATCH]) for split, n in splits for k in range(0, n, _BATCH)]
    for split, n in splits:
        make_folder(official_list(out, split).parent)
        for index in range(0, n, 1000):
            make_folder(images / _image_folder(split, index))

    render = partial(_render_batch, images=images, seed=seed, without=without)
    lines: dict[str, list[str]] = {split: [] for split in counts}

    try:
        with (
            progress(desc="rendering faces", total=sum(counts.values()), unit="face") as bar,
            ProcessPoolExecutor(
                min(workers, len(jobs)), get_context("spawn"), initializer=_end_with_parent
            ) as pool,
        ):
            with _inherited_by_workers():
                results = pool.map(render, jobs)

            try:
                for (split, indices), batch in zip(jobs, results, strict=True):
                    lines[split] += batch
                    bar.update(len(indices))
            except BaseException:
                # Leaving the pool would first render all the rest. Its thread has to end here: at
                # Python's end it now and then closes a pipe that is being written to.
                pool.shutdown(cancel_futures=True)
                raise
    except BrokenProcessPool:
        raise UserError(
            "a rendering process was killed (out of memory?); try --workers 1"
        ) from None

    for split, entries in lines.items():
        with atomic_write(official_list(out, split), "w") as file:
            file.write("\n".join(entries) + "\n")


def _image_folder(split: str, index: int) -> str:
    """The folder ("event", in WFLW's words) of a face's picture."""
    return f"{split}--{index // 1000:02d}"


def _render_batch(
    job: tuple[str, range], images: Path, seed: int, without: frozenset[str]
) -> list[str]:
    """Render and store the faces of one batch; returns their list lines. Files are rewritten whole,
    so a rerun heals them.
    """
    cv2.setNumThreads(1)
    split, indices = job
    lines = []

    for index in indices:
        face = draw_face(seed, split, index, without)
        name = f"{_image_folder(split, index)}/{split}_{index:05d}.jpg"
        encoded = cv2.imencode(".jpg", face.picture, [cv2.IMWRITE_JPEG_QUALITY, face.quality])[1]

        try:
            (images / name).write_bytes(encoded.tobytes())
        except OSError as error:
            raise describe_os_error(error, images / name) from None

        numbers = [f"{value:.4f}" for value in face.landmarks.ravel()]
        lines.append(" ".join(map(str, (*numbers, *face.box, *map(int, face.attributes), name))))

    return lines


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextmanager
def _inherited_by_workers() -> Iterator[None]:
    """Processes started inside compute with one thread (the cores are taken already, and sums keep
    their order) and leave Ctrl-C, which reaches the whole process group, to the process that
    started them."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)

    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
