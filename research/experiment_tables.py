"""Markdown tables of the experiments: means over seeds, and differences paired by face.

Used by ``research/experiments.py``, which explains the suites.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from evaluation.evaluate import bootstrap_means, mean_shape_summary, paired_difference
from evaluation.tables import MISSING, markdown_table
from research.experiment_runs import Plan, rows_of, test_faces

DIFFERENCES = (("none", "bn"), ("none", "sepbn-g1k3"), ("bn", "sepbn-g1k3"), ("bn", "sepbn-g2k3"))
DIFFERENCE_HEADS = ("points", "95 % over faces", "std over seeds")
EXPLAINED = ("none", "bn", "sepbn-g1k3")
PUBLISHED = {"none": "5.70", "sepbn-g1k3": "5.48"}  # NME in percent on all of WFLW


def arm_errors(rows: list[dict[str, Any]]) -> dict[str, dict[int, np.ndarray]]:
    """Arm -> seed -> (N,) errors, of main runs that finished."""
    found: dict[str, dict[int, np.ndarray]] = {}
    for row in rows:
        if row["stage"] == "main" and row["errors"] is not None:
            found.setdefault(row["arm"], {})[row["seed"]] = row["errors"]
    return found


def over_seeds(errors: dict[int, np.ndarray]) -> np.ndarray:
    """(N,) mean of every face's error."""
    return np.mean(list(errors.values()), axis=0)


def difference(first: dict[int, np.ndarray], second: dict[int, np.ndarray]) -> tuple[str, str, str]:
    """Second minus first, in points, with its interval and its spread over the seeds they share:
    cells under ``DIFFERENCE_HEADS``.

    Faces are paired; a face's error is the mean over seeds.
    """
    means = np.stack([over_seeds(first), over_seeds(second)])
    found = paired_difference(bootstrap_means(means), means)
    by_seed = [
        100 * (second[seed].mean() - first[seed].mean())
        for seed in sorted(first.keys() & second.keys())
    ]
    spread = f"{np.std(by_seed, ddof=1):.2f}" if len(by_seed) > 1 else "–"
    low, high = 100 * found["low"], 100 * found["high"]

    return f"{100 * found['difference']:+.2f}", f"{low:+.2f} … {high:+.2f}", spread


def explained(errors: dict[str, dict[int, np.ndarray]], ending: str = "") -> str:
    """How much of the gain from no normalisation to SepBN is there with BatchNorm, in words."""
    faces = np.stack([over_seeds(errors[arm + ending]) for arm in EXPLAINED])  # (3, N)
    means = bootstrap_means(faces)
    low, high = np.percentile(means[0] - means[2], (2.5, 97.5))
    names = f"none{ending}", f"{EXPLAINED[2]}{ending}"

    if low <= 0 <= high:
        return (
            f"There is no clear difference between {names[0]} and {names[1]} "
            "that BatchNorm could explain."
        )

    none, bn, sepbn = faces.mean(axis=1)
    share = 100 * (none - bn) / (none - sepbn)
    low, high = np.percentile(100 * (means[0] - means[1]) / (means[0] - means[2]), (2.5, 97.5))

    return (
        f"BatchNorm alone gives {share:.0f} % (95 % over faces: {low:.0f} … {high:.0f}) "
        f"of the change from {names[0]} to {names[1]}."
    )


