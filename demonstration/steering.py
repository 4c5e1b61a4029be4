"""What if the attention were another one: landmarks and attention weights of a steered network."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dataset.crop import PatchFrame
from dataset.landmarks import LandmarkScheme
from models import SepBatchNorm2d
from prediction.predictor import LandmarkPredictor

LEARNT, UNIFORM = "as learnt", "uniform"
Choice = str | int  # LEARNT, UNIFORM, or the number of the only set, counted from 0


@dataclass(frozen=True)
class Steering:
    """temperature: of every module's attention, None: the learnt one; choices: one a module, none
    at all: as learnt.
    """

    temperature: float | None = None
    choices: tuple[Choice, ...] = ()


AS_LEARNT = Steering()


@dataclass(frozen=True)
class Answer:
    """landmarks: (N, P, 2) float32, image px; attention: the weights used in each of M SepBN
    modules, (N, G, K) float32 each, front to back.
    """

    landmarks: np.ndarray
    attention: tuple[np.ndarray, ...]


class SteeredAttention:
    """Stands in for a SepBN module's `attention`: what it gives can be chosen, and is kept.

    Attributes:
        choice: LEARNT, UNIFORM, or the number of the set that alone is used.
        given: the weights (N, G, K) of every call so far.
    """

    def __init__(self, layer: SepBatchNorm2d) -> None:
        self._learnt = layer.attention
        self.choice: Choice = LEARNT
        self.given: list[Tensor] = []

    def __call__(self, x: Tensor) -> Tensor:
        weights = self._learnt(x)
        if self.choice == UNIFORM:
            weights = torch.full_like(weights, 1 / weights.shape[2])
        elif self.choice != LEARNT:
            weights = torch.zeros_like(weights)
            weights[:, :, int(self.choice)] = 1

        self.given.append(weights.cpu())

        return weights


class SteeredPredictor(LandmarkPredictor):
    """A `LandmarkPredictor` whose attention can be looked at and chosen; its own calls stay as they
    are.

    Attributes:
        modules: names of the M SepBN modules, front to back; none in a network without SepBN.
        sets: K of the network, 0 without SepBN.
        temperature: the learnt one, None without SepBN.
    """

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        # of the predictor's own copy: the network that was handed over stays as it is
        found = {
            name: layer
            for name, layer in self._model.named_modules()
            if isinstance(layer, SepBatchNorm2d)
        }

        self.modules = tuple(name.split(".")[0] for name in found)
        self._layers = tuple(found.values())
        self._learnt_temperatures = [layer.temperature.item() for layer in self._layers]
        self._attention = tuple(SteeredAttention(layer) for layer in self._layers)

        for layer, attention in zip(self._layers, self._attention, strict=True):
            vars(layer)["attention"] = attention  # found before the method of the class

        self._lock = threading.Lock()  # the modules hold one choice at a time
        self.sets = self._layers[0].num_sets if found else 0
        self.temperature = self._learnt_temperatures[0] if found else None

    def answer(
        self, patches: np.ndarray, frames: Sequence[PatchFrame], steering: Steering = AS_LEARNT
    ) -> Answer:
        """Landmarks and attention weights of N faces that `cut` gave, and of where they lie."""
        choices = steering.choices or (LEARNT,) * len(self.modules)
        for choice in choices:
            if choice not in (LEARNT, UNIFORM, *range(self.sets)):
                raise ValueError(f"no such choice of {self.sets} sets: {choice!r}")

        with self._lock, self._steered(steering.temperature, choices):
            landmarks = self.predict_patches(patches, frames)
            given = [torch.cat(attention.given).float().numpy() for attention in self._attention]

        return Answer(landmarks, tuple(given))

    @contextmanager
    def _steered(self, temperature: float | None, choices: Sequence[Choice]) -> Iterator[None]:
        """The attention as chosen, and as learnt again afterwards."""
        temperatures = self._learnt_temperatures
        if temperature is not None:
            temperatures = [temperature] * len(self._layers)

        self._steer(temperatures, choices)
        try:
            yield
        finally:
            self._steer(self._learnt_temperatures, [LEARNT] * len(self._layers))

    def _steer(self, temperatures: Sequence[float], choices: Sequence[Choice]) -> None:
        modules = zip(self._layers, self._attention, temperatures, choices, strict=True)
        for layer, attention, temperature, choice in modules:
            layer.temperature.fill_(temperature)
            attention.choice, attention.given = choice, []


@dataclass(frozen=True)
class Shift:
    """How far P landmarks moved, image px; `contour` is the one with the largest mean shift."""

    mean: float
    largest: float
    contour: str


def measure_shift(before: np.ndarray, after: np.ndarray, scheme: LandmarkScheme) -> Shift:
    """The shift of one face's landmarks from `before` to `after`, (P, 2) image px each."""
    distances = np.linalg.norm(np.subtract(after, before, dtype=np.float64), axis=1)  # (P,)
    contour = max(scheme.contours, key=lambda contour: distances[list(contour.points)].mean())

    return Shift(float(distances.mean()), float(distances.max()), contour.name)
