"""What SepBN does: suites of training runs, one CSV row a run, tables with their uncertainty.

    python research/experiments.py --suite SUITE --data DATA [--work WORK]
    research/all_experiments.sh DATA98 DATA68 WORK    # all but wflw, one after the other

    wflw         the published schedule and table
    lengths98    does the gap between the arms survive longer training? 98 points
    lengths68    the same on 68 points
    relatives98  Attentive Normalization and squeeze-and-excitation beside SepBN, 98 points
    relatives68  the same on 68 points
    sets68       how many sets; the temperature
    widths68     networks of width 8, 16 and 32
    real98       attention on a grid; what the mirror and rotation errors of the labels cost
    boxes98      the face box at several scales; DATA are folders of the same faces, prepared with
                 --box-scale 1, 1.1, 1.2 and 1.3
    boxes68      the same on 68 points
    domains      trained on real and synthetic faces together, tested on real ones (98 points)
    subdomains   synthetic faces of 1, 2 and 4 sub-domains, which go to DATA

Runs go to WORK/checkpoints/. The same command again skips finished runs and resumes a stopped one.
WORK/SUITE.csv has a row for every run of the latest command, WORK/SUITE_faces.csv the errors of
every test face; the tables are printed as Markdown. Small networks on a CPU are fastest on one
thread: set OMP_NUM_THREADS=1.

**Arms.** ``none`` (the released baseline), ``bn``, ``sepbn-g1k3`` (as released), ``sepbn-g2k3`` (as
described), in general ``sepbn-gGkK``, with attention on a T x T grid ``sepbn-gGkK-gridT`` (a
reconstruction of the paper's diagram). Endings: ``-fixed`` keeps the temperature at 1;
``-released`` trains with the released labels (mirrored and rotated off by up to a pixel), as behind
the published numbers: ``--suite wflw --arms none-released sepbn-g1k3-released``. Both take the
learning rate of the arm without the ending. ``an-kK`` and ``bn-se``: see ``relatives.py``.

**Learning rate.** Except in ``wflw``, each arm's rate is tuned with one seed on a hold-out, a
quarter of the *training* faces, drawn once for all arms. The grid grows by its own ratio, at most
twice, while its best rate lies at an end. Test faces choose nothing. The runs on the hold-out are
half as long as the suite's, except that lengths up to 400 (68 points: 100) are tuned at their own
length and longer ones at that, and ``domains`` at its own; at 25 and 50 epochs of the few faces
with 98 points one run says little, so three seeds decide. (In a first round the rates tuned at 25
epochs with one seed were also used for 50; ``none`` then hardly left the mean shape at 50 epochs of
98 points, 23.4 %, which speaks of its rate and not of it.)

**Short runs** warm up over a tenth of the epochs, start at the mean shape, and start the
temperature at a third of the number of epochs, at most 30: it falls by 1 an epoch, and the
published 2,000 epochs spend 98 % of the time at 1.

**Expected**, each written down before the first of its runs. Of short runs (60 epochs; 98 points):
BatchNorm explains most of the gain from ``none`` to SepBN; SepBN minus BatchNorm is within the
noise, below 0.3 points either way on the 131 test faces; uniform attention in place of the learnt
one changes the NME by less than 0.3 points.

Of the length of training: the gap from ``none`` to ``bn`` shrinks with every doubling, since a part
of it is speed. On 98 points it is above 3 points at 25 epochs, 1 to 2 at 400, below 1 at 1,600; on
68 points above 1.5 at 25 and below 0.8 at 200. ``none`` does not catch up: the interval of the
difference excludes 0 at 400 epochs of 98 and 200 of 68 points. SepBN does not pull away from
BatchNorm: the difference stays below 0.3 points either way at every length with three seeds,
without a trend.

Of the relatives (``an-k5``, ``an-k10``, ``bn-se``) at 100 epochs: each within 0.5 points of
BatchNorm on 98 points and 0.3 on 68, hence also of SepBN; the order of the four differs between the
two sets.

Of the width: none of the widths 8, 16, 32 has SepBN further than 0.3 points from BatchNorm; the gap
from ``none`` to ``bn`` does not vanish with width.

Of the size of the box: the share of faces with a landmark outside the 128 px crop falls from about
half to a few percent at 1.2; at 25 epochs and width 8 the NME gains nothing by it (a larger box
leaves the face fewer pixels): within 0.5 points of scale 1 at 1.1 and 1.2 on either set, worse at
1.3; the order of the scales is the same for both arms. The rates are those tuned for 25 epochs at
scale 1, which favours it. The NME is normalised in the picture, so it compares over scales.

Of synthetic and photographed faces trained on together: the attention of at least one module tells
them apart (AUC of the best single weight above 0.9), and nothing is won: SepBN minus BatchNorm is
below 0.3 points either way on real faces.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dataset.crop import CROP_SIZE
from dataset.faces import FaceSet, load_faces
from evaluation.tables import markdown_table
from research.differences import HEADS, difference
from research.experiment_runs import (
    Part,
    Plan,
    Stopped,
    configuration,
    finished,
    rows_of,
    run_arms,
)
from research.experiment_tables import Trained, arm_errors, overview, table
from research.liveness import liveness, separation
from research.mixtures import mixture, synthetic_and_real, synthetic_part
from training.run import RUNS
from utils.device import select_device
from utils.files import reports_user_errors

THREE_ARMS = ("none", "bn", "sepbn-g1k3")
MAIN_ARMS = (*THREE_ARMS, "sepbn-g2k3")
RELATIVES = ("an-k5", "an-k10", "bn-se")
SYNTHETIC = 996  # faces in suite domains: three for each of the 332 real ones
GRID = (1e-2, 3e-2)


@dataclass(frozen=True)
class Suite:
    """Defaults of a suite; ``rates`` are the grid or, where they are ``known``, its arms'."""

    arms: tuple[str, ...]
    parts: tuple[Part, ...]
    rates: tuple[float, ...] = GRID
    known: bool = False
    published: bool = False


