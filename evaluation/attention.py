"""What SepBN has learnt: mapping parameters and attention weights, as published, and whether they
mean anything.
"""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import torch
from torch import nn

from dataset.faces import FaceSet
from evaluation.evaluate import predict_shown
from models import SepBatchNorm2d


def sepbn_modules(model: nn.Module) -> dict[str, SepBatchNorm2d]:
    """The SepBN modules by name, front to back."""
    return {name: m for name, m in model.named_modules() if isinstance(m, SepBatchNorm2d)}


def attention_weights(
    model: nn.Module, faces: FaceSet, *, device: torch.device | str, batch_size: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    """Predictions (N, P, 2) crop px, and the attention of each face in each module, (N, M, G, K),
    sums over K are 1.
    """
    modules = sepbn_modules(model).values()
    seen: list[list[torch.Tensor]] = [[] for _ in modules]

    def collect(weights: list[torch.Tensor]):
        return lambda module, inputs: weights.append(module.attention(inputs[0]).float().cpu())

    with ExitStack() as hooks:
        for module, weights in zip(modules, seen, strict=True):
            hooks.enter_context(module.register_forward_pre_hook(collect(weights)))

        prediction = predict_shown(model, faces, device=device, batch_size=batch_size)

    return prediction, torch.stack([torch.cat(weights) for weights in seen], dim=1).double().numpy()


def cohens_d(inside: np.ndarray, outside: np.ndarray) -> np.ndarray:
    """Difference of two groups' means over axis 0 in pooled standard deviations; NaN without spread
    or below 2 rows.
    """
    a, b = len(inside), len(outside)
    if min(a, b) < 2:
        return np.full(inside.shape[1:], np.nan)

    squares = (a - 1) * inside.var(axis=0, ddof=1) + (b - 1) * outside.var(axis=0, ddof=1)
    pooled = squares / (a + b - 2)
    distance = inside.mean(axis=0) - outside.mean(axis=0)
    nothing = np.full_like(distance, np.nan)

    return np.divide(distance, np.sqrt(pooled), out=nothing, where=pooled > 1e-18)


def relative_distances(sets: np.ndarray) -> np.ndarray:
    """Distance of every two of K sets (K, C) over the mean of their lengths, (K(K-1)/2,): 0 equal,
    2 opposite.
    """
    first, second = np.triu_indices(len(sets), k=1)
    length = np.linalg.norm(sets, axis=1)
    distance = np.linalg.norm(sets[first] - sets[second], axis=1)
    scale = (length[first] + length[second]) / 2

    return np.divide(distance, scale, out=np.zeros_like(distance), where=scale > 0)
