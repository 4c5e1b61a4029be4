"""Differences between arms, paired by face: of runs at hand, or of finished ones' rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evaluation.evaluate import RESAMPLES, bootstrap_means

Seeds = dict[int, np.ndarray]  # seed -> (N,) errors of the test faces, as fractions
HEADS = ("points", "95 % over faces", "std over seeds")  # of the cells of `difference`
EXPLAINED = ("none", "bn", "sepbn-g1k3")


def column(name: str, seed: int) -> str:
    """Head of the column with one run's errors in a CSV of faces; read by :func:`by_column`."""
    return f"{name} seed {seed}"


def by_column(rows: list[dict[str, str]]) -> dict[str, Seeds]:
    """Name of an arm -> its errors, from the rows of a CSV of faces."""
    found: dict[str, Seeds] = {}

    for head in rows[0]:
        name, separator, seed = head.rpartition(" seed ")
        if separator:
            found.setdefault(name, {})[int(seed)] = np.array([float(row[head]) for row in rows])

    return found


def over_seeds(errors: Seeds) -> np.ndarray:
    """(N,) mean of every face's error."""
    return np.mean(list(errors.values()), axis=0)


def over_people(errors: np.ndarray, people: Sequence[str], *, seed: int = 0) -> np.ndarray:
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


def interval(values: np.ndarray) -> str:
    """Ends of the 95 % percentile interval."""
    low, high = np.percentile(values, (2.5, 97.5))
    return f"{low:+.2f} … {high:+.2f}"


def difference(
    first: Seeds, second: Seeds, people: Sequence[str] | None = None
) -> tuple[str, str, str]:
    """Second minus first, in points: cells under ``HEADS``.

    A face's error is the mean over seeds; the spread is that over the seeds that both have.

    Args:
        people: who the N faces are of; the interval is then over people, not faces.
    """
    means = np.stack([over_seeds(first), over_seeds(second)])
    draws = bootstrap_means(means) if people is None else over_people(means, people)
    shared = sorted(first.keys() & second.keys())
    by_seed = [100 * (second[seed].mean() - first[seed].mean()) for seed in shared]
    spread = f"{np.std(by_seed, ddof=1):.2f}" if len(by_seed) > 1 else "–"
    points = 100 * (means[1] - means[0]).mean()

    return f"{points:+.2f}", interval(100 * (draws[1] - draws[0])), spread


def explained(errors: dict[str, Seeds], ending: str = "") -> str:
    """How much of the gain from no normalisation to SepBN is there with BatchNorm, in words."""
    faces = np.stack([over_seeds(errors[arm + ending]) for arm in EXPLAINED])  # (3, N)
    none, bn, sepbn = bootstrap_means(faces)
    low, high = np.percentile(none - sepbn, (2.5, 97.5))
    names = f"none{ending}", f"{EXPLAINED[2]}{ending}"

    if low <= 0 <= high:
        return (
            f"There is no clear difference between {names[0]} and {names[1]} "
            "that BatchNorm could explain."
        )

    low, high = np.percentile(100 * (none - bn) / (none - sepbn), (2.5, 97.5))
    none, bn, sepbn = faces.mean(axis=1)

    return (
        f"BatchNorm alone gives {100 * (none - bn) / (none - sepbn):.0f} % (95 % over faces: "
        f"{low:.0f} … {high:.0f}) of the change from {names[0]} to {names[1]}."
    )


def mean_std(values: Sequence[float], digits: int = 2) -> str:
    """Mean ± standard deviation over runs, the latter where there are several."""
    if not len(values):
        return "–"
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"
