"""Figures of an evaluation. Every function returns a matplotlib Figure; :func:`save` writes it as
PNG.

Lines differ in style and marker and colour maps are perceptually uniform, so that everything can be
read in grey.
"""

from __future__ import annotations

import re
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps, patheffects
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure, FigureBase
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import nn

from dataset.annotations import ATTRIBUTES
from dataset.crop import CROP_OFFSET, CROP_SIZE, PATCH_SIZE
from dataset.faces import FaceSet
from dataset.landmarks import LandmarkScheme
from evaluation.attention import cohens_d, relative_distances, sepbn_modules
from evaluation.robustness import ROBUSTNESS_FACES
from models import SepBatchNorm2d
from utils.files import atomic_write
from utils.metrics import THRESHOLD, point_errors

COLOURS = "viridis"  # monotone in lightness
STILL = 0.01  # a weight counts as constant where its standard deviation over faces is below this
LINES, MARKERS = ("-", "--", "-.", ":"), "osD^vPX*"
UNIT = "% of the inter-ocular distance"
PAGE = 7.7  # inches, 1,000 px: the width at which a figure in a page has its own size


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, whole or not at all."""
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=130)
    return path


def cumulative_error(errors: dict[str, np.ndarray]) -> Figure:
    """Cumulative error distribution (CED) of every model with the threshold; ``errors``: model ->
    (N,) fractions.
    """
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()

    for (name, values), style in zip(errors.items(), _styles(len(errors)), strict=False):
        at = np.sort(100 * values[np.isfinite(values)])  # a face without a number is never counted
        share = np.arange(len(at) + 1) / len(values)
        style.pop("marker")
        # A step function, from 0 until beyond the right edge.
        axes.step([0, *at, 1e9], [*share, share[-1]], where="post", label=name, **style)

    axes.axvline(100 * THRESHOLD, color="0.4", linewidth=1)
    axes.text(100 * THRESHOLD, 0.02, f" threshold {THRESHOLD:g}", color="0.3", fontsize=8)

    axes.set(xlim=(0, 160 * THRESHOLD), xlabel=f"NME of a face, {UNIT}")
    axes.set(ylim=(0, 1), ylabel="share of faces at or below")
    axes.set_title(f"Cumulative error (CED), {len(next(iter(errors.values()))):,} faces")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")

    return figure


def error_by_landmark(
    errors: dict[str, np.ndarray], mean_shape: np.ndarray, scheme: LandmarkScheme
) -> Figure:
    """Mean error of each landmark on the mean face.

    Args:
        errors: model -> (P,) fractions.
        mean_shape: (P, 2) crop px.
    """
    columns = min(4, len(errors))
    rows = -(-len(errors) // columns)
    figure = Figure(figsize=(4.2 * columns + 1, 4.5 * rows), layout="constrained")
    panels = _panels(figure, rows, columns, len(errors))
    low, high = (100 * extreme(list(errors.values())) for extreme in (np.nanmin, np.nanmax))

    for axes, (name, values) in zip(panels, errors.items(), strict=True):
        for contour in scheme.contours:
            order = [*contour.points, *contour.points[: int(contour.closed)]]
            axes.plot(*mean_shape[order].T, color="0.75", linewidth=0.8, zorder=1)

        style = {"cmap": COLOURS + "_r", "vmin": low, "vmax": high, "zorder": 2}
        style |= {"s": 20 + 60 * (100 * values - low) / max(high - low, 1e-9)}
        edges = {"edgecolors": "0.2", "linewidths": 0.4}
        dots = axes.scatter(*mean_shape.T, c=100 * values, **style, **edges)
        axes.set(title=f"{name}\nmean {100 * values.mean():.2f} %", aspect="equal")
        axes.set(xlabel="x, crop px", ylabel="y, crop px")
        axes.invert_yaxis()
        axes.margins(0.08)

    figure.colorbar(dots, ax=panels, label=f"mean error of the landmark, {UNIT}", shrink=0.8)

    return figure


def error_by_subset(summaries: dict[str, dict[str, dict[str, float]]]) -> Figure:
    """NME of every model on the full set and the subsets; ``summaries``: model -> result of
    ``summarize``.
    """
    subsets = next(iter(summaries.values()))
    figure = Figure(figsize=(9, 4.4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(summaries)

    styles = _styles(len(summaries))
    for i, ((name, table), style) in enumerate(zip(summaries.items(), styles, strict=False)):
        at = np.arange(len(subsets)) - 0.4 + (i + 0.5) * width
        heights = [table[subset]["nme_percent"] for subset in subsets]
        bars = axes.bar(at, heights, width, label=name, color=style["color"], edgecolor="white")

        if len(summaries) <= 3:
            labels = ["–" if np.isnan(height) else f"{height:.1f}" for height in heights]
            axes.bar_label(bars, labels, fontsize=7, padding=1)

    names = [f"{name}\n{table['faces']:,} faces" for name, table in subsets.items()]
    axes.set_xticks(range(len(names)), names)
    axes.set(ylabel=f"NME, {UNIT}", title="NME by subset", xlim=(-0.5, len(names) - 0.5))
    axes.margins(y=0.12)
    place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.14)}
    axes.legend(fontsize=8, ncols=min(4, len(summaries)), **place)

    return figure


def robustness_curves(curves: dict[str, dict[str, dict[float, float]]], faces: int) -> Figure:
    """NME against a shift and a scaling of the face box; ``curves``: model -> result of
    ``robustness``.
    """
    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    by_shift, by_scale = figure.subplots(1, 2, sharey=True)

    for (name, curve), style in zip(curves.items(), _styles(len(curves)), strict=False):
        shift, scale = curve["shift"], curve["scale"]
        by_shift.plot([100 * x for x in shift], list(shift.values()), label=name, **style)
        by_scale.plot(list(scale), list(scale.values()), **style)

    shifts = "shift of the box in a random direction, % of its side"
    by_shift.set(xlabel=shifts, ylabel=f"NME, {UNIT}")
    by_scale.set(xlabel="side of the box / side of the annotated box")
    by_scale.axvline(1, color="0.6", linewidth=1, zorder=0)
    by_shift.set_ylim(bottom=0)
    for axes in (by_shift, by_scale):
        axes.grid(alpha=0.3)

    by_shift.legend(loc="upper left", fontsize=8)
    figure.suptitle(f"NME when the face box is perturbed, {faces:,} faces")

    return figure


def face_gallery(
    faces: FaceSet,
    prediction: np.ndarray,
    errors: np.ndarray,
    *,
    rows: list[tuple[str, np.ndarray]],
    title: str,
) -> Figure:
    """Faces with predicted and true points.

    Args:
        prediction: (N, P, 2) crop px.
        errors: (N,) NME, fractions.
        rows: for every row of the gallery a label (may be empty) and the indices of its faces.
    """
    columns = max(len(indices) for _, indices in rows)
    figure = Figure(figsize=(2.7 * columns + 0.3, 3.1 * len(rows) + 0.7), layout="constrained")
    panels = figure.subplots(len(rows), columns, squeeze=False)
    for panel in panels.ravel():
        panel.set_axis_off()

    for line, (label, indices) in zip(panels, rows, strict=True):
        for axes, index in zip(line, indices, strict=False):
            true = faces.crop_landmarks()[index].cpu().numpy()
            words = f"{label}face {index}, NME {100 * errors[index]:.1f} %"
            _show_face(axes, faces, index, words, true, prediction[index])
            _show_points(axes, true, prediction[index])

    entries = panels[0, 0].get_legend_handles_labels()
    place: dict[str, Any] = {"loc": "outside lower center", "ncols": 2, "facecolor": "0.6"}
    figure.legend(*entries, **place, fontsize=8, markerscale=2)
    figure.suptitle(title)

    return figure


def write_evaluation(
    folder: Path, faces: FaceSet, evaluations: list, curves: dict[str, dict]
) -> list[Path]:
    """Write every figure of an evaluation.

    Args:
        evaluations: ``evaluation.evaluate.Evaluation`` of every model.
        curves: model -> result of ``robustness``.
    """
    target = faces.crop_landmarks().cpu().numpy()
    by_point = {
        e.name: point_errors(e.prediction, target, faces.scheme.outer_eyes).mean(axis=0)
        for e in evaluations
    }

    figures = {
        "ced": cumulative_error({e.name: e.errors for e in evaluations}),
        "nme_by_landmark": error_by_landmark(by_point, target.mean(axis=0), faces.scheme),
        "nme_by_subset": error_by_subset({e.name: e.summary for e in evaluations}),
        "robustness": robustness_curves(curves, min(len(faces), ROBUSTNESS_FACES)),
    }

    for e in evaluations:
        stem = "faces_" + re.sub(r"[^A-Za-z0-9._-]+", "_", e.name)
        while stem.lower() in map(str.lower, figures):  # names may differ in odd characters alone
            stem += "_2"

        order = np.argsort(e.errors)  # NaN last: among the worst
        middle = max(0, (len(order) - 6) // 2)
        rows = [("worst: ", order[::-1][:6]), ("median: ", order[middle : middle + 6])]
        title = f"{e.name}: worst and median faces (dashed: what the network sees)"
        figures[stem] = face_gallery(faces, e.prediction, e.errors, rows=rows, title=title)

    return [save(figure, folder / f"{name}.png") for name, figure in figures.items()]


def _show_face(axes, faces: FaceSet, index: int, words: str, *points: np.ndarray) -> None:
    """Draw a patch and the crop that the network sees, with `words` and the face's attributes above
    it. A square within the patch is shown that holds the crop and all `points`, (P, 2) crop px
    each.
    """
    low = -CROP_OFFSET - 0.5  # pixel centres are integers
    extent = (low, low + PATCH_SIZE, low + PATCH_SIZE, low)
    axes.imshow(faces.patches[index].cpu().numpy(), extent=extent)
    outline = [patheffects.withStroke(linewidth=1.4, foreground="black")]
    style: dict[str, Any] = {"fill": False, "color": "white", "linewidth": 0.8, "linestyle": "--"}
    crop = Rectangle((-0.5, -0.5), CROP_SIZE, CROP_SIZE, **style)
    axes.add_patch(crop).set_path_effects(outline)

    flags = zip(ATTRIBUTES, faces.attributes[index], strict=True)
    names = [name for name, present in flags if present]
    if len(names) > 3:
        names[2:] = [f"+ {len(names) - 2} more"]
    axes.set_title(f"{words}\n{', '.join(names).replace(', +', ' +')}", fontsize=8)

    everything = np.concatenate([*points, [[0, 0], [CROP_SIZE - 1, CROP_SIZE - 1]]])
    everything = everything[np.isfinite(everything).all(axis=1)]
    centre = (everything.min(0) + everything.max(0)) / 2
    half = min((np.ptp(everything, axis=0)).max() / 2 + 4, PATCH_SIZE / 2)
    low, high = -CROP_OFFSET - 0.5 + half, PATCH_SIZE - CROP_OFFSET - 0.5 - half
    x, y = np.clip(centre, low, high)
    axes.set(xlim=(x - half, x + half), ylim=(y + half, y - half))


def _show_points(axes: Axes, true: np.ndarray, predicted: np.ndarray) -> None:
    """Draw true and predicted points, (P, 2) crop px each, and what lies between them."""
    lines = np.stack([true, predicted], axis=1)  # (P, 2 ends, 2)
    axes.add_collection(LineCollection(list(lines), colors="gold", linewidths=0.6))

    x, y = true.T
    axes.scatter(x, y, s=9, facecolors="none", edgecolors="white", linewidths=0.8, label="true")
    x, y = predicted.T
    axes.scatter(x, y, s=5, color="black", edgecolors="gold", linewidths=0.5, label="predicted")


def _panels(figure: FigureBase, rows: int, columns: int, wanted: int) -> list[Any]:
    """So many panels of a grid; the rest of it stays empty."""
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[wanted:]:
        axes.set_visible(False)

    return list(panels[:wanted])


def _styles(count: int):
    """A line style, a marker and a colour for each of ``count`` models."""
    colours = colormaps[COLOURS](np.linspace(0, 0.8, max(count, 2)))
    for colour, line, marker in zip(colours, cycle(LINES), cycle(MARKERS), strict=False):
        yield {"color": colour, "linestyle": line, "marker": marker}


def mapping_parameters(model: nn.Module) -> Figure:
    """Heat maps of every module's scales, left of a dividing line, and of its shifts, right of it.

    A heat map has a row per channel, a column per set and a colour range of its own. Three stand
    beside each other in either half, so that a page can show them at their own size.
    """
    modules = sepbn_modules(model)
    rows = -(-len(modules) // 3)
    figure = Figure(figsize=(PAGE, 3.6 * rows + 0.6), layout="constrained")
    figure.suptitle(
        "Mapping parameters of the SepBN modules, front to back\n"
        "(a row for each channel, a column for each set; each map has its own colour range)",
        fontsize=10,
    )
    halves = {"scale γ": "weight", "shift β": "bias"}
    figure.add_artist(Line2D((0.5, 0.5), (0, 0.92), color="0.3", linewidth=2))

    sides = figure.subfigures(1, 2, squeeze=False)[0]

    for side, (title, parameter) in zip(sides, halves.items(), strict=True):
        side.suptitle(title, fontsize=11)
        panels = _panels(side, rows, 3, len(modules))
        for axes, (name, module) in zip(panels, modules.items(), strict=True):
            values = getattr(module, parameter).detach().float().cpu().numpy().T  # (C, K)
            image = axes.imshow(values, aspect="auto", cmap=COLOURS, interpolation="none")
            axes.set_title(name, fontsize=9)
            axes.set_xticks(range(values.shape[1]), range(1, values.shape[1] + 1))
            axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.tick_params(labelsize=7)
            bar = side.colorbar(image, ax=axes, orientation="horizontal", pad=0.02)
            bar.ax.xaxis.set_major_locator(MaxNLocator(2))
            bar.ax.tick_params(labelsize=7)

    return figure


def attention_gallery(faces: FaceSet, weights: np.ndarray, indices: np.ndarray) -> Figure:
    """Faces, beside each its attention on one absolute scale: a column per module, a row per set
    and group.
    """
    columns = min(3, len(indices))
    rows = -(-len(indices) // columns)
    figure = Figure(figsize=(5.0 * columns + 0.8, 2.9 * rows + 0.5), layout="constrained")
    panels = _panels(figure, rows, 2 * columns, 2 * len(indices))

    for picture, heat, index in zip(panels[::2], panels[1::2], indices, strict=True):
        picture.set_axis_off()
        _show_face(picture, faces, index, f"face {index}")
        image = _heat_map(heat, weights[index])

    figure.colorbar(image, ax=panels, label="attention weight (absolute)", shrink=0.7)
    figure.suptitle(
        "Attention weights by face: a column per SepBN module (front to back), a row per set and "
        "group"
    )

    return figure


def attention_by_subset(weights: np.ndarray, attributes: np.ndarray) -> Figure:
    """Mean weight of faces with an attribute against all others, and Cohen's d, for each module,
    set and group.

    Grey cells have no effect to speak of: weights that are constant over the faces (``STILL``).
    """
    height = 3 * (0.4 * weights[0, 0].size + 0.4) + 1.6
    figure = Figure(figsize=(PAGE, height), layout="constrained")
    panels = figure.subplots(3, 2, sharex=True, sharey=True).ravel()
    moves = weights.std(axis=0) >= STILL  # (M, G, K)

    for axes, name, inside in zip(panels, ATTRIBUTES, attributes.T, strict=True):
        effect = np.where(moves, cohens_d(weights[inside], weights[~inside]), np.nan)
        image = _heat_map(axes, np.abs(effect))
        axes.set_title(f"{name}: {inside.sum():,} faces against {(~inside).sum():,}", fontsize=9)
        axes.label_outer()

        if 0 < inside.sum() < len(inside):
            means = weights[inside].mean(axis=0), weights[~inside].mean(axis=0)
            _write_effects(axes, *map(_heat_map_rows, (effect, *means)))
        else:
            centre = {"transform": axes.transAxes, "ha": "center", "va": "center"}
            axes.text(0.5, 0.5, "nothing to compare", **centre)

    label = "|d|: 0.2 small, 0.5 medium, 0.8 large"
    bar = figure.colorbar(
        image, ax=list(panels), orientation="horizontal", extend="max", shrink=0.6, aspect=40
    )
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=8)
    figure.suptitle(
        "Attention by subset. Cell: mean weight with the attribute | without, and Cohen's d\n"
        f"(grey: one weight for all faces, standard deviation below {STILL:g})",
        fontsize=10,
    )

    return figure


def _write_effects(axes: Axes, effect: np.ndarray, mean: np.ndarray, rest: np.ndarray) -> None:
    """Write both mean weights and Cohen's d into the cells of a heat map of ``effect``; one mean
    where the weight is constant.
    """
    for (row, column), d in np.ndenumerate(effect):
        words = f"{mean[row, column]:.2f}"
        words += "" if np.isnan(d) else f" | {rest[row, column]:.2f}\nd {d:+.2f}"
        colour = "white" if abs(d) < 0.6 else "black"
        axes.text(column, row, words, ha="center", va="center", fontsize=7, color=colour)


def set_usage(model: nn.Module, weights: np.ndarray) -> Figure:
    """Are all sets used, and are they different? Entropy, mean weights and relative distances,
    module by module.

    Args:
        weights: (N, M, G, K), the attention of every face.
    """
    modules, (groups, sets) = sepbn_modules(model), weights.shape[2:]
    figure = Figure(figsize=(13, 5), layout="constrained")
    by_entropy, by_set, by_distance = figure.subplots(1, 3)

    # (N, M, G)
    entropy = -(weights * np.log(np.maximum(weights, 1e-300))).sum(axis=3) / np.log(max(2, sets))
    low, middle, high = np.percentile(entropy, (5, 50, 95), axis=0)  # (M, G) each
    names = {f"group {g + 1}": (low[:, g], middle[:, g], high[:, g]) for g in range(groups)}
    _draw_ranges(by_entropy, names)
    _draw_use(by_set, weights.mean(axis=0))
    if sets > 1:
        _draw_ranges(by_distance, _distances(modules))

    by_entropy.set(ylim=(-0.04, 1.04), ylabel="entropy / log K: 0 one set alone, 1 all sets alike")
    by_entropy.set_title("Entropy of the attention\n(median, 5–95 % of the faces)", fontsize=11)
    by_set.set(ylim=(-0.04, 1.04), ylabel="attention weight, mean over faces")
    by_set.set_title("Use of the sets\n(grey: 1 / K)", fontsize=11)
    by_distance.set(ylabel="distance of two sets / their mean length")
    by_distance.set_ylim(bottom=-0.02)
    by_distance.set_title("Difference of the sets\n(mean and range over pairs)", fontsize=11)

    for axes in (by_entropy, by_set, by_distance):
        axes.set_xticks(np.arange(len(modules)), list(modules))
        axes.set_xlabel("SepBN module, front to back")
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.16))

    return figure


def _draw_ranges(axes: Axes, series: dict[str, Any]) -> None:
    """What is low, in the middle and high in every module, (M,) each, for several things."""
    for i, ((name, (low, middle, high)), style) in enumerate(
        zip(series.items(), _styles(len(series)), strict=False)
    ):
        at = np.arange(len(middle)) + 0.3 * ((i + 0.5) / len(series) - 0.5)
        reach, form = (middle - low, high - middle), {"marker": style["marker"], "capsize": 3}
        axes.errorbar(at, middle, reach, linestyle="", color=style["color"], label=name, **form)


def _draw_use(axes: Axes, weights: np.ndarray) -> None:
    """Mean weights (M, G, K) of every set, by module."""
    _, groups, sets = weights.shape
    for k, style in enumerate(_styles(sets)):
        for g in range(groups):
            style["marker"] = MARKERS[g % len(MARKERS)]
            axes.plot(weights[:, g, k], label=f"set {k + 1}, group {g + 1}", **style)

    axes.axhline(1 / sets, color="0.6", linewidth=1, zorder=0)


def _distances(modules: dict[str, SepBatchNorm2d]) -> dict[str, Any]:
    """Smallest, mean and largest relative distance of two sets, (M,) each."""
    found: dict[str, Any] = {}
    for name, parameter in {"scale γ": "weight", "shift β": "bias"}.items():
        sets = [getattr(m, parameter).detach().double().cpu().numpy() for m in modules.values()]
        pairs = np.stack([relative_distances(each) for each in sets])  # (M, pairs)
        found[name] = (pairs.min(axis=1), pairs.mean(axis=1), pairs.max(axis=1))

    return found


def _heat_map_rows(values: np.ndarray) -> np.ndarray:
    """(M, G, K) -> (K·G, M), set-major: set 1 group 1, set 1 group 2, set 2 group 1 ..."""
    return values.transpose(2, 1, 0).reshape(-1, values.shape[0])


def _heat_map(axes, values: np.ndarray) -> AxesImage:
    """Values (M, G, K) from 0 to 1, a column per module; grey where there is none."""
    colours = colormaps[COLOURS].with_extremes(bad="0.8")
    image = axes.imshow(_heat_map_rows(values), cmap=colours, vmin=0, vmax=1, aspect="auto")

    count, groups, sets = values.shape
    axes.set_xticks(range(count), range(1, count + 1), fontsize=8)
    rows = [f"set {k + 1}, gr. {g + 1}" for k in range(sets) for g in range(groups)]
    axes.set_yticks(range(sets * groups), rows, fontsize=7)
    axes.set_xlabel("SepBN module", fontsize=8)

    return image


def training_curve(rows: list[dict[str, Any]]) -> Figure:
    """Training loss, and test NME where there is any, by epoch.

    Args:
        rows: rows of the run's log; an epoch without a test NME has an empty one.
    """
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    loss = figure.add_subplot()
    epochs = [row["epoch"] + 1 for row in rows]
    handles = loss.plot(epochs, [row["loss"] for row in rows], color="black", label="training loss")
    loss.set(xlabel="epoch", ylabel="mean absolute error, crop pixels", yscale="log")
    tested = [
        (row["epoch"] + 1, row["test_nme_percent"]) for row in rows if row["test_nme_percent"] != ""
    ]

    if tested:
        nme = loss.twinx()
        handles += nme.plot(*zip(*tested, strict=True), "o--", color="tab:blue", label="test NME")
        nme.set_ylabel("test NME, %", color="tab:blue")

    loss.legend(handles=handles, loc="upper right")

    return figure
