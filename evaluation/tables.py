"""What ``test.py`` reports: which checkpoints, the protocol in words, tables as Markdown, JSON and
CSV.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dataset.annotations import ATTRIBUTES
from dataset.crop import CROP_SIZE, PATCH_SIZE
from dataset.faces import FaceSet, subset_lists
from dataset.labels import doubtful_crops
from dataset.landmarks import COMMON_60, IBUG_68, WFLW_98, LandmarkScheme, definition_to_keep
from evaluation.evaluate import Evaluation, Summary
from models.checkpoint import LoadedModel
from utils.files import atomic_write
from utils.metrics import THRESHOLD

MISSING = "–"


def protocol(
    data: Path, faces: FaceSet, models: dict[str, LoadedModel]
) -> tuple[list[str], list[str]]:
    """The protocol in words, one line for each item, and warnings about what makes numbers
    incomparable.
    """
    here, scale = faces.meta.get("resample", "nearest"), faces.meta.get("box_scale", 1.0)
    lines, warnings = _measured(data, faces, resample=here, box_scale=scale), []

    for name, model in models.items():
        config = model.config
        geometry = "released" if config["released_geometry"] else "corrected"
        lines.append(
            f"Model {name}: {config['arm']}; trained on {config['resample']!r} patches with "
            f"{geometry} geometry; {model.path} ({config['format_name']} form)"
        )
        warnings += _cut_otherwise(name, config, resample=here, box_scale=scale)

    warnings += doubtful_crops(faces)
    known = subset_lists(data)
    if unknown := [attribute for attribute in ATTRIBUTES if attribute not in known]:
        warnings.append(
            f"{data} has no lists of these subsets, so their columns stay empty: "
            f"{', '.join(unknown)} (WFLW256_test_<subset>.txt, or WFLW256_<subset>.txt as the "
            "released code writes)"
        )

    return lines, warnings


def _measured(data: Path, faces: FaceSet, *, resample: str, box_scale: float) -> list[str]:
    """What is measured, and how."""
    grown = "" if box_scale == 1 else f" grown to {box_scale:g} times its side"
    numbered = IBUG_68 if faces.scheme == COMMON_60 else faces.scheme  # as everybody numbers them
    eyes = "points {} and {}".format(*numbered.outer_eyes)
    if definition_to_keep(numbered) is None:
        eyes = f"the outer eye corners ({eyes})"

    common = (
        f"Points: {COMMON_60.name} of {WFLW_98.name} and {IBUG_68.name}; the eight on the eyelids "
        "have no counterpart and are left out"
    )
    return [
        f"Data: {data}, test split, {len(faces):,} faces, {faces.scheme.name}, patches resampled "
        f"by {resample!r}",
        *([common] if faces.scheme == COMMON_60 else []),
        f"Input: the squared face box{grown}, central {CROP_SIZE} px of the {PATCH_SIZE} px patch; "
        "no test-time augmentation",
        f"NME: mean point error / distance of {eyes}, mean over faces, in %",
        "Unit: crop px, which gives the NME of image px (the crop is isotropic); predictions are "
        "not clipped; float64",
        f"FR@{THRESHOLD:g}: share of faces with an NME strictly above {THRESHOLD:g}, in %",
        f"AUC@{THRESHOLD:g}: exact area under the cumulative error curve up to {THRESHOLD:g}, as "
        "a share, 0 to 1",
    ]


def _cut_otherwise(
    name: str, config: dict[str, Any], *, resample: str, box_scale: float
) -> list[str]:
    """Warnings where a model's own faces were cut in another way than the data."""
    own, factor, warnings = config["resample"], config["box_scale"], []

    if own != resample:
        warnings.append(
            f"{name} was trained on patches resampled by {own!r}, this data by {resample!r}; "
            "their landmarks differ by up to a source pixel, so compare its NME on data prepared "
            "like its own"
        )

    if factor != box_scale:
        warnings.append(
            f"{name} was trained on face boxes of {factor:g} times their side, this data has "
            f"{box_scale:g} times; compare its NME on data prepared with --box-scale {factor:g}"
        )

    return warnings


def count_points(scheme: LandmarkScheme) -> str:
    """How many landmarks are measured, in words."""
    return COMMON_60.name if scheme == COMMON_60 else f"{scheme.num_points} points"