def table(plan: Plan, rows: list[dict[str, Any]]) -> str:
    """Markdown about one plan of a suite: an arm a line, then the differences of interest.

    Args:
        plan: the plan.
        rows: its runs.
    """
    main = [row for row in rows if row["stage"] == "main"]
    errors, some = arm_errors(rows), main[0]
    lines = [
        f"{plan.suite}: {some['n_train']} training, {some['n_test']} test faces, "
        f"width {plan.width}, {plan.epochs} epochs, batch {some['batch_size']}, "
        f"warm-up {some['warmup_epochs']:g} epochs, {plan.seeds} seeds; {_hardware(some)}. "
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
    lines = []
    columns = (("nme_percent", 2), ("fr_percent", 1), ("auc", 3), ("train_seconds", 0))

    for arm in plan.arms:
        runs = [row for row in main if row["arm"] == arm]
        done = [row for row in runs if row["errors"] is not None]
        cells = [arm, f"{runs[0]['lr']:g}", f"{len(done)} of {len(runs)}"]
        cells += [_mean_std([row[name] for row in done], digits) for name, digits in columns]
        if plan.published:
            cells.append(PUBLISHED.get(arm.removesuffix("-released"), "–"))
        lines.append(cells)

    return markdown_table(heads, lines, aligned=False)


def _difference_lines(plan: Plan, errors: dict[str, dict[int, np.ndarray]]) -> list[str]:
    released = [
        (arm.removesuffix("-released"), arm) for arm in plan.arms if arm.endswith("-released")
    ]
    others = [("bn", arm) for arm in plan.arms if arm.startswith(("sepbn", "an-", "bn-se"))]
    alike = [(f"{a}-released", f"{b}-released") for a, b in DIFFERENCES]
    pairs = dict.fromkeys((*DIFFERENCES, *others, *alike, *released))
    pairs = [pair for pair in pairs if set(pair) <= set(errors)]
    if not pairs:
        return []

    lines = [(f"{b} − {a}", *difference(errors[a], errors[b])) for a, b in pairs]

    return ["", markdown_table(("difference", *DIFFERENCE_HEADS), lines, aligned=False)]


def _tuning_lines(plan: Plan, rows: list[dict[str, Any]]) -> list[str]:
    tuned = [row for row in rows if row["stage"] == "tune"]
    if not tuned:
        return []

    of = (
        f"{tuned[0]['n_train']} faces, {tuned[0]['epochs']} epochs, {plan.tune_seeds} seeds; "
        f"{tuned[0]['n_test']} faces held out"
    )
    lines = ["", f"Hold-out NME % by learning rate ({of}):", ""]

    for arm in dict.fromkeys(row["arm"] for row in tuned):
        found: dict[float, list[float]] = {}
        for row in tuned:
            if row["arm"] == arm:
                found.setdefault(row["lr"], []).append(row.get("nme_percent", float("inf")))
        means = {lr: np.mean(found[lr]) for lr in sorted(found)}
        cells = [
            f"{lr:g}: " + (f"{nme:.2f}" if np.isfinite(nme) else "diverged")
            for lr, nme in means.items()
        ]
        lines.append(f"- {arm}: " + ", ".join(cells))

    return lines


def overview(plans: list[Plan], rows: list[dict[str, Any]]) -> str:
    """Markdown: the parts of a suite side by side, a line for each length and width."""
    arms = plans[0].arms
    pairs = [pair for pair in DIFFERENCES if set(pair) <= set(arms)]
    heads = ["epochs", "width", "seeds", *arms, *(f"{b} − {a} (95 % over faces)" for a, b in pairs)]
    lines = []

    for plan in plans:
        errors = arm_errors(rows_of(plan, rows))
        cells = [str(plan.epochs), str(plan.width), str(plan.seeds)]
        for arm in arms:
            means = [100 * found.mean() for found in errors.get(arm, {}).values()]
            cells.append(_mean_std(means, 2))
        for a, b in pairs:
            points, interval, _ = (
                difference(errors[a], errors[b]) if {a, b} <= set(errors) else (MISSING,) * 3
            )
            cells.append(f"{points} ({interval})")

        lines.append(cells)

    return markdown_table(heads, lines, aligned=False)


def mean_shape_nme(plan: Plan) -> float:
    """NME in percent of answering with the mean training shape."""
    faces = test_faces(str(plan.data.resolve()), plan.limit)
    found = mean_shape_summary(plan.data, faces, limit=plan.limit)
    assert found is not None, "networks were trained on the training list"

    return found["full"]["nme_percent"]


def _mean_std(values: list[float], digits: int) -> str:
    if not values:
        return "–"
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def _hardware(row: dict[str, Any]) -> str:
    where = f"{row['cpu']}, {row['threads']} threads" if row["device"] == "cpu" else row["device"]
    return f"{where}, torch {row['torch']}, numpy {row['numpy']}, Python {row['python']}"