LENGTHS98 = (
    *(Part(25, 3, 25, 3), Part(50, 3, 50, 3), Part(100, 3, 100), Part(200, 3, 200)),
    *(Part(400, 3, 400), Part(800, 1, 400), Part(1600, 1, 400)),
)
LENGTHS68 = (
    *(Part(25, 2, 25), Part(50, 2, 50), Part(100, 2, 100)),
    *(Part(200, 2, 100), Part(400, 1, 100)),
)
BOX_ARMS, BOX_PARTS = ("bn", "sepbn-g1k3"), (Part(25, 3, 25),)
SUITES = {
    "wflw": Suite(MAIN_ARMS, (Part(2000, 1, 1000, width=64),), rates=(1e-3,), published=True),
    "real98": Suite((*MAIN_ARMS, "sepbn-g2k3-grid4", "bn-released"), (Part(60, 3, 30),)),
    "lengths98": Suite(THREE_ARMS, LENGTHS98),
    "lengths68": Suite(THREE_ARMS, LENGTHS68),
    "sets68": Suite(
        ("bn", *(f"sepbn-g1k{k}" for k in (1, 2, 3, 4, 8)), "sepbn-g1k3-fixed"), (Part(50, 2, 50),)
    ),
    "relatives98": Suite((*MAIN_ARMS, *RELATIVES), (Part(100, 3, 100),)),
    "relatives68": Suite((*MAIN_ARMS, *RELATIVES), (Part(100, 3, 100),)),
    "widths68": Suite(THREE_ARMS, tuple(Part(50, 2, 50, width=width) for width in (8, 16, 32))),
    "boxes98": Suite(BOX_ARMS, BOX_PARTS, rates=(0.09, 0.03), known=True),
    "boxes68": Suite(BOX_ARMS, BOX_PARTS, rates=(0.01, 0.03), known=True),
    "domains": Suite(("bn", "sepbn-g1k3"), (Part(25, 3, 25),)),
    "subdomains": Suite(("bn", "sepbn-g1k3"), (Part(40, 3, 20),)),
}