def accuracy_table(summaries: dict[str, Summary], mean_shape: Summary | None, points: str) -> str:
    """NME, FR and AUC of every model on the full set and the subsets.

    Args:
        summaries: model -> result of ``summarize``.
        mean_shape: summary of the mean shape's NME; None leaves its row out.
        points: which landmarks are measured, in words.
    """
    first = next(iter(summaries.values()))
    columns = [f"{subset} ({table['faces']:,})" for subset, table in first.items()]
    metrics = [
        ("NME %", "nme_percent", 2),
        (f"FR@{THRESHOLD:g} %", "fr_percent", 2),
        (f"AUC@{THRESHOLD:g}", "auc", 4),
    ]

    def row(name: str, summary: Summary, metric: str, key: str, digits: int) -> list[str]:
        cells = (
            f"{table[key]:.{digits}f}" if table["faces"] else MISSING for table in summary.values()
        )
        return [name, metric, *cells]

    rows = [row(name, each, *metric) for name, each in summaries.items() for metric in metrics]
    if mean_shape is not None:
        rows.append(row("mean shape of the training set", mean_shape, *metrics[0]))

    return markdown_table(["model", f"metric, {points}", *columns], rows)


def difference_table(pairs: list[dict[str, Any]], masks: dict[str, np.ndarray]) -> str:
    """Differences with intervals; a star marks an interval that excludes zero."""

    def cell(result: dict[str, float] | None) -> str:
        if result is None:
            return MISSING
        star = "*" if result["low"] > 0 or result["high"] < 0 else " "
        return "{difference:+.2f} [{low:+.2f}, {high:+.2f}]".format(**result) + star

    rows = [
        [f"{p['second']} − {p['first']}", *(cell(p["subsets"].get(name)) for name in masks)]
        for p in pairs
    ]

    return markdown_table(["difference in NME, % points [95 %]", *masks], rows)


def cost_table(evaluations: list[Evaluation]) -> str:
    """Parameters, multiply-accumulates and speed of every model."""
    first = evaluations[0].cost
    faces = f"throughput, batch {first['throughput_batch_size']}, faces/s"

    columns = [
        ("parameters, M", "parameters", 1e-6, ".2f"),
        ("MACs, G", "macs", 1e-9, ".3f"),
        ("latency, batch 1, median, ms", "latency_ms_median", 1, ".2f"),
        ("latency, p95, ms", "latency_ms_p95", 1, ".2f"),
        (faces, "throughput_faces_per_second", 1, ",.0f"),
    ]
    header = ["model", *(name for name, *_ in columns)]
    rows = [
        [e.name, *(format(e.cost[key] * factor, digits) for _, key, factor, digits in columns)]
        for e in evaluations
    ]

    return (
        markdown_table(header, rows)
        + "\n\nSpeed of the forward pass alone, with normalisation folded as in predict.py, the "
        + f"models in turn, on {first['device']} ({first['precision']})."
    )


def robustness_tables(curves: dict[str, dict[str, dict[float, float]]], faces: int) -> list[str]:
    """NME per shift and per scale of the face box, a table each."""
    tables = []

    for kind, words in (("shift", lambda x: f"{100 * x:.0f} %"), ("scale", lambda x: f"x {x:.1f}")):
        header = map(words, next(iter(curves.values()))[kind])
        rows = [[name, *(f"{nme:.2f}" for nme in c[kind].values())] for name, c in curves.items()]
        head = f"NME %, {kind} of the box ({faces:,} faces)"
        tables.append(markdown_table([head, *header], rows))

    return tables


def markdown_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, aligned: bool = True
) -> str:
    """A table to read as Markdown and in a terminal; the first column is aligned left, the others
    right. Not ``aligned``, cells are as long as what they hold.
    """
    if not aligned:
        lines = [f"| {' | '.join(row)} |" for row in (header, *rows)]
        return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])

    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]

    def line(row: Sequence[str]) -> str:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        return f"| {' | '.join([row[0].ljust(widths[0]), *cells[1:]])} |"

    return "\n".join(map(line, (header, rule, *rows)))


def write_faces(path: Path, faces: FaceSet, evaluations: list[Evaluation]) -> None:
    """One row a face: index in the list, NME in percent of every model, the six attributes as 0 and
    1.
    """
    with atomic_write(path, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["index", *(f"nme_percent {e.name}" for e in evaluations), *ATTRIBUTES])
        for index, attributes in enumerate(faces.attributes.astype(int)):
            errors = (f"{100 * e.errors[index]:.6f}" for e in evaluations)
            writer.writerow([index, *errors, *attributes])
