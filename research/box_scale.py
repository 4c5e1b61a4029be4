"""What a larger face box is worth: the same arms on faces cut with the box at several scales.

    OMP_NUM_THREADS=1 python research/box_scale.py --wflw DIR --faces68 DIR --work WORK

DIR of ``--wflw`` is in WFLW's layout; that of ``--faces68`` holds images/ and
list_68pt_rect_attr_train.txt and _test.txt. Each set is prepared at every scale (WORK/sets/), and
BatchNorm and SepBN (K = 3, G = 1) are trained on each of them: width 8, 25 epochs of batch 8,
warm-up over a tenth of them, start at the mean shape, the learning rates that were tuned for 25
epochs at scale 1. They were not tuned again at the other scales, which favours scale 1, if any.

The NME is normalised by the distance of the eye corners in the same picture, so it compares over
scales. A face counts as cut where one of its true landmarks lies outside the 128 px crop (below
-0.5 or above 127.5 crop px). Tables (Markdown) are printed after every seed; the same command again
goes on where it was stopped, and prints the tables alone where all is done. WORK/boxes.csv has a
row for every run, WORK/boxes_SET_faces.csv the error of every test face.

**Expected**, written down before the first run: the share of cut faces falls from about half to a
few percent at 1.2; at 25 epochs and width 8 the NME gains nothing by it (a larger box leaves the
face fewer pixels): within 0.5 points of scale 1 at 1.1 and 1.2 on either set, worse at 1.3; the
order of the scales is the same for both arms.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from dataset.crop import CROP_SIZE
from dataset.faces import FaceSet, load_faces
from dataset.prepare import Cut, prepare
from dataset.sources import SPLITS, Source, read_lists, wflw_lists
from evaluation.tables import MISSING, markdown_table
from research.experiment_runs import COLUMNS, Plan, Stopped, run_once
from research.experiment_tables import DIFFERENCE_HEADS, difference
from utils.files import atomic_write, make_folder, reports_user_errors
from utils.runtime import available_cores

ARMS = ("bn", "sepbn-g1k3")
RATES = {"wflw": (0.09, 0.03), "faces68": (0.01, 0.03)}  # of the arms; docs/results.md, 25 epochs
SCALES = (1.0, 1.1, 1.2, 1.3)


def read_sets(args: argparse.Namespace) -> dict[str, Source]:
    """The sets of faces that the options name."""
    sets = {}
    if args.wflw:
        sets["wflw"] = read_lists(*wflw_lists(args.wflw))
    if args.faces68:
        lists = {s: args.faces68 / f"list_68pt_rect_attr_{s}.txt" for s in SPLITS}
        sets["faces68"] = read_lists(args.faces68 / "images", lists)

    return sets


def share_cut(faces: FaceSet) -> float:
    """Share of faces with a landmark outside the crop that the network sees."""
    points = faces.crop_landmarks()
    outside = (points < -0.5) | (points > CROP_SIZE - 0.5)  # (N, P, 2)

    return float(outside.flatten(1).any(dim=1).double().mean())


def plan_of(args: argparse.Namespace, name: str, scale: float) -> Plan:
    """The runs on one set at one scale."""
    return Plan(
        suite="boxes",
        data=args.work / "sets" / f"{name}-{scale:g}",
        work=args.work,
        arms=ARMS,
        epochs=args.epochs,
        width=8,
        seeds=args.seeds,
        rates=RATES[name],
        tune_epochs=args.epochs,
        tune_seeds=1,
        published=False,
        limit=args.limit,
        device=args.device,
    )


def train_all(plans: dict[tuple[str, float], Plan], seeds: int) -> Iterator[list[dict[str, Any]]]:
    """The rows of all runs so far, after each seed."""
    rows: list[dict[str, Any]] = []

    for seed in range(seeds):
        for (name, scale), plan in plans.items():
            for arm, rate in zip(plan.arms, plan.rates, strict=True):
                row = run_once(plan, arm, rate, seed=seed, stage="main")
                rows.append(row | {"set": name, "box_scale": scale})

        yield rows


def errors_of(rows: list[dict[str, Any]], **wanted: Any) -> dict[int, np.ndarray]:
    """Seed -> (N,) errors of the runs that finished and are ``wanted``."""
    return {
        row["seed"]: row["errors"]
        for row in rows
        if row["errors"] is not None and all(row[key] == value for key, value in wanted.items())
    }


def table(name: str, plans: dict[float, Plan], rows: list[dict[str, Any]]) -> str:
    """Markdown about one set: a line for each arm and scale."""
    some = next(row for row in rows if row["set"] == name)
    lines = [
        f"{name}: {some['n_train']} training, {some['n_test']} test faces, width {some['width']}, "
        f"{some['epochs']} epochs, {some['cpu']}, {some['threads']} threads, torch {some['torch']}",
        "",
    ]
    heads = ["arm", "lr", "box scale", "test faces cut, %", "runs", "NME %", "minus scale 1"]
    cells = []

    for arm, rate in zip(ARMS, RATES[name], strict=True):
        first = errors_of(rows, set=name, arm=arm, box_scale=1.0)

        for scale, plan in plans.items():
            found = errors_of(rows, set=name, arm=arm, box_scale=scale)
            means = [100 * errors.mean() for errors in found.values()]
            spread = f" ± {np.std(means, ddof=1):.2f}" if len(means) > 1 else ""
            nme = f"{np.mean(means):.2f}{spread}" if means else "–"
            change = difference(first, found) if scale != 1 and first and found else (MISSING,) * 3
            cut = 100 * share_cut(load_faces(plan.data, "test", limit=plan.limit))
            numbers = (f"{rate:g}", f"{scale:g}", f"{cut:.1f}", str(len(found)))
            cells.append((arm, *numbers, nme, *change))

    heads += DIFFERENCE_HEADS[1:]

    return "\n".join([*lines, markdown_table(heads, cells, aligned=False)])


def write_rows(work: Path, rows: list[dict[str, Any]]) -> None:
    """A row a run, and for each set a column a run with the error of every test face."""
    with atomic_write(work / "boxes.csv", "w") as file:
        columns = ("set", "box_scale", *COLUMNS)
        writer = csv.DictWriter(
            file, columns, restval="", extrasaction="ignore", lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(rows)

    for name in dict.fromkeys(row["set"] for row in rows):
        done = [row for row in rows if row["set"] == name and row["errors"] is not None]
        heads = [f"{row['arm']} scale {row['box_scale']:g} seed {row['seed']}" for row in done]
        with atomic_write(work / f"boxes_{name}_faces.csv", "w") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["test_face", *heads])
            for face, errors in enumerate(zip(*(row["errors"] for row in done), strict=True)):
                writer.writerow([face, *(f"{error:.6f}" for error in errors)])


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--wflw", type=Path, metavar="DIR", help="faces in WFLW's layout")
    parser.add_argument("--faces68", type=Path, metavar="DIR", help="faces with 68 points")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="results")
    parser.add_argument("--scales", type=float, nargs="+", default=SCALES, metavar="S")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--limit", type=int, metavar="N", help="first N faces of each split only")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)
    if not (args.wflw or args.faces68):
        parser.error("give --wflw, --faces68 or both")
    if min(args.seeds, args.epochs) < 1:
        parser.error("--seeds and --epochs must be at least 1")

    return args


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    args.work = make_folder(args.work)
    plans: dict[tuple[str, float], Plan] = {}

    for name, source in read_sets(args).items():
        for scale in dict.fromkeys((1.0, *args.scales)):
            plan = plans[name, scale] = plan_of(args, name, scale)
            prepare(source, plan.data, Cut(box_scale=scale), workers=available_cores())

    try:
        for rows in train_all(plans, args.seeds):
            write_rows(args.work, rows)
            for name in dict.fromkeys(name for name, _ in plans):
                of_set = {scale: plan for (of, scale), plan in plans.items() if of == name}
                print(table(name, of_set, rows), end="\n\n", flush=True)
    except Stopped as stopped:
        return stopped.args[0]

    return 0


if __name__ == "__main__":
    sys.exit(main())
