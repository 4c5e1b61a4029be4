"""Make the six faces that the page of `demo.py` offers, and the table of their boxes.

    python docs/draw_examples.py [--out docs/examples]

They are heads of the synthetic test split with seed 98, rendered large and without the traces of a
camera: no photograph of anybody. The table has the form of predict.py's --boxes.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from synthetic.noise import blend  # noqa: E402
from synthetic.scene import render_head  # noqa: E402
from synthetic.surroundings import draw_background  # noqa: E402
from utils.files import atomic_write, make_folder, reports_user_errors  # noqa: E402

SEED = 98
FACES = {"smile": 37, "glasses": 163, "beard": 80, "hat": 45, "laugh": 133, "profile": 140}
SIZE = 480  # px of a picture
SHOWN = 0.75  # of the canvas
QUALITY = 92  # of the JPEG files


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    home = Path(__file__).parent / "examples"
    words = "folder of the pictures (default: %(default)s)"
    parser.add_argument("--out", type=Path, default=home, metavar="DIR", help=words)
    out = make_folder(parser.parse_args(argv).out)

    boxes = []
    for name, index in FACES.items():
        picture, box = draw_portrait(np.random.default_rng([SEED, 1, index]))
        _, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        boxes.append([f"{name}.jpg", *box])

        with atomic_write(out / f"{name}.jpg") as file:
            file.write(data.tobytes())

    with atomic_write(out / "boxes.csv", "w") as file:
        csv.writer(file, lineterminator="\n").writerows([["file", "x0", "y0", "x1", "y1"], *boxes])

    print(f"wrote {len(boxes)} faces and boxes.csv to {out}")

    return 0


def draw_portrait(rng: np.random.Generator) -> tuple[np.ndarray, list[int]]:
    """A head before a background out of focus, (SIZE, SIZE, 3) uint8 BGR, and its face box."""
    canvas = 2 * round(SIZE / SHOWN)  # twice as large, so that edges become smooth
    head = render_head(rng, size=canvas)
    picture = cv2.resize(draw_background(SEED, rng), (canvas, canvas))
    picture = cv2.GaussianBlur(picture, (0, 0), canvas / 32)
    blend(picture, np.minimum(head.picture, 255), head.mask.astype(np.float32))

    margin = (canvas - 2 * SIZE) // 2
    picture = picture[margin:-margin, margin:-margin]
    picture = cv2.resize(picture, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    left, top, width, height = ((edge - margin * (i < 2)) / 2 for i, edge in enumerate(head.box))
    box = [left, top, left + width - 1, top + height - 1]

    return np.clip(picture, 0, 255).astype(np.uint8), np.rint(box).astype(int).tolist()


if __name__ == "__main__":
    sys.exit(main())
