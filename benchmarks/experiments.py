"""What SepBN does: suites of training runs, one CSV row a run, tables with their uncertainty.

    python benchmarks/experiments.py --suite wflw --data dataset/WFLW256  # the published schedule and table
    python benchmarks/experiments.py --suite real98 --data DIR            # the main arms; what the flip error costs
    python benchmarks/experiments.py --suite real68 --data DIR            # the same on 68 points; K; the temperature
    python benchmarks/experiments.py --suite subdomains --data DIR        # synthetic faces, which are drawn into DIR
    python benchmarks/experiments.py --suite liveness --data DIR --checkpoints checkpoints/RUN/final.pt ...

Runs go to WORK/checkpoints/. The same command again skips finished runs and resumes a stopped one. WORK/SUITE.csv has
a row for every run of the latest command, WORK/SUITE_faces.csv the errors of every test face; the tables are printed as
Markdown. Small networks on a CPU are fastest on one thread: set OMP_NUM_THREADS=1.

**Arms.** ``none`` (the released baseline), ``bn``, ``sepbn-g1k3`` (as released), ``sepbn-g2k3`` (as described), in
general ``sepbn-gGkK``, with attention on a T x T grid ``sepbn-gGkK-gridT`` (a reconstruction of the paper's diagram).
Endings: ``-fixed`` keeps the temperature at 1; ``-released`` trains with the released labels (mirrored and rotated off
by up to a pixel), as behind the published numbers: ``--suite wflw --arms none-released sepbn-g1k3-released``. Both take
the learning rate of the arm without the ending.

**Learning rate.** Except in ``wflw``, each arm's rate is tuned with seed 0 on a hold-out, a quarter of the *training*
faces, drawn once for all arms; these runs take half as many epochs. The grid is extended by its own ratio, at most
twice, while its best rate lies at an end. Test faces choose nothing. (Video frames in the hold-out share people with
the rest: it picks a rate, no more.)

**Short runs** warm up over a tenth of the epochs, start at the mean shape, and start the temperature at a third of the
number of epochs, at most 30: it falls by 1 an epoch, and the published 2,000 epochs spend 98 % of the time at 1.

**Expected**, written down before any run: BatchNorm explains most of the gain from ``none`` to SepBN; SepBN minus
BatchNorm is within the noise, below 0.3 points either way on the 131 test faces of ``real98``; uniform attention in
place of the learnt one changes the NME by less than 0.3 points.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.experiment_runs import Plan, Stopped, configuration, run_arms
from benchmarks.experiment_tables import arm_errors, difference, table
from benchmarks.liveness import liveness, mixture
from dataset.faces import load_faces
from utils.files import make_folder, reports_input_errors
from utils.runtime import select_device

MAIN_ARMS = ("none", "bn", "sepbn-g1k3", "sepbn-g2k3")
GRID = (1e-2, 3e-2)


@dataclass(frozen=True)
class Suite:
    """Defaults of a suite; ``rates`` is the grid, or the one published rate."""

    arms: tuple[str, ...]
    epochs: int
    width: int = 16
    seeds: int = 3
    rates: tuple[float, ...] = GRID
    published: bool = False


SUITES = {
    "wflw": Suite(MAIN_ARMS, epochs=2000, width=64, seeds=1, rates=(1e-3,), published=True),
    "real98": Suite((*MAIN_ARMS, "sepbn-g2k3-grid4", "bn-released"), epochs=60),
    "real68": Suite((*MAIN_ARMS, *(f"sepbn-g1k{k}" for k in (1, 2, 4, 8)), "sepbn-g1k3-fixed"), epochs=20),
    "subdomains": Suite(("bn", "sepbn-g1k3"), epochs=40),
}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--suite", choices=(*SUITES, "liveness"), required=True)
    add("--data", type=Path, required=True, metavar="DIR", help="prepared folder (dataset/createWFLW256.py)")
    add("--work", type=Path, default=Path("checkpoints/experiments"), metavar="DIR",
        help="where runs and CSV files go (default: %(default)s)")  # fmt: skip
    add("--checkpoints", type=Path, nargs="+", metavar="FILE", help="networks with SepBN (liveness only)")
    add("--arms", nargs="+", metavar="ARM", help="see above (default: the suite's)")
    add("--seeds", type=int, metavar="N", help="seeds 0 to N-1 (default: 3; wflw 1)")
    add("--epochs", type=int, metavar="N", help="(default: wflw 2000, real98 60, real68 20, subdomains 40)")
    add("--tune-epochs", type=int, metavar="N", help="epochs of runs on the hold-out (default: half of --epochs)")
    add("--width", type=int, metavar="N", help="channels of the first stage (default: 16; wflw 64)")
    add("--rates", type=float, nargs="+", metavar="LR",
        help="learning rates to tune over; a single one is taken as is (default: 0.01 0.03; wflw 0.001)")  # fmt: skip
    add("--limit", type=int, metavar="N",
        help="first N faces of each split only; subdomains: N training faces in all (default there: 1600)")  # fmt: skip
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    add("--quick", action="store_true", help="width 4, 10 epochs, 2 seeds, 160 faces where not given; minutes")
    args = parser.parse_args(argv)
    if (args.suite == "liveness") != (args.checkpoints is not None):
        parser.error("--suite liveness needs --checkpoints, and no other suite takes them")
    training = (args.arms, args.seeds, args.epochs, args.tune_epochs, args.width, args.rates, args.quick or None)
    if args.suite == "liveness" and any(value is not None for value in training):
        parser.error("--suite liveness trains nothing: it takes --data, --checkpoints, --work, --limit and --device")
    for name in ("seeds", "epochs", "tune_epochs", "width", "limit"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if args.rates and min(args.rates) <= 0:
        parser.error("--rates must be positive")
    return args


def make_plan(args: argparse.Namespace) -> Plan:
    """The suite's defaults, changed by the arguments."""
    suite = SUITES[args.suite]
    quick = {"epochs": 10, "width": 4, "seeds": 2, "limit": 160} if args.quick else {}

    def chosen(name: str) -> Any:
        given = getattr(args, name)
        return given if given is not None else quick.get(name, getattr(suite, name, None))

    epochs = chosen("epochs")
    plan = Plan(
        suite=args.suite,
        data=args.data,
        work=args.work,
        arms=tuple(dict.fromkeys(args.arms or suite.arms)),
        epochs=epochs,
        width=chosen("width"),
        seeds=chosen("seeds"),
        rates=tuple(sorted(set(args.rates or suite.rates))),
        tune_epochs=args.tune_epochs or max(1, epochs // 2),
        published=suite.published,
        limit=chosen("limit"),
        device=args.device,
    )
    for arm in plan.arms:  # refuse what cannot be trained before anything is
        configuration(plan, arm, run=arm, lr=plan.rates[0], seed=0).check()
    select_device(plan.device)
    return plan


def subdomains(plan: Plan) -> Iterator[str]:
    """Markdown of BatchNorm against SepBN on mixtures of 1, 2 and 4 sub-domains of equal total size."""
    lines = ["| sub-domains | difference | points | 95 % over faces | std over seeds |", "|---|---|---|---|---|"]
    for count in (1, 2, 4):
        faces = mixture(plan.data, count, plan.limit or 1600)
        part = replace(plan, suite=f"subdomains{count}", data=faces, limit=None)
        rows = run_arms(part)
        yield table(part, rows)
        errors = arm_errors(rows)
        others = [arm for arm in plan.arms if arm != "bn" and {"bn", arm} <= set(errors)]
        lines += [f"| {count} | {arm} − bn | {difference(errors['bn'], errors[arm])} |" for arm in others]
        finals = [plan.work / "checkpoints" / row["run"] / "final.pt" for row in rows
                  if row["stage"] == "main" and row["seed"] == 0 and row["arm"].startswith("sepbn")
                  and row["errors"] is not None]  # fmt: skip
        if finals:
            test_faces, out = load_faces(faces, "test"), plan.work / f"liveness{count}.csv"
            yield liveness(finals, test_faces, out, device=select_device(plan.device))
    yield "\n".join(lines)


@reports_input_errors
def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    if args.suite == "liveness":
        faces = load_faces(args.data, "test", limit=args.limit)
        device = select_device(args.device)
        print(liveness(args.checkpoints, faces, make_folder(args.work) / "liveness.csv", device=device))
        return 0
    plan = make_plan(args)
    try:
        if args.suite == "subdomains":
            for part in subdomains(plan):
                print(part, end="\n\n", flush=True)
        else:
            print(table(plan, run_arms(plan)))
    except Stopped as stopped:
        return stopped.args[0]
    return 0


if __name__ == "__main__":
    sys.exit(main())
