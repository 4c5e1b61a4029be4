"""What the page shows of an answer: the face, how far its landmarks moved, the weights."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np

from dataset.landmarks import LandmarkScheme
from dataset.views import MOST_VIEWS, is_doubtful
from prediction.outputs import draw_landmarks

SIDE = 720  # px of a face close up


def draw_face(
    image: np.ndarray, box: list[int], after: np.ndarray, before: np.ndarray, scheme: LandmarkScheme
) -> np.ndarray:
    """A face close up, RGB, with its landmarks as predict.py draws them, and white lines from where
    they were before; both (P, 2) in px of the image (H, W, 3), uint8, BGR.
    """
    left, top, right, bottom = box
    margin = 1 + max(right - left, bottom - top) // 4
    x, y = max(0, left - margin), max(0, top - margin)
    part = image[y : bottom + margin, x : right + margin]
    scale = SIDE / max(part.shape[:2])
    smooth = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    part = cv2.resize(part, None, fx=scale, fy=scale, interpolation=smooth)

    # pixel centres are whole numbers
    starts, ends = ((points - (x, y) + 0.5) * scale - 0.5 for points in (before, after))
    for line in np.rint(16 * np.stack([starts, ends], 1)).astype(int):  # of (P, 2, 2)
        cv2.polylines(part, [line], False, (255, 255, 255), 2, cv2.LINE_AA, 4)

    draw_landmarks(part, ends, scheme)

    return part[..., ::-1]


def describe_shift(before: np.ndarray, after: np.ndarray, scheme: LandmarkScheme) -> str:
    """How far one face's landmarks moved, (P, 2) image px each."""
    distances = np.linalg.norm(np.subtract(after, before, dtype=np.float64), axis=1)  # (P,)
    if distances.max() < 0.005:
        return "The landmarks have **not moved**."

    return (
        f"The landmarks moved by **{distances.mean():.2f} pixels** on average, at most "
        f"{distances.max():.2f}; most in the {_most(distances, scheme)}. White lines: from where "
        "they were."
    )


def describe_spread(spread: np.ndarray, box: list[int], scheme: LandmarkScheme) -> str:
    """How sure the network is of one face, by its views' spread (P,), image px."""
    doubt = "**Doubtful**: views differ so much where there is no face. "

    return (doubt if is_doubtful(spread, box) else "") + (
        f"Seen in {MOST_VIEWS} slightly different crops, they spread by **{spread.mean():.2f} "
        f"pixels**; most in the {_most(spread, scheme)}."
    )


def _most(values: np.ndarray, scheme: LandmarkScheme) -> str:
    """The name of the contour whose values, of (P,), are largest."""
    return max(scheme.contours, key=lambda contour: values[list(contour.points)].mean()).name


def attention_html(used: Mapping[str, np.ndarray], trained: Mapping[str, np.ndarray]) -> str:
    """A bar for each module and group, cut by the weights (G, K) used; a thin one as trained."""
    rows, keys = [], ""
    for name, weights in used.items():
        keys = "".join(f"<b>set {k + 1}</b>" for k in range(weights.shape[1]))
        for group, (now, before) in enumerate(zip(weights, trained[name], strict=True), 1):
            label = f"{name}, group {group}" if len(weights) > 1 else name
            rows.append(f"<dt>{label}</dt><dd>{_bar(now)}{_bar(before)}</dd>")

    return f"<p>{keys} thin bars: as trained</p><dl>{''.join(rows)}</dl>" if rows else ""


def _bar(weights: np.ndarray) -> str:
    """Where there is room, a part has its weight written on it."""
    part = '<span style="flex-grow:{:.4f}">{}</span>'
    return f"<div>{''.join(part.format(w, f'{w:.2f}' if w > 0.14 else '') for w in weights)}</div>"
