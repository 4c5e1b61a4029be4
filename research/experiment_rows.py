"""What the rows of finished experiments say, without the faces or the networks.

    python research/experiment_rows.py difference FACES.csv "bn" "sepbn-g1k3"
    python research/experiment_rows.py runs RUNS.csv "bn" "sepbn-g1k3"
    python research/experiment_rows.py lengths --out FILE.png TITLE=RUNS.csv TITLE=RUNS.csv

``difference`` prints the second arm's error minus the first's, in points of NME, with intervals.
FACES.csv is one of ``WORK/SUITE_faces.csv``; a name stands for all of its columns "NAME seed N",
whose mean is taken. Where the file has a column ``person``, an interval over people is printed too:
faces of one person are alike, so that many of them say less than as many people would.

``runs`` prints the same difference run by run, from RUNS.csv, one of ``WORK/SUITE.csv``: a line for
each length and width, its numbers by seed, and the mean of all with an interval over runs. Faces
alone say too little of what another seed would give.

``lengths`` draws error against length of training, a panel a file of runs.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from evaluation.evaluate import RESAMPLES, bootstrap_means, paired_difference
from utils.files import UserError, atomic_write, describe_os_error, reports_user_errors

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMES = {"none": "no normalisation", "bn": "BatchNorm", "sepbn-g1k3": "SepBN, K = 3, G = 1"}
STYLES = {"none": ("#555555", "s"), "bn": ("#0072b2", "o"), "sepbn-g1k3": ("#d55e00", "^")}


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; an UserError where there are none."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise describe_os_error(error, path) from error
    except UnicodeDecodeError:
        raise UserError(
            f"{path}: not a CSV file of text; name one that experiments.py wrote"
        ) from None

    if not rows:
        raise UserError(f"{path}: holds no rows; name a file that experiments.py wrote")

    return rows


def arm_errors(rows: list[dict[str, str]], name: str, path: Path) -> np.ndarray:
    """(N,) errors of an arm as fractions, averaged over its seeds."""
    columns = [column for column in rows[0] if re.fullmatch(re.escape(name) + r" seed \d+", column)]

    if not columns:
        known = sorted({column.partition(" seed ")[0] for column in rows[0] if " seed " in column})
        raise UserError(
            f"{path}: has no arm {name!r}; it has {', '.join(known) or 'no arm at all'}"
        )

    try:
        return np.mean([[float(row[column]) for row in rows] for column in columns], axis=0)
    except (TypeError, ValueError):
        raise UserError(f"{path}: an error in the columns of {name!r} is no number") from None


def over_people(errors: np.ndarray, people: list[str], *, seed: int = 0) -> np.ndarray:
    """Mean errors of models where whole people are drawn with replacement, with all their faces.

    Args:
        errors: (M, N), one row a model.
        people: N names; faces of one name stay together.

    Returns:
        (M, resamples) float64; all models see the same draws.
    """
    names, person = np.unique(people, return_inverse=True)
    sums = np.stack([np.bincount(person, row) for row in errors])  # (M, people)
    counts = np.bincount(person)
    draws = np.random.default_rng(seed).integers(0, len(names), size=(RESAMPLES, len(names)))

    return sums[:, draws].sum(axis=2) / counts[draws].sum(axis=1)


def difference(path: Path, first: str, second: str) -> str:
    """In words: how much the second arm of a file of faces differs from the first."""
    rows = read_rows(path)
    errors = np.stack([arm_errors(rows, name, path) for name in (first, second)])  # (2, N)
    found = {f"{len(rows)} faces": bootstrap_means(errors)}

    if "person" in rows[0]:
        people = [row["person"] for row in rows]
        found[f"{len(set(people))} people"] = over_people(errors, people)

    words = []

    for units, means in found.items():
        low, high = (100 * paired_difference(means, errors)[key] for key in ("low", "high"))
        words.append(f"95 % over {units} {low:+.2f} … {high:+.2f}")

    change = 100 * (errors[1] - errors[0]).mean()

    return f"{second} − {first}: {change:+.2f} points ({'; '.join(words)})"


def finished(rows: list[dict[str, str]], path: Path) -> list[dict[str, str]]:
    """The main runs among a suite's rows that were trained to their end."""
    if not {"stage", "status", "arm", "epochs", "width", "seed", "nme_percent"} <= set(rows[0]):
        raise UserError(f"{path}: not a file of runs; name a SUITE.csv of experiments.py")

    return [row for row in rows if (row["stage"], row["status"]) == ("main", "finished")]


