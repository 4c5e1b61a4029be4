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
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from evaluation.evaluate import bootstrap_means
from research import differences
from utils.files import UserError, reports_user_errors

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Run = tuple[str, int, int]  # arm, width, epochs
STYLES = {
    "none": ("no normalisation", "#555555", "s"),
    "bn": ("BatchNorm", "#0072b2", "o"),
    "sepbn-g1k3": ("SepBN, K = 3, G = 1", "#d55e00", "^"),
}


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; one without any is refused."""
    text = path.read_text(encoding="utf-8", errors="replace")
    rows = list(csv.DictReader(text.splitlines()))
    if not rows:
        raise UserError(f"{path}: holds no rows; name a file that experiments.py wrote")

    return rows


def difference(path: Path, first: str, second: str) -> str:
    """In words: how much the second arm of a file of faces differs from the first."""
    rows = read_rows(path)
    arms = differences.by_column(rows)
    for name in (first, second):
        if name not in arms:
            known = ", ".join(arms) or "no arm at all"
            raise UserError(f"{path}: has no arm {name!r}; it has {known}")

    points, over_faces, _ = differences.difference(arms[first], arms[second])
    words = [f"95 % over {len(rows)} faces {over_faces}"]
    if "person" in rows[0]:
        people = [row["person"] for row in rows]
        over_people = differences.difference(arms[first], arms[second], people)[1]
        words.append(f"95 % over {len(set(people))} people {over_people}")

    return f"{second} − {first}: {points} points ({'; '.join(words)})"


def finished(path: Path) -> dict[Run, dict[int, float]]:
    """A file's main runs that were trained to their end -> NME in percent by seed."""
    rows = read_rows(path)
    if not {"stage", "status", "arm", "epochs", "width", "seed", "nme_percent"} <= set(rows[0]):
        raise UserError(f"{path}: not a file of runs; name a SUITE.csv of experiments.py")

    found: dict[Run, dict[int, float]] = {}
    for row in rows:
        if (row["stage"], row["status"]) == ("main", "finished"):
            run = row["arm"], int(row["width"]), int(row["epochs"])
            found.setdefault(run, {})[int(row["seed"])] = float(row["nme_percent"])

    return found


def differences_by_run(path: Path, first: str, second: str) -> str:
    """Lines of text: the second arm's NME minus the first's, for runs alike in all but the arm."""
    runs = finished(path)
    lines, every = [f"{second} − {first}, points by seed"], []

    for arm, width, epochs in sorted(runs):
        ours, theirs = runs.get((second, width, epochs), {}), runs[arm, width, epochs]
        seeds = sorted(ours.keys() & theirs.keys())
        if arm == first and seeds:
            part = [ours[seed] - theirs[seed] for seed in seeds]
            numbers = ", ".join(f"{number:+.2f}" for number in part)
            lines.append(f"width {width}, {epochs} epochs: {numbers}; mean {np.mean(part):+.2f}")
            every += part

    if not every:
        raise UserError(f"{path}: has no runs of both {first!r} and {second!r}")

    over_runs = differences.interval(bootstrap_means(np.array([every])))
    below = sum(number < 0 for number in every)
    lines.append(
        f"all {len(every)}: mean {np.mean(every):+.2f}, 95 % over runs {over_runs}; {below} below 0"
    )

    return "\n".join(lines)


def draw_lengths(panels: dict[str, Path]) -> Figure:
    """Error against length of training: a panel a file of runs, a curve an arm, mean and spread
    (std) of seeds. A length with a single seed has a hollow mark and no band.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8 * len(panels), 4.2), layout="constrained")
    every_axes = figure.subplots(1, len(panels), squeeze=False)[0]

    for axes, (title, path) in zip(every_axes, panels.items(), strict=True):
        runs = finished(path)
        for arm in dict.fromkeys(arm for arm, _, _ in runs):
            of_arm = {n: list(nmes.values()) for (name, _, n), nmes in runs.items() if name == arm}
            _draw_curve(axes, arm, dict(sorted(of_arm.items())))

        ticks = sorted({epochs for _, _, epochs in runs})
        axes.set_xscale("log")
        axes.set_xticks(ticks, ticks)
        axes.minorticks_off()
        axes.set(title=title, xlabel="epochs of training", ylabel="NME on the test faces, %")
        axes.grid(alpha=0.3)
        axes.legend()

    return figure


def _draw_curve(axes: Axes, arm: str, lengths: dict[int, list[float]]) -> None:
    name, colour, marker = STYLES.get(arm, (arm, "#009e73", "d"))
    epochs = np.array(list(lengths))
    several = np.array([len(nmes) > 1 for nmes in lengths.values()])
    mean = np.array([np.mean(nmes) for nmes in lengths.values()])
    axes.plot(epochs, mean, color=colour, marker=marker, label=name)
    axes.plot(epochs[~several], mean[~several], marker, color=colour, markerfacecolor="white")

    spread = np.array([np.std(nmes, ddof=1) for nmes in lengths.values() if len(nmes) > 1])
    axes.errorbar(epochs[several], mean[several], spread, fmt="none", ecolor=colour, capsize=3)
    low, high = mean[several] - spread, mean[several] + spread
    axes.fill_between(epochs[several], low, high, color=colour, alpha=0.2, linewidth=0)


def panel(text: str) -> tuple[str, Path]:
    """TITLE=FILE."""
    title, equals, path = text.rpartition("=")
    if not equals:
        raise argparse.ArgumentTypeError("a panel is TITLE=RUNS.csv")
    return title, Path(path)


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
    lengths.add_argument("panels", type=panel, nargs="+", metavar="TITLE=RUNS.csv")

    return parser.parse_args(argv)


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    args = parse(argv)

    if args.command == "lengths":
        from evaluation.figures import save

        print(save(draw_lengths(dict(args.panels)), args.out))
    else:
        say = difference if args.command == "difference" else differences_by_run
        print(say(args.rows, args.first, args.second))

    return 0


if __name__ == "__main__":
    sys.exit(main())
