"""What if the attention were another one: SepBN's weights, looked at and chosen."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models import SepBatchNorm2d
from models.folding import FoldedSepBN
from prediction.predictor import LandmarkPredictor

ATTENTION, ALIKE = "by attention", "all sets alike"


class SteeredPredictor(LandmarkPredictor):
    """A `LandmarkPredictor` whose attention is seen and chosen through `answer`, by one thread;
    `layers` are its SepBN modules by name, `temperature` that of training, `sets` is K.
    """

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.layers: dict[str, SepBatchNorm2d] = {}
        self.temperature, self.sets = 1.0, 0

        for name, folded in self._model.named_children():
            if isinstance(folded, FoldedSepBN):
                self.layers[name] = layer = folded.layer
                self.temperature, self.sets = layer.temperature.item(), layer.num_sets
                # an attribute is found before the method of the class
                vars(folded)["_attention"] = partial(self._attention, name, layer)

    def answer(
        self, image: np.ndarray, face: tuple[list[int], float], steering: Sequence[Any] = ()
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Landmarks (P, 2) float32, image px, and the weights (G, K) that each module used.

        Args:
            face: its box, and the angle in degrees that it is turned by.
            steering: nothing, or the temperature of all modules, what the weights are (ATTENTION,
                ALIKE, or the only set's number, counted from 0), and in which modules.
        """
        temperature, choice, names = steering or (self.temperature, ATTENTION, ())
        self._choices = dict.fromkeys(names, choice)
        self._used: dict[str, np.ndarray] = {}
        for layer in self.layers.values():
            layer.temperature.fill_(temperature)

        (landmarks,) = self(image, [face[0]], angles=[face[1]])

        return landmarks, self._used

    def _attention(self, name: str, layer: SepBatchNorm2d, x: Tensor) -> Tensor:
        weights, choice = layer.attention(x), self._choices.get(name, ATTENTION)
        if choice == ALIKE:
            weights = torch.full_like(weights, 1 / layer.num_sets)
        elif choice != ATTENTION:
            weights = torch.zeros_like(weights)
            weights[..., int(choice)] = 1

        self._used[name] = weights[0].float().cpu().numpy()

        return weights.flatten(1)
