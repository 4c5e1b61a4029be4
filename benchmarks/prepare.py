"""How much faster createWFLW256 prepares faces than the straightforward loop, and how large its
files are.

    python benchmarks/prepare.py --wflw DIR [--pairs 7] [--workers N]

The loop is imread, copy into a black square, nearest resize and imwrite at OpenCV's defaults, one
face after another on one thread; its lists are read beforehand. Ours is the whole of `prepare`,
reading and writing of lists included. The two run in turn on the same files and cores, the order
changing from pair to pair; what is reported is the median of the pairs' ratios. Processor time
shows how much of it is less work; the rest is the use of all cores. The patches of both are
compared pixel by pixel.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2
import numpy as np

from dataset.prepare import Cut, prepare
from dataset.sources import Face, Source, read_lists, wflw_lists
from utils.files import UserError, reports_user_errors
from utils.runtime import available_cores, describe_machine


def straightforward(faces: list[Face], images: Path, out: Path) -> None:
    """The reference loop: decodes the image of every face, pads, resizes and writes its patch."""
    for face in faces:
        image = cv2.imread(str(images / face.annotation.image))
        left, top, right, bottom = face.annotation.box
        width, height = right - left + 1, bottom - top + 1
        grow = abs(width - height)

        if width < height:
            left, right = left - grow // 2, right + grow // 2 + grow % 2
        else:
            top, bottom = top - grow // 2, bottom + grow // 2 + grow % 2

        side = right - left + 1
        side += side % 2
        left, top = left - side // 2, top - side // 2
        square = np.zeros((2 * side, 2 * side, 3), dtype=np.uint8)
        y0, y1 = max(top, 0), min(top + 2 * side, image.shape[0])
        x0, x1 = max(left, 0), min(left + 2 * side, image.shape[1])
        square[y0 - top : y1 - top, x0 - left : x1 - left] = image[y0:y1, x0:x1]
        patch = cv2.resize(square, (256, 256), interpolation=cv2.INTER_NEAREST)
        cv2.imwrite(str(out / face.patch), patch)


def compare(ours: Path, theirs: Path, faces: list[Face]) -> float:
    """Size of our files over theirs; every pair of patches must show the same pixels."""
    for face in faces:
        if not np.array_equal(
            cv2.imread(str(ours / face.patch)), cv2.imread(str(theirs / face.patch))
        ):
            raise UserError(f"{face.patch} differs from the straightforward loop's")
    return size(ours, faces) / size(theirs, faces)


def size(folder: Path, faces: list[Face]) -> int:
    """Bytes of all patches."""
    return sum((folder / face.patch).stat().st_size for face in faces)


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Speed and file size of createWFLW256 against the plain loop."
    )
    parser.add_argument(
        "--wflw", type=Path, required=True, metavar="DIR", help="folder in WFLW's layout"
    )
    parser.add_argument("--pairs", type=int, default=7, help="runs of each of the two (default: 7)")
    parser.add_argument(
        "--workers", type=int, default=available_cores(), help="our threads (default: all cores)"
    )
    args = parser.parse_args(argv)
    if args.pairs < 1 or args.workers < 1:
        parser.error("--pairs and --workers must be at least 1")

    source = read_lists(*wflw_lists(args.wflw))
    faces = [face for split in source.faces.values() for face in split]
    timed: dict[str, list[Timing]] = {"plain": [], "ours": []}

    with tempfile.TemporaryDirectory() as scratch:
        folders = {which: Path(scratch, which) for which in timed}

        for pair in range(-1, args.pairs):  # the first pair only warms the file cache
            for which in ("plain", "ours") if pair % 2 else ("ours", "plain"):
                taken = time_once(source, faces, folders[which], which, workers=args.workers)
                timed[which] += [taken] if pair >= 0 else []

        size_ratio = compare(folders["ours"], folders["plain"], faces)
        kilobytes = size(folders["plain"], faces) / len(faces) / 1e3

    report(timed, faces, workers=args.workers, kilobytes=kilobytes, size_ratio=size_ratio)

    return 0


@dataclass(frozen=True)
class Timing:
    """One preparation of all faces."""

    seconds: float
    work: float  # seconds of processor time


def time_once(source: Source, faces: list[Face], folder: Path, which: str, workers: int) -> Timing:
    """Prepare all faces into an empty folder, by the plain loop or by ours."""
    shutil.rmtree(folder, ignore_errors=True)
    if which == "plain":
        for split in ("train", "test"):
            (folder / split).mkdir(parents=True)

    start, start_work = time.perf_counter(), time.process_time()

    if which == "ours":
        prepare(source, folder, Cut(), workers=workers)
    else:
        straightforward(faces, source.images, folder)

    return Timing(time.perf_counter() - start, time.process_time() - start_work)


def report(
    timed: dict[str, list[Timing]],
    faces: list[Face],
    *,
    workers: int,
    kilobytes: float,
    size_ratio: float,
) -> None:
    """Print medians of both ways and of the pairs' ratios; ``kilobytes`` are those of a patch."""
    print(
        ", ".join(
            f"{key} {value}" for key, value in describe_machine().items() if value is not None
        )
    )

    print(
        f"{len(faces)} faces in {len({f.annotation.image for f in faces})} images, {workers} "
        "workers"
    )

    for name, which, factor in (("plain loop", "plain", 1), ("prepare", "ours", size_ratio)):
        rate = statistics.median(len(faces) / taken.seconds for taken in timed[which])
        cpu = statistics.median(taken.work / len(faces) * 1e3 for taken in timed[which])
        print(
            f"{name:10} {rate:8.1f} faces/s {cpu:8.2f} ms processor time "
            f"{kilobytes * factor:8.1f} kB a patch"
        )

    ratios = [
        plain.seconds / ours.seconds
        for plain, ours in zip(timed["plain"], timed["ours"], strict=True)
    ]
    spread = f"median of {len(ratios)} pairs ({min(ratios):.2f} to {max(ratios):.2f})"
    print(f"speed-up   {statistics.median(ratios):8.2f} x, {spread}")
    print(f"file size  {size_ratio:8.2f} x, same pixels")


if __name__ == "__main__":
    sys.exit(main())