def positive(kind: type) -> Callable[[str], Any]:
    """Makes a number of an argument; 0 and below are refused."""

    def number(text: str) -> Any:
        if kind(text) <= 0:
            raise argparse.ArgumentTypeError("must be positive")
        return kind(text)

    return number


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, of_suite = parser.add_argument, "(default: the suite's)"
    count, rate = positive(int), positive(float)

    add("--suite", choices=SUITES, required=True)
    data = "prepared folder (dataset/createWFLW256.py); subdomains: where synthetic faces go"
    add("--data", type=Path, nargs="+", metavar="DIR", required=True, help=data)
    work = "where runs and CSV files go (default: %(default)s)"
    add("--work", type=Path, metavar="DIR", default=Path("checkpoints/experiments"), help=work)

    add("--arms", nargs="+", metavar="ARM", help=f"see above {of_suite}")
    add("--epochs", type=count, nargs="+", metavar="N", help=f"lengths of training {of_suite}")
    add("--seeds", type=count, metavar="N", help=f"seeds 0 to N-1 {of_suite}")
    add("--tune-epochs", type=count, metavar="N", help=f"epochs of tuning runs {of_suite}")
    add("--width", type=count, metavar="N", help=f"channels of the first stage {of_suite}")
    rates = f"learning rates to tune over; one is taken as is {of_suite}"
    add("--rates", type=rate, nargs="+", metavar="LR", help=rates)

    limit = "first N faces of each split only; (sub)domains: N training faces in all"
    add("--limit", type=count, metavar="N", help=limit)
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    args = parser.parse_args(argv)
    if len(args.data) > 1 and not args.suite.startswith("boxes"):
        parser.error(f"--suite {args.suite} takes one folder of --data")

    return args


def make_plans(args: argparse.Namespace) -> list[Plan]:
    """The suite's parts, changed by the arguments; shortest first."""
    suite = SUITES[args.suite]
    rates = dict(zip(suite.arms, suite.rates, strict=True)) if suite.known else {}
    plans = []

    for part in parts(suite, args.epochs):
        asked = {name: getattr(args, name) for name in ("width", "seeds", "tune_epochs")}
        part = replace(part, **{name: value for name, value in asked.items() if value})
        plan = Plan(
            **vars(part),
            suite=args.suite,
            data=args.data[0],
            work=args.work,
            arms=tuple(dict.fromkeys(args.arms or suite.arms)),
            rates=tuple(sorted(set(args.rates or suite.rates))),
            known_rates=() if args.rates else tuple(rates.items()),
            published=suite.published,
            limit=args.limit,
            device=args.device,
        )
        for arm in plan.arms:  # refuse what cannot be trained before anything is
            configuration(plan, arm, run=arm, lr=plan.rates[0], seed=0).check()
        plans.append(plan)

    select_device(args.device)

    return list(dict.fromkeys(plans))


