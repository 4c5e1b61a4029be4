"""Markdown tables of the experiments: means over seeds, and differences paired by face.

Used by ``research/experiments.py``, which explains the suites.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from evaluation.evaluate import mean_shape_summary
from evaluation.tables import MISSING, markdown_table
from research.differences import EXPLAINED, HEADS, Seeds, difference, explained, mean_std
from research.experiment_runs import Plan, finished, test_faces

DIFFERENCES = (("none", "bn"), ("none", "sepbn-g1k3"), ("bn", "sepbn-g1k3"), ("bn", "sepbn-g2k3"))
Trained = tuple[Plan, list[dict[str, Any]]]  # a plan and its runs
PUBLISHED = {"none": "5.70", "sepbn-g1k3": "5.48"}  # NME in percent on all of WFLW


def arm_errors(rows: list[dict[str, Any]]) -> dict[str, Seeds]:
    """Arm -> its errors, of main runs that finished."""
    found: dict[str, Seeds] = {}
    for row in finished(rows):
        found.setdefault(row["arm"], {})[row["seed"]] = row["errors"]
    return found


def table(plan: Plan, rows: list[dict[str, Any]]) -> str:
    """Markdown about one plan of a suite and its runs: an arm a line, then the differences of
    interest.
    """
    main = [row for row in rows if row["stage"] == "main"]
    errors, some = arm_errors(rows), main[0]
    where = (
        f"{some['cpu']}, {some['threads']} threads" if some["device"] == "cpu" else some["device"]
    )
    lines = [
        f"{plan.suite}: {some['n_train']} training, {some['n_test']} test faces, "
        f"width {plan.width}, {plan.epochs} epochs, batch {some['batch_size']}, "
        f"warm-up {some['warmup_epochs']:g} epochs, {plan.seeds} seeds; {where}, "
        f"torch {some['torch']}, numpy {some['numpy']}, Python {some['python']}. "
        f"The mean shape alone: {mean_shape_nme(plan):.2f} %.",
        "",
        _arm_table(plan, main),
        *_difference_lines(plan, errors),
    ]

    for ending in ("", "-released"):
        if {arm + ending for arm in EXPLAINED} <= set(errors):
            lines += ["", explained(errors, ending)]

    return "\n".join(lines + _tuning_lines(plan, rows))


def _arm_table(plan: Plan, main: list[dict[str, Any]]) -> str:
    heads = ["arm", "lr", "runs", "NME %", "FR@0.1 %", "AUC@0.1", "s a run"]
    heads += ["published"] if plan.published else []
    columns = (("nme_percent", 2), ("fr_percent", 1), ("auc", 3), ("train_seconds", 0))
    lines = []

    for arm in plan.arms:
        runs = [row for row in main if row["arm"] == arm]
        done = [row for row in runs if row["errors"] is not None]
        cells = [arm, f"{runs[0]['lr']:g}", f"{len(done)} of {len(runs)}"]
        cells += [mean_std([row[name] for row in done], digits) for name, digits in columns]
        if plan.published:
            cells.append(PUBLISHED.get(arm.removesuffix("-released"), MISSING))
        lines.append(cells)

    return markdown_table(heads, lines, aligned=False)


def _difference_lines(plan: Plan, errors: dict[str, Seeds]) -> list[str]:
    released = [(arm.removesuffix("-released"), arm) for arm in plan.arms if "-released" in arm]
    others = [("bn", arm) for arm in plan.arms if arm.startswith(("sepbn", "an-", "bn-se"))]
    alike = [(f"{a}-released", f"{b}-released") for a, b in DIFFERENCES]
    pairs = dict.fromkeys((*DIFFERENCES, *others, *alike, *released))
    lines = [
        (f"{b} − {a}", *difference(errors[a], errors[b])) for a, b in pairs if {a, b} <= set(errors)
    ]

    return ["", markdown_table(("difference", *HEADS), lines, aligned=False)] if lines else []


def _tuning_lines(plan: Plan, rows: list[dict[str, Any]]) -> list[str]:
    tuned = [row for row in rows if row["stage"] == "tune"]
    if not tuned:
        return []

    found: dict[str, dict[float, list[float]]] = {}
    for row in sorted(tuned, key=lambda row: row["lr"]):
        by_rate = found.setdefault(row["arm"], {}).setdefault(row["lr"], [])
        by_rate.append(row.get("nme_percent", np.inf))

    def words(lr: float, nmes: list[float]) -> str:
        return f"{lr:g}: " + (f"{np.mean(nmes):.2f}" if np.isfinite(nmes).all() else "diverged")

    of = (
        f"{tuned[0]['n_train']} faces, {tuned[0]['epochs']} epochs, {plan.tune_seeds} seeds; "
        f"{tuned[0]['n_test']} faces held out"
    )
    lines = [
        f"- {arm}: " + ", ".join(words(*rate) for rate in found[arm].items())
        for arm in dict.fromkeys(row["arm"] for row in tuned)
    ]

    return ["", f"Hold-out NME % by learning rate ({of}):", "", *lines]


def overview(trained: list[Trained]) -> str:
    """Markdown: the parts of a suite side by side, a line for each length and width."""
    arms = trained[0][0].arms
    pairs = [pair for pair in DIFFERENCES if set(pair) <= set(arms)]
    heads = ["epochs", "width", "seeds", *arms, *(f"{b} − {a} (95 % over faces)" for a, b in pairs)]
    lines = []

    for plan, rows in trained:
        errors = arm_errors(rows)
        line = [str(plan.epochs), str(plan.width), str(plan.seeds)]
        for arm in arms:
            line.append(mean_std([100 * found.mean() for found in errors.get(arm, {}).values()]))
        for a, b in pairs:
            known = {a, b} <= set(errors)
            line.append("{} ({})".format(*difference(errors[a], errors[b])) if known else MISSING)
        lines.append(line)

    return markdown_table(heads, lines, aligned=False)


def mean_shape_nme(plan: Plan) -> float:
    """NME in percent of answering with the mean training shape."""
    faces = test_faces(str(plan.data.resolve()), plan.limit)
    found = mean_shape_summary(plan.data, faces, limit=plan.limit)
    assert found is not None, "networks were trained on the training list"

    return found["full"]["nme_percent"]
