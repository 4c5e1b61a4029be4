"""What a visitor takes home, made as `predict.py` makes it, but in memory."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dataset.landmarks import LandmarkScheme
from demonstration.scene import Scene
from demonstration.steering import LEARNT, Answer, Choice, SteeredPredictor, Steering
from prediction.outputs import draw_faces, write_jpeg, write_pts


def overlay_jpeg(scene: Scene, landmarks: np.ndarray, scheme: LandmarkScheme) -> bytes:
    """The whole picture with the landmarks (N, P, 2) of its faces and their boxes."""
    overlay = draw_faces(scene.image, landmarks, scheme, boxes=scene.boxes)
    return _written(lambda path: write_jpeg(path, overlay))


def pts_text(points: np.ndarray) -> bytes:
    """One face (P, 2) as iBUG's tools read it: pixels counted from 1."""
    return _written(lambda path: write_pts(path, points))


def landmarks_json(
    scene: Scene, predictor: SteeredPredictor, answer: Answer, steering: Steering
) -> bytes:
    """All faces as in predict.py's landmarks.json, with the attention that was used."""
    scores: Sequence[float | None] = scene.scores or [None] * len(scene.boxes)
    faces = [
        {
            "box": box,
            "score": score,
            "landmarks": answer.landmarks[i].astype(float).round(4).tolist(),
            "attention": {
                name: weights[i].astype(float).round(6).tolist()
                for name, weights in zip(predictor.modules, answer.attention, strict=True)
            },
        }
        for i, (box, score) in enumerate(zip(scene.boxes, scores, strict=True))
    ]

    height, width = scene.image.shape[:2]
    entry = {"file": scene.name, "width": width, "height": height, "faces": faces}
    content = {
        "format": 1,
        "scheme": predictor.scheme.name,
        "checkpoint": predictor.name,
        "arm": predictor.config["arm"],
        "pixels": "x, y; integers are pixel centres, 0, 0 is the upper left; boxes have "
        "inclusive edges",
        "steering": _describe(predictor, steering),
        "files": [entry],
    }

    return json.dumps(content).encode()


def _describe(predictor: SteeredPredictor, steering: Steering) -> dict[str, Any]:
    def words(choice: Choice) -> str:
        return f"only set {choice + 1}" if isinstance(choice, int) else choice

    choices = steering.choices or (LEARNT,) * len(predictor.modules)
    temperature = steering.temperature

    return {
        "temperature": predictor.temperature if temperature is None else temperature,
        "modules": dict(zip(predictor.modules, map(words, choices), strict=True)),
    }


def _written(write: Callable[[Path], None]) -> bytes:
    """What a function writes into a file, which is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="sepbn-") as folder:
        path = Path(folder) / "file"
        write(path)

        return path.read_bytes()