def differences_by_run(path: Path, first: str, second: str) -> str:
    """Lines of text: the second arm's NME minus the first's, for runs alike in all but the arm."""
    found: dict[str, dict[tuple[int, int, int], float]] = {first: {}, second: {}}
    for row in finished(read_rows(path), path):
        if row["arm"] in found:
            key = int(row["width"]), int(row["epochs"]), int(row["seed"])
            found[row["arm"]][key] = float(row["nme_percent"])

    both = sorted(found[first].keys() & found[second].keys())
    if not both:
        raise UserError(f"{path}: has no runs of both {first!r} and {second!r}")

    points = {key: found[second][key] - found[first][key] for key in both}
    lines = [f"{second} − {first}, points by seed"]

    for width, epochs in sorted({key[:2] for key in both}):
        part = [points[key] for key in both if key[:2] == (width, epochs)]
        numbers = ", ".join(f"{number:+.2f}" for number in part)
        lines.append(f"width {width}, {epochs} epochs: {numbers}; mean {np.mean(part):+.2f}")

    every = np.array(list(points.values()))
    low, high = np.percentile(bootstrap_means(every[None]), (2.5, 97.5))
    lines.append(
        f"all {len(every)}: mean {every.mean():+.2f}, 95 % over runs {low:+.2f} … {high:+.2f}; "
        f"{(every < 0).sum()} below 0"
    )

    return "\n".join(lines)


def curves(rows: list[dict[str, str]]) -> dict[str, dict[int, list[float]]]:
    """Arm -> length in epochs -> NME in percent of every seed."""
    found: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        lengths = found.setdefault(row["arm"], defaultdict(list))
        lengths[int(row["epochs"])].append(float(row["nme_percent"]))
    return found


def draw_lengths(panels: dict[str, list[dict[str, str]]], out: Path) -> None:
    """Error against length of training: a panel a set of faces, a curve an arm, mean and spread
    (std) of seeds.

    A length with a single seed has a hollow mark and no band.

    Args:
        panels: title -> finished runs of a suite of lengths.
        out: PNG file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8 * len(panels), 4.2), layout="constrained")
    every_axes = figure.subplots(1, len(panels), squeeze=False)[0]

    for axes, (title, rows) in zip(every_axes, panels.items(), strict=True):
        found = curves(rows)
        for arm, lengths in found.items():
            _draw_curve(axes, arm, lengths)

        ticks = sorted({epochs for lengths in found.values() for epochs in lengths})
        axes.set_xscale("log")
        axes.set_xticks(ticks, ticks)
        axes.minorticks_off()
        axes.set(title=title, xlabel="epochs of training", ylabel="NME on the test faces, %")
        axes.grid(alpha=0.3)
        axes.legend()

    with atomic_write(out) as file:
        figure.savefig(file, format="png", dpi=120)


def _draw_curve(axes: Axes, arm: str, lengths: dict[int, list[float]]) -> None:
    colour, marker = STYLES.get(arm, ("#009e73", "d"))
    epochs = np.array(sorted(lengths))
    several = np.array([len(lengths[n]) > 1 for n in epochs])
    mean = np.array([np.mean(lengths[n]) for n in epochs])
    axes.plot(epochs, mean, color=colour, marker=marker, label=NAMES.get(arm, arm))
    axes.plot(epochs[~several], mean[~several], marker, color=colour, markerfacecolor="white")

    spread = np.array([np.std(lengths[n], ddof=1) for n in epochs[several]])
    axes.errorbar(epochs[several], mean[several], spread, fmt="none", ecolor=colour, capsize=3)
    low, high = mean[several] - spread, mean[several] + spread
    axes.fill_between(epochs[several], low, high, color=colour, alpha=0.2, linewidth=0)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)

    of_faces = commands.add_parser("difference", help="of two arms, with intervals over faces")
    of_runs = commands.add_parser("runs", help="the same run by run, with an interval over runs")
    for command, rows in ((of_faces, "FACES.csv"), (of_runs, "RUNS.csv")):
        command.add_argument("rows", type=Path, metavar=rows)
        command.add_argument("first", metavar="ARM")
        command.add_argument("second", metavar="ARM")

    lengths = commands.add_parser("lengths", help="figure: error against length of training")
    lengths.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    lengths.add_argument("panels", nargs="+", metavar="TITLE=RUNS.csv")
    args = parser.parse_args(argv)
    if args.command == "lengths" and not all("=" in panel for panel in args.panels):
        parser.error("a panel is TITLE=RUNS.csv")

    return args


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    args = parse(argv)

    if args.command != "lengths":
        say = difference if args.command == "difference" else differences_by_run
        print(say(args.rows, args.first, args.second))
        return 0

    panels = {}

    for panel in args.panels:
        title, _, path = panel.rpartition("=")
        panels[title] = finished(read_rows(Path(path)), Path(path))

    draw_lengths(panels, args.out)
    print(args.out)

    return 0


if __name__ == "__main__":
    sys.exit(main())