def parts(suite: Suite, epochs: list[int] | None) -> list[Part]:
    """The suite's parts of the wanted lengths; a length that it lacks is tuned at half of it."""
    if epochs is None:
        return list(suite.parts)

    first = {part.width: part for part in reversed(suite.parts)}
    wanted: list[Part] = []

    for n in sorted(set(epochs)):
        new = [replace(part, epochs=n, tune_epochs=max(1, n // 2)) for part in first.values()]
        wanted += [part for part in suite.parts if part.epochs == n] or new[::-1]

    return wanted


def on_its_faces(plans: list[Plan], folders: list[Path]) -> list[Plan]:
    """A suite's plans on the faces that it compares, which are made where missing."""
    plan, suite = plans[0], plans[0].suite
    if suite.startswith("boxes"):
        return [replace(plan, suite=f"{suite}_{folder.name}", data=folder) for folder in folders]

    if suite == "domains":
        share = plan.limit and max(1, plan.limit // 2)
        home = plan.work / "synthetic"
        mixed = synthetic_and_real(home, plan.data, share or SYNTHETIC, share)
        return [replace(plan, data=mixed, limit=None)]

    if suite == "subdomains":
        total = plan.limit or 1600
        mixtures = {f"{suite}{n}": mixture(plan.data, n, total) for n in (1, 2, 4)}
        return [replace(plan, suite=n, data=faces, limit=None) for n, faces in mixtures.items()]

    return plans


def run(plans: list[Plan]) -> Iterator[str]:
    """Train all plans; a Markdown table each as they finish, then what their suite compares."""
    rows: dict[str, list[dict[str, Any]]] = {plan.suite: [] for plan in plans}
    trained: list[Trained] = []

    for plan in plans:
        run_arms(plan, rows[plan.suite])
        trained.append((plan, rows_of(plan, rows[plan.suite])))
        yield table(*trained[-1])
        yield from attention(*trained[-1])

    if plans[0].suite.startswith("boxes"):
        yield boxes(trained)
    elif plans[0].suite.startswith("subdomains"):
        yield subdomains(trained)
    elif len(plans) > 1:
        yield overview(trained)


def attention(plan: Plan, rows: list[dict[str, Any]]) -> Iterator[str]:
    """What the attention of a plan's SepBN networks knows of sub-domains and domains, where the
    suite asks for it.
    """
    runs = [row for row in finished(rows) if row["arm"].startswith("sepbn")]
    networks = [(plan.work / RUNS / row["run"] / "final.pt", row["seed"]) for row in runs]
    device = select_device(plan.device)

    if plan.suite == "domains" and networks:
        sets = load_faces(plan.data, "test"), load_faces(synthetic_part(plan.data), "test")
        yield separation([path for path, _ in networks], *sets, device=device)
    elif plan.suite.startswith("subdomains") and networks:
        firsts = [path for path, seed in networks if seed == 0]
        out = plan.work / f"{plan.suite.replace('subdomains', 'liveness')}.csv"
        yield liveness(firsts, load_faces(plan.data, "test"), out, device=device)


def boxes(trained: list[Trained]) -> str:
    """Markdown: arms on the same faces in several folders, each minus the first folder."""
    first, lines = arm_errors(trained[0][1]), []

    for plan, rows in trained:
        errors = arm_errors(rows)
        cut = f"{100 * share_cut(load_faces(plan.data, 'test', limit=plan.limit)):.1f}"
        both = [arm for arm in plan.arms if arm in errors and arm in first]
        lines += [(plan.data.name, cut, a, *difference(first[a], errors[a])) for a in both]

    heads = ("faces", "test faces cut, %", f"arm, minus {trained[0][0].data.name}", *HEADS)
    return markdown_table(heads, lines, aligned=False)


def share_cut(faces: FaceSet) -> float:
    """Share of faces with a landmark outside the crop that the network sees."""
    points = faces.crop_landmarks()
    outside = (points < -0.5) | (points > CROP_SIZE - 0.5)  # (N, P, 2)

    return float(outside.flatten(1).any(dim=1).double().mean())


def subdomains(trained: list[Trained]) -> str:
    """Markdown: every arm minus BatchNorm, by the number of sub-domains."""
    lines = []

    for plan, rows in trained:
        errors = arm_errors(rows)
        others = [arm for arm in plan.arms if arm != "bn" and {"bn", arm} <= set(errors)]
        number = plan.suite.removeprefix("subdomains")
        lines += [(number, f"{a} − bn", *difference(errors["bn"], errors[a])) for a in others]

    return markdown_table(("sub-domains", "difference", *HEADS), lines, aligned=False)


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    plans = on_its_faces(make_plans(args), args.data)

    try:
        for text in run(plans):
            print(text, end="\n\n", flush=True)
    except Stopped as stopped:
        return stopped.args[0]

    return 0


if __name__ == "__main__":
    sys.exit(main())
