"""What SepBN has learnt: mapping parameters and attention weights, as published, and whether they mean anything."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import nn

from dataset.annotations import ATTRIBUTES
from dataset.faces import FaceSet
from engine.evaluation import predict_landmarks
from engine.figures import COLOURS, LINES, MARKERS, attribute_names, fit_view, show_face
from models import SepBatchNorm2d


def sepbn_modules(model: nn.Module) -> dict[str, SepBatchNorm2d]:
    """The SepBN modules by name, front to back."""
    return {name: module for name, module in model.named_modules() if isinstance(module, SepBatchNorm2d)}


def attention_weights(
    model: nn.Module, faces: FaceSet, *, device: torch.device | str, batch_size: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    """Predictions (N, P, 2) crop px, and the attention of each face in each module, (N, M, G, K), sums over K are 1."""
    seen: list[list[torch.Tensor]] = []

    def collect(weights: list[torch.Tensor]):
        return lambda module, inputs: weights.append(module.attention(inputs[0]).float().cpu())

    hooks = []
    for module in sepbn_modules(model).values():
        seen.append([])
        hooks.append(module.register_forward_pre_hook(collect(seen[-1])))
    try:
        prediction = predict_landmarks(model, faces, device=device, batch_size=batch_size, progress=True)
    finally:
        for hook in hooks:
            hook.remove()
    return prediction, torch.stack([torch.cat(weights) for weights in seen], dim=1).double().numpy()


def cohens_d(inside: np.ndarray, outside: np.ndarray) -> np.ndarray:
    """Difference of two groups' means over axis 0 in pooled standard deviations; NaN without spread or below 2 rows."""
    a, b = len(inside), len(outside)
    if min(a, b) < 2:
        return np.full(inside.shape[1:], np.nan)
    pooled = ((a - 1) * inside.var(axis=0, ddof=1) + (b - 1) * outside.var(axis=0, ddof=1)) / (a + b - 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(pooled > 1e-18, (inside.mean(axis=0) - outside.mean(axis=0)) / np.sqrt(pooled), np.nan)


def relative_distances(sets: np.ndarray) -> np.ndarray:
    """Distance of every two of K sets (K, C) over the mean of their lengths, (K(K-1)/2,): 0 equal, 2 opposite."""
    first, second = np.triu_indices(len(sets), k=1)
    length = np.linalg.norm(sets, axis=1)
    distance = np.linalg.norm(sets[first] - sets[second], axis=1)
    scale = (length[first] + length[second]) / 2
    return np.divide(distance, scale, out=np.zeros_like(distance), where=scale > 0)


def mapping_parameters(model: nn.Module) -> Figure:
    """Scale (left of the line) and shift (right) of every module: a row per channel, a column per set."""
    modules = sepbn_modules(model)
    figure = Figure(figsize=(2.5 * len(modules), 4.8), layout="constrained")
    for axes, (name, module) in zip(figure.subplots(1, len(modules), squeeze=False)[0], modules.items(), strict=True):
        scale, shift = (values.detach().cpu().numpy().T for values in (module.weight, module.bias))  # (C, K)
        sets = scale.shape[1]
        image = axes.imshow(np.concatenate([scale, shift], axis=1), aspect="auto", cmap=COLOURS, interpolation="none")
        axes.axvline(sets - 0.5, color="white", linewidth=3)
        axes.set_xticks(range(2 * sets), [*(f"γ{k + 1}" for k in range(sets)), *(f"β{k + 1}" for k in range(sets))])
        axes.set(title=f"{name}: scale | shift", ylabel="channel" if axes.get_subplotspec().is_first_col() else "")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        figure.colorbar(image, ax=axes, orientation="horizontal", pad=0.02)
    figure.suptitle("Mapping parameters of the SepBN modules, front to back (a colour scale each)")
    return figure


def attention_gallery(faces: FaceSet, weights: np.ndarray, indices: np.ndarray) -> Figure:
    """Faces, beside each its attention on one absolute scale: a column per module, a row per set and group."""
    columns = min(3, len(indices))
    rows = -(-len(indices) // columns)
    figure = Figure(figsize=(5.0 * columns + 0.8, 2.9 * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, 2 * columns, squeeze=False).reshape(-1, 2)
    for picture, heat in panels[len(indices) :]:
        picture.set_axis_off()
        heat.set_axis_off()
    for (picture, heat), index in zip(panels, indices, strict=False):
        show_face(picture, faces, index)
        fit_view(picture)
        picture.set_axis_off()
        picture.set_title(f"face {index}\n{attribute_names(faces, index)}", fontsize=8)
        image = heat.imshow(_rows(weights[index]), cmap=COLOURS, vmin=0, vmax=1, aspect="auto")
        _label_heat_map(heat, weights.shape)
    figure.colorbar(image, ax=list(panels.ravel()), label="attention weight (absolute)", shrink=0.7)
    figure.suptitle("Attention weights by face: a column per SepBN module (front to back), a row per set and group")
    return figure


def attention_by_subset(weights: np.ndarray, attributes: np.ndarray) -> Figure:
    """Mean weight of faces with an attribute against all others, and Cohen's d, for each module, set and group."""
    shape = weights.shape
    figure = Figure(figsize=(2.6 * shape[1] + 2, 2 * (0.42 * shape[2] * shape[3] + 1.3) + 0.6), layout="constrained")
    panels = figure.subplots(2, 3).ravel()
    for axes, name, inside in zip(panels, ATTRIBUTES, attributes.T, strict=True):
        effect = _rows(cohens_d(weights[inside], weights[~inside]))
        image = axes.imshow(np.abs(effect), cmap=COLOURS, vmin=0, vmax=1, aspect="auto")
        axes.set_title(f"{name}: {inside.sum():,} faces against {(~inside).sum():,}", fontsize=10)
        _label_heat_map(axes, shape)
        if not 0 < inside.sum() < len(inside):
            axes.text(0.5, 0.5, "nothing to compare", transform=axes.transAxes, ha="center", va="center")
            continue
        mean, rest = _rows(weights[inside].mean(axis=0)), _rows(weights[~inside].mean(axis=0))
        for (row, column), d in np.ndenumerate(effect):
            words = f"{mean[row, column]:.2f} | {rest[row, column]:.2f}\n" + ("d –" if np.isnan(d) else f"d {d:+.2f}")
            dark = np.isfinite(d) and abs(d) < 0.6
            axes.text(column, row, words, ha="center", va="center", fontsize=7, color="white" if dark else "black")
    figure.colorbar(image, ax=list(panels), label="|d|: 0.2 small, 0.5 medium, 0.8 large", extend="max", shrink=0.7)
    figure.suptitle("Attention by subset. Cell: mean weight with the attribute | without, and Cohen's d")
    return figure


def set_usage(model: nn.Module, weights: np.ndarray) -> Figure:
    """Are all sets used, and are they different? Entropy, mean weights and relative distances, module by module."""
    modules = sepbn_modules(model)
    _, count, groups, sets = weights.shape
    at = np.arange(count)
    figure = Figure(figsize=(13, 5), layout="constrained")
    by_entropy, by_set, by_distance = figure.subplots(1, 3)
    colours = colormaps[COLOURS](np.linspace(0, 0.8, max(2, groups, sets)))
    entropy = -(weights * np.log(np.maximum(weights, 1e-300))).sum(axis=3) / np.log(max(2, sets))  # (N, M, G)
    for g in range(groups):
        marker = MARKERS[g % len(MARKERS)]
        low, middle, high = np.percentile(entropy[:, :, g], (5, 50, 95), axis=0)
        reach, spot = (middle - low, high - middle), at + 0.3 * ((g + 0.5) / groups - 0.5)
        by_entropy.errorbar(spot, middle, reach, fmt=marker, color=colours[g], capsize=3, label=f"group {g + 1}")
        for k in range(sets):
            style = {"color": colours[k], "linestyle": LINES[k % len(LINES)], "marker": marker}
            by_set.plot(at, weights[:, :, g, k].mean(axis=0), label=f"set {k + 1}, group {g + 1}", **style)
    by_set.axhline(1 / sets, color="0.6", linewidth=1, zorder=0)
    for i, (parameter, label) in enumerate({"weight": "scale γ", "bias": "shift β"}.items()):
        values = [getattr(module, parameter).detach().double().cpu().numpy() for module in modules.values()]
        pairs = np.stack([relative_distances(one) for one in values])  # (M, pairs)
        if sets > 1:
            middle = pairs.mean(axis=1)
            reach, spot = (middle - pairs.min(axis=1), pairs.max(axis=1) - middle), at + 0.1 * (i - 0.5)
            by_distance.errorbar(spot, middle, reach, fmt=("o-", "s--")[i], color=colours[-i], capsize=3, label=label)
    by_entropy.set(ylim=(-0.04, 1.04), ylabel="entropy / log K: 0 one set alone, 1 all sets alike")
    by_entropy.set_title("Entropy of the attention\n(median and 5–95 % of the faces)", fontsize=11)
    by_set.set(ylim=(-0.04, 1.04), ylabel="attention weight, mean over faces")
    by_set.set_title("Use of the sets\n(grey: 1 / K)", fontsize=11)
    by_distance.set(ylabel="distance of two sets / their mean length")
    by_distance.set_ylim(bottom=-0.02)
    by_distance.set_title("Difference of the sets\n(mean and range over pairs of sets)", fontsize=11)
    for axes in (by_entropy, by_set, by_distance):
        axes.set_xticks(at, modules)
        axes.set_xlabel("SepBN module, front to back")
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    return figure


def _rows(values: np.ndarray) -> np.ndarray:
    """(M, G, K) -> (K·G, M), set-major: set 1 group 1, set 1 group 2, set 2 group 1 ..."""
    return values.transpose(2, 1, 0).reshape(-1, values.shape[0])


def _label_heat_map(axes, shape: tuple[int, ...]) -> None:
    _, count, groups, sets = shape
    axes.set_xticks(range(count), range(1, count + 1), fontsize=8)
    rows = [f"set {k + 1}, gr. {g + 1}" for k in range(sets) for g in range(groups)]
    axes.set_yticks(range(sets * groups), rows, fontsize=7)
    axes.set_xlabel("SepBN module", fontsize=8)
