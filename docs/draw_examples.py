"""Draw the six faces that the page of `demo.py` offers, and the table of their boxes.

    python docs/draw_examples.py [--out docs/examples]

They are of the synthetic set with seed 98, test split: 3-D heads, no photograph of anybody. The
table has the form of predict.py's --boxes.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.files import atomic_write, make_folder, reports_user_errors  # noqa: E402

SEED = 98
FACES = {"smile": 13, "open_mouth": 11, "light": 19, "hand": 17, "sunglasses": 8, "profile": 18}
QUALITY = 92  # of the JPEG files


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).parent / "examples",
        metavar="DIR",
        help="folder of the pictures (default: %(default)s)",
    )
    out = make_folder(parser.parse_args(argv).out)

    import cv2

    from synthetic.face import draw_face

    boxes = []
    for name, index in FACES.items():
        face = draw_face(SEED, "test", index)
        _, data = cv2.imencode(".jpg", face.picture, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        boxes.append([f"{name}.jpg", *face.box])

        with atomic_write(out / f"{name}.jpg") as file:
            file.write(data.tobytes())

    with atomic_write(out / "boxes.csv", "w") as file:
        csv.writer(file, lineterminator="\n").writerows([["file", "x0", "y0", "x1", "y1"], *boxes])

    print(f"wrote {len(boxes)} faces and boxes.csv to {out}")

    return 0


if __name__ == "__main__":
    sys.exit(main())
