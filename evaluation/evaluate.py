"""A model over a set of faces: predictions, per-face errors, subsets, and their uncertainty."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from dataset.annotations import ATTRIBUTES, list_path
from dataset.crop import CROP_OFFSET
from dataset.faces import FaceSet, central_crops, read_landmarks
from dataset.landmarks import COMMON_60, IBUG_68, SCHEMES, WFLW_98, points_within, scheme_of_network
from dataset.views import make_views, mean_and_spread
from evaluation.cost import measure_speed, model_cost
from models.checkpoint import LoadedModel, load_model
from utils.files import UserError
from utils.metrics import STRICTER, auc, failure_rate, nme, normalisers
from utils.progress import progress

RESAMPLES = 10_000  # of the bootstrap
Summary = dict[str, dict[str, float]]  # numbers of every subset


def require_same_points(
    loaded: LoadedModel, faces: FaceSet, *, or_common_ones: bool = False
) -> None:
    """Refuse a model that was trained for other landmarks than the data has, unless the 60 common
    ones of WFLW's 98 and iBUG's 68 are enough.
    """
    scheme = scheme_of_network(loaded.config, loaded.path)
    common = (scheme, faces.scheme) == (WFLW_98, IBUG_68)
    if points_within(scheme, faces.scheme) is not None or (or_common_ones and common):
        return

    advice = "evaluate it on data of its own scheme"
    if common:
        advice = "test.py CHECKPOINT, with the file named, evaluates it on 60 common points"

    raise UserError(
        f"{loaded.path}: the model predicts {scheme.num_points} landmarks ({scheme.name}), the "
        f"data has {faces.scheme.num_points} ({faces.scheme.name}); {advice}"
    )


def on_common_points(models: dict[str, LoadedModel], faces: FaceSet) -> FaceSet:
    """Faces reduced to the landmarks that all models share with them: as they are where all have
    the same, the 60 common points where a model with WFLW's 98 is among them and the faces have
    iBUG's 68.
    """
    schemes = [scheme_of_network(model.config, model.path) for model in models.values()]
    if all(points_within(scheme, faces.scheme) for scheme in schemes):
        return faces

    landmarks = faces.landmarks[:, list(COMMON_60.same_as[faces.scheme.name])]

    return replace(faces, landmarks=landmarks, scheme=COMMON_60)


@torch.no_grad()
def predict_landmarks(
    model: nn.Module,
    faces: FaceSet,
    *,
    device: torch.device | str,
    batch_size: int = 64,
    crops: Callable[[torch.Tensor, slice], torch.Tensor] | None = None,
    bar: tqdm | None = None,
) -> np.ndarray:
    """Landmarks of every face, in evaluation mode (the model's own mode is restored afterwards).

    Args:
        model: is moved to ``device``, the faces batch by batch.
        faces: N of them.
        device: where to compute.
        batch_size: faces at once.
        crops: (patches on the device, their rows) -> the network's input; None: the central crops.
        bar: shows the progress.

    Returns:
        (N, P, 2) float32 in crop pixels, of the 60 common points where the faces have these. Not
        clipped: landmarks outside the 128x128 crop are legitimate.
    """
    training = model.training
    model = model.to(device).eval()
    output = []

    try:
        for start in range(0, len(faces), batch_size):
            rows = slice(start, start + batch_size)
            patches = faces.patches[rows].to(device)
            seen = central_crops(patches) if crops is None else crops(patches, rows)
            points = model(seen).float().cpu()
            output.append(points.unflatten(1, (-1, 2)))  # (B, 2P) -> (B, P, 2)
            if bar is not None:
                bar.update(len(points))
    finally:
        model.train(training)

    prediction = torch.cat(output).numpy()
    if faces.scheme != COMMON_60:
        return prediction

    return prediction[:, list(COMMON_60.same_as[SCHEMES[prediction.shape[1]].name])]


def predict_shown(
    model: nn.Module, faces: FaceSet, *, device: torch.device | str, batch_size: int = 64
) -> np.ndarray:
    """:func:`predict_landmarks` under a progress bar."""
    with progress(total=len(faces), desc="predict", unit="face") as bar:
        return predict_landmarks(model, faces, device=device, batch_size=batch_size, bar=bar)


def face_errors(model: nn.Module, faces: FaceSet, *, device: torch.device | str) -> np.ndarray:
    """NME of every face, (N,) float64 fractions of the inter-ocular distance."""
    return errors_of(predict_landmarks(model, faces, device=device), faces)


def errors_of(prediction: np.ndarray, faces: FaceSet) -> np.ndarray:
    """The same of landmarks (N, P, 2), crop px, that were predicted."""
    return nme(prediction, true_landmarks(faces), faces.scheme.outer_eyes)


def subsets(faces: FaceSet) -> dict[str, np.ndarray]:
    """Name -> (N,) mask of the faces: ``full`` and one subset per attribute (which may be
    empty).
    """
    masks = {"full": np.ones(len(faces), dtype=bool)}
    return masks | {name: faces.attributes[:, i] for i, name in enumerate(ATTRIBUTES)}


def summarize(errors: np.ndarray, masks: dict[str, np.ndarray]) -> Summary:
    """Per subset: number of faces, NME and FR@0.1 in percent, AUC@0.1 in 0..1, FR and AUC at 0.08
    too; NaN where a subset is empty.
    """

    def row(chosen: np.ndarray) -> dict[str, float]:
        return {
            "faces": int(chosen.size),
            "nme_percent": _mean_percent(chosen),
            "fr_percent": 100 * failure_rate(chosen),
            "auc": auc(chosen),
            f"fr_percent_at_{STRICTER:g}": 100 * failure_rate(chosen, STRICTER),
            f"auc_at_{STRICTER:g}": auc(chosen, STRICTER),
        }

    return {name: row(errors[mask]) for name, mask in masks.items()}


def other_conventions(errors: np.ndarray, faces: FaceSet) -> Summary:
    """Per subset: the mean of errors (N,) as other conventions normalise them, in percent."""
    scheme = faces.scheme
    by = normalisers(true_landmarks(faces), scheme.outer_eyes, scheme.pupils)
    interocular = by.pop("interocular")

    with np.errstate(divide="ignore"):  # two pupils in one place
        nmes = {f"nme_percent_{name}": errors * interocular / by[name] for name in by}

    return {
        subset: {name: _mean_percent(values[mask]) for name, values in nmes.items()}
        for subset, mask in subsets(faces).items()
    }


def _mean_percent(values: np.ndarray) -> float:
    return 100 * float(values.mean()) if values.size else float("nan")


def bootstrap_means(errors: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Mean error of every model over the same faces drawn with replacement.

    All models see the same draws, so differences between rows are *paired*: what makes a face hard
    cancels out.

    Args:
        errors: (M, N), one row a model.

    Returns:
        (M, resamples) float64.
    """
    # (M, N) -> (N, M): one gather fetches all models
    errors = np.ascontiguousarray(np.asarray(errors, np.float64).T)
    rng = np.random.default_rng(seed)
    chunk = max(1, 2_000_000 // errors.size)
    means = []

    for start in range(0, resamples, chunk):
        draws = rng.integers(0, len(errors), size=(min(chunk, resamples - start), len(errors)))
        means.append(errors[draws].mean(axis=1))  # (chunk, N, M) -> (chunk, M)

    return np.concatenate(means).T


def paired_difference(means: np.ndarray, errors: np.ndarray) -> dict[str, float]:
    """Difference of two models' mean errors with its 95 % percentile interval.

    Args:
        means: (2, resamples) of :func:`bootstrap_means`.
        errors: (2, N) per-face errors.

    Returns:
        ``difference`` (second - first: negative where the second is better), ``low``, ``high``, in
        the errors' unit.
    """
    low, high = np.percentile(means[1] - means[0], (2.5, 97.5))
    difference = float(np.mean(errors[1] - errors[0]))

    return {"difference": difference, "low": float(low), "high": float(high)}


def spread(count: int, wanted: int) -> np.ndarray:
    """At most ``wanted`` row indices, evenly spaced over ``count`` rows."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).round().astype(int))


def true_landmarks(faces: FaceSet) -> np.ndarray:
    """The annotated landmarks, (N, P, 2) float64 crop px."""
    return faces.crop_landmarks().double().cpu().numpy()


@dataclass(frozen=True)
class Evaluation:
    """One model on one set of faces."""

    name: str
    loaded: LoadedModel
    prediction: np.ndarray  # (N, P, 2) crop px
    errors: np.ndarray  # (N,) NME, fractions
    summary: Summary
    cost: dict[str, Any]  # parameters, multiply-accumulates, latency, throughput


def find_checkpoints(folder: Path) -> list[Path]:
    """Every run's ``final.pt`` (``last.pt`` where training has not finished), the networks that
    come with the code (``*.pt``), and every ``.pth`` below ``folder``.
    """
    runs = {
        path.parent: path for name in ("last.pt", "final.pt") for path in folder.glob(f"*/{name}")
    }
    found = [runs[run] for run in sorted(runs)]

    return [*found, *sorted(folder.glob("*.pt")), *sorted(folder.rglob("*.pth"))]


def load_models(paths: list[Path], faces: FaceSet, *, asked_for: bool) -> dict[str, LoadedModel]:
    """The models by distinct names; that of a run that has not finished says so.

    A file the user ``asked_for`` must fit the data, or share the 60 common points with it; one that
    was merely found and does not fit is left out with a warning.
    """
    models = []

    for path in dict.fromkeys(paths):
        try:
            loaded = load_model(path)
            require_same_points(loaded, faces, or_common_ones=asked_for)
            models.append(loaded)
        except UserError as error:
            if asked_for:
                raise

            print(f"warning: left out: {error}", file=sys.stderr)

    if not models:
        raise UserError(
            "no checkpoint in checkpoints/ that fits this data: train one with python "
            "trainBaseline.py, put a .pth there, or name a file: python test.py CHECKPOINT"
        )

    counts = Counter(model.name for model in models)

    def distinct(model: LoadedModel) -> str:
        name = model.name if counts[model.name] == 1 else str(model.path)
        return f"{name} (unfinished)" if model.path.name == "last.pt" else name

    return {distinct(model): model for model in models}


def evaluate_all(
    models: dict[str, LoadedModel], faces: FaceSet, *, device: torch.device, batch_size: int
) -> list[Evaluation]:
    """Predict and measure every model, then time all of them in turn."""
    results = []

    for name, loaded in models.items():
        prediction = predict_shown(loaded.model, faces, device=device, batch_size=batch_size)
        errors = errors_of(prediction, faces)
        summary = summarize(errors, subsets(faces))
        for subset, more in other_conventions(errors, faces).items():
            summary[subset] |= more

        cost = model_cost(loaded.model, device)
        results.append(Evaluation(name, loaded, prediction, errors, summary, cost))

    speeds = measure_speed([result.loaded.model for result in results], device)
    for result, speed in zip(results, speeds, strict=True):
        result.cost.update(speed)

    return results


def with_views(
    loaded: LoadedModel, faces: FaceSet, count: int, *, device: torch.device, batch_size: int
) -> Summary:
    """Summary of a model's mean over ``count`` views of each face; not the published protocol."""
    views = make_views(count, released_geometry=loaded.config["released_geometry"])
    run: dict[str, Any] = {"device": device, "batch_size": max(1, batch_size // count)}
    run |= {"crops": lambda patches, rows: views.crops(patches)}
    predicted = predict_landmarks(loaded.model, faces, **run)

    # (N · V, P, 2) -> (N, V, P, 2), V views
    each = predicted.reshape(len(faces), count, *predicted.shape[1:]).astype(np.float64)
    mean, _ = mean_and_spread(views.back(each, faces.scheme.mirror))

    return summarize(errors_of(mean, faces), subsets(faces))


def mean_shape_summary(data: Path, faces: FaceSet, *, limit: int | None = None) -> Summary | None:
    """Summary of always answering with the mean shape of the training set, or of its first
    ``limit`` faces; None without a training list.
    """
    source = list_path(data, "train")
    if not source.is_file():
        return None

    landmarks, _, scheme = read_landmarks(data, "train", faces.meta)
    points = points_within(scheme, faces.scheme)
    if points is None:
        raise UserError(f"{source}: its landmarks are not those of the test list; prepare again")

    # (N, P, 2) patch px -> (P, 2) crop px
    mean = landmarks[:limit, list(points)].mean(axis=0) - CROP_OFFSET
    errors = errors_of(np.broadcast_to(mean, faces.landmarks.shape), faces)

    return summarize(errors, subsets(faces))


def differences(
    evaluations: list[Evaluation], masks: dict[str, np.ndarray]
) -> list[dict[str, Any]]:
    """NME difference (percentage points) of every two models with its paired 95 % interval, per
    subset with faces.
    """
    errors = 100 * np.stack([e.errors for e in evaluations])  # (M, N)
    means = {
        subset: bootstrap_means(errors[:, mask]) for subset, mask in masks.items() if mask.any()
    }

    return [
        {
            "first": evaluations[a].name,
            "second": evaluations[b].name,
            "subsets": {
                subset: paired_difference(sampled[[a, b]], errors[[a, b]][:, masks[subset]])
                for subset, sampled in means.items()
            },
        }
        for a, b in combinations(range(len(errors)), 2)
    ]
