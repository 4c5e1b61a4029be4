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
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2
import numpy as np

from benchmarks.paired import machine, middle, paired_ratio, take_turns
from dataset.prepare import Cut, prepare
from dataset.sources import SPLITS, Face, read_lists, wflw_lists
from utils.device import available_cores
from utils.files import UserError, reports_user_errors


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


def refuse_other_pixels(ours: Path, theirs: Path, faces: list[Face]) -> None:
    """Every pair of patches must show the same."""
    for face in faces:
        pair = [cv2.imread(str(folder / face.patch)) for folder in (ours, theirs)]
        if not np.array_equal(*pair):
            raise UserError(f"{face.patch} differs from the straightforward loop's")


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--wflw", type=Path, required=True, metavar="DIR", help="folder in WFLW's layout"
    )
    parser.add_argument("--pairs", type=int, default=7, help="runs of each (default: %(default)s)")
    parser.add_argument(
        "--workers", type=int, default=available_cores(), help="our threads (default: all cores)"
    )
    args = parser.parse_args(argv)

    source = read_lists(*wflw_lists(args.wflw))
    faces = [face for split in source.faces.values() for face in split]
    work: dict[str, list[float]] = {"straightforward": [], "ours": []}  # s of processor time

    with tempfile.TemporaryDirectory() as scratch:
        folders = {name: Path(scratch, name) for name in work}

        def run(name: str) -> None:
            shutil.rmtree(folders[name], ignore_errors=True)
            began = time.process_time()

            if name == "ours":
                prepare(source, folders[name], Cut(), workers=args.workers)
            else:
                for split in SPLITS:
                    (folders[name] / split).mkdir(parents=True)
                straightforward(faces, source.images, folders[name])

            work[name].append(time.process_time() - began)

        times = take_turns({name: partial(run, name) for name in work}, args.pairs)
        refuse_other_pixels(folders["ours"], folders["straightforward"], faces)
        bytes_ = {
            name: sum((folder / face.patch).stat().st_size for face in faces)
            for name, folder in folders.items()
        }

    print(f"{machine()}; {len(faces)} faces, {args.workers} workers")
    for name, seconds in times.items():
        cpu = 1000 * np.median(work[name]) / len(faces)
        print(
            f"{name}: {middle(len(faces) / seconds, 1)} faces/s, {cpu:.2f} ms of processor time "
            f"and {bytes_[name] / len(faces) / 1e3:.1f} kB a face"
        )
    print(f"straightforward / ours: {paired_ratio(times['straightforward'], times['ours'])}")

    return 0


if __name__ == "__main__":
    sys.exit(main())
