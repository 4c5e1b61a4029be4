"""Make a synthetic face data set in WFLW's own layout; its landmarks are true by construction.

    python synthetic/createSynthetic.py --out DIR [--train 2000] [--test 500] [--seed 0]

DIR then holds WFLW_images/ and WFLW_annotations/ as WFLW does, ready for createWFLW256.py --wflw
DIR. Every face depends on (seed, split, number) only, so the same seed gives the same bytes,
however many workers render. The faces are 3-D heads (see synthetic/): no photograph of
anybody is involved.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from synthetic import SWITCHES  # noqa: E402
from utils.files import (  # noqa: E402
    UserError,
    make_folder,
    read_json,
    reports_user_errors,
    write_json,
)

MOST_FACES = 1_000_000  # of one split
_STATE = "synthetic.json"  # says which data set a folder holds, or was going to hold


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, default = parser.add_argument, "(default: %(default)s)"
    out = "folder to fill, made where missing"
    add("--out", type=Path, required=True, metavar="DIR", help=out)
    add("--train", type=int, default=2000, metavar="N", help=f"training faces {default}")
    add("--test", type=int, default=500, metavar="N", help=f"test faces {default}")
    add("--seed", type=int, default=0, help=f"same seed, same bytes {default}")
    workers = "processes (default: one per core)"
    add("--workers", type=int, default=0, metavar="N", help=workers)
    without = (
        f"ablation: leave out variations, any of {', '.join(SWITCHES)}; without pose means nearly "
        "frontal, without lighting one mild frontal light, without occluders no hands, things or "
        "sunglasses, without backgrounds plain grey"
    )
    add("--without", nargs="+", choices=SWITCHES, default=[], metavar="WHAT", help=without)

    args = parser.parse_args(argv)
    if not (1 <= args.train <= MOST_FACES and 1 <= args.test <= MOST_FACES):
        parser.error(f"--train and --test must be 1 to {MOST_FACES:,}")
    if args.seed < 0 or args.workers < 0:
        parser.error("--seed and --workers must not be negative")

    return args


def _claim(folder: Path, wanted: dict[str, Any]) -> bool:
    """Make the folder ours; returns whether it holds the finished data set already. Other files are
    never touched.
    """
    make_folder(folder)
    found = read_json(folder / _STATE, advice=f"remove {folder} or choose another --out")

    if found is None and any(folder.iterdir()):
        raise UserError(f"{folder}: holds other files; choose an empty or new folder for --out")
    if found is not None and found.get("content") != wanted:
        raise UserError(
            f"{folder}: holds a synthetic set with other settings; remove it or choose another "
            "--out"
        )
    if found is not None and found.get("finished") and _is_whole(folder, wanted):
        return True

    write_json(folder / _STATE, {"content": wanted, "finished": False})

    return False


def _is_whole(folder: Path, wanted: dict[str, Any]) -> bool:
    """Whether a finished set's lists and pictures, to their last bytes, are still there."""
    from dataset.annotations import official_list

    try:
        for split in ("train", "test"):
            lines = official_list(folder, split).read_text().splitlines()
            pictures = [folder / "WFLW_images" / line.split()[-1] for line in lines]
            ends = [picture.read_bytes()[-2:] for picture in pictures]
            if ends != [b"\xff\xd9"] * wanted[split]:  # the end of a JPEG
                return False
    except (OSError, ValueError, IndexError):
        return False

    return True


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    args = _parse(argv)
    from synthetic.writing import write_set
    from utils.device import available_cores

    counts = {"train": args.train, "test": args.test}
    without = sorted(set(args.without))
    content = {**counts, "seed": args.seed, "without": without, "version": 2}

    if _claim(args.out, content):
        print(f"{args.out}: already holds this data set")
        return 0

    workers = args.workers or available_cores()
    try:
        write_set(args.out, counts, workers, seed=args.seed, without=frozenset(without))
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; the same command makes the set again") from None

    write_json(args.out / _STATE, {"content": content, "finished": True})
    print(f"{args.train} training and {args.test} test faces in {args.out}")
    print(f"next: python dataset/createWFLW256.py --wflw {args.out} --out {args.out}256")

    return 0


if __name__ == "__main__":
    sys.exit(main())
