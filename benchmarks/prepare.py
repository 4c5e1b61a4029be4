"""How much faster createWFLW256 prepares faces than the straightforward loop, and how large its
files are.

    python benchmarks/prepare.py --wflw DIR [--pairs 7] [--workers N]

The loop is imread, copy into a black square, nearest resize and imwrite at OpenCV's defaults, one
face after another on one thread; its lists are read beforehand. Ours is the whole of `prepare`,
reading and writing of lists included. Processor time shows how much of the gain is less work; the
rest is the use of all cores. The patches of both are compared pixel by pixel.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2
import numpy as np

from benchmarks.paired import machine, middle, paired_ratio, take_turns
from dataset.prepare import Cut, prepare
from dataset.sources import Face, Source, read_lists, wflw_lists
from utils.device import available_cores
from utils.files import UserError, reports_user_errors


def straightforward(source: Source, out: Path) -> None:
    """The reference loop: decodes the image of every face, pads, resizes and writes its patch."""
    for split, faces in source.faces.items():
        (out / split).mkdir(parents=True)
        for face in faces:
            write_patch(face, source.images, out)


def write_patch(face: Face, images: Path, out: Path) -> None:
    """One face of the reference loop."""
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


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, cores = parser.add_argument, available_cores()
    add("--wflw", type=Path, required=True, metavar="DIR", help="folder in WFLW's layout")
    add("--pairs", type=int, default=7, help="runs of each (default: %(default)s)")
    add("--workers", type=int, default=cores, help="our threads (default: all cores)")
    args = parser.parse_args(argv)

    source = read_lists(*wflw_lists(args.wflw))
    faces = [face for split in source.faces.values() for face in split]
    ways: dict[str, Callable[[Path], object]] = {
        "straightforward": partial(straightforward, source),
        "ours": partial(prepare, source, cut=Cut(), workers=args.workers),
    }
    work: dict[str, list[float]] = {name: [] for name in ways}  # s of processor time

    with tempfile.TemporaryDirectory() as scratch:

        def run(name: str) -> None:
            out = Path(scratch, name)
            shutil.rmtree(out, ignore_errors=True)
            began = time.process_time()
            ways[name](out)
            work[name].append(time.process_time() - began)

        times = take_turns({name: partial(run, name) for name in ways}, args.pairs)
        patches = {name: [Path(scratch, name, face.patch) for face in faces] for name in ways}
        sizes = {name: sum(p.stat().st_size for p in paths) for name, paths in patches.items()}
        for pair in zip(*patches.values(), strict=True):
            if not np.array_equal(*(cv2.imread(str(path)) for path in pair)):
                raise UserError(f"{pair[0].name} differs from the straightforward loop's")

    print(f"{machine()}; {len(faces)} faces, {args.workers} workers")
    for name, seconds in times.items():
        cpu, size = 1000 * np.median(work[name]) / len(faces), sizes[name] / len(faces) / 1e3
        speed = middle(len(faces) / seconds, 1)
        print(f"{name}: {speed} faces/s, {cpu:.2f} ms of processor time and {size:.1f} kB a face")
    print(f"straightforward / ours: {paired_ratio(times['straightforward'], times['ours'])}")

    return 0


if __name__ == "__main__":
    sys.exit(main())
