"""Who it is and what the face does: random identity and expression as vertices in head space."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from synthetic.head import Head, mix

_SYMMETRIC_UNITS = (
    "browDown", "browOuterUp", "cheekSquint", "eyeSquint", "mouthDimple", "mouthFrown",
    "mouthPress", "mouthSmile", "mouthStretch", "mouthUpperUp", "mouthLowerDown", "noseSneer",
)  # fmt: skip
_MIDDLE_UNITS = (
    "browInnerUp", "cheekPuff", "jawForward", "jawLeft", "mouthFunnel", "mouthLeft", "mouthPucker",
    "mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper",
)  # fmt: skip
_KINDS = {
    "rest": 0.26, "smile": 0.19, "laugh": 0.11, "shout": 0.11, "talk": 0.11, "surprise": 0.04,
    "frown": 0.06, "pucker": 0.04, "anything": 0.08,
}  # fmt: skip
_PAIRS = (*_SYMMETRIC_UNITS, "eyeWide")
_MOVES = {  # units in the order in which they are drawn, with the least and the largest amount
    "shout": (
        ("jawOpen", 0.5, 1.4), ("mouthStretch", 0, 0.8), ("noseSneer", 0, 0.8),
        ("mouthUpperUp", 0, 0.6),
    ),
    "talk": (("jawOpen", 0.05, 0.5), ("mouthLowerDown", 0, 0.6)),
    "surprise": (
        ("browInnerUp", 0.3, 1), ("browOuterUp", 0.3, 1), ("eyeWide", 0.2, 1), ("jawOpen", 0, 0.9),
    ),
    "frown": (
        ("browDown", 0.3, 1), ("mouthFrown", 0, 1), ("noseSneer", 0, 0.6), ("mouthPress", 0, 0.7),
    ),
    "pucker": (("mouthPucker", 0.3, 1), ("mouthFunnel", 0, 0.7)),
}  # fmt: skip


@dataclass(frozen=True)
class Person:
    """What stays the same when the face moves.

    vertices: (V, 3) in head space, resting; age: 0 (baby) to 3 (old); male: 0 to 1; ancestry:
    (African, Asian, Caucasian) shares, which shift the skin's tone as well.
    """

    vertices: np.ndarray
    age: float
    male: float
    ancestry: np.ndarray


def draw_person(head: Head, rng: np.random.Generator) -> Person:
    """A random identity: sex, age, ancestry, and everything else as a random mixture of the
    identity shapes."""
    male = float(np.clip(rng.normal(rng.integers(2), 0.12), 0, 1))

    ages_of_groups = [rng.uniform(0.3, 1.6), rng.uniform(1.6, 2.3), rng.uniform(2.3, 3.0)]
    age = float(rng.choice(ages_of_groups, p=[0.17, 0.5, 0.33]))
    lower = min(int(age), 2)
    ages = np.zeros(4, np.float32)
    ages[lower : lower + 2] = lower + 1 - age, age - lower
    ancestry = rng.dirichlet([0.6, 0.6, 0.8]).astype(np.float32)
    weights = np.clip(rng.normal(0, 1, len(head.identity)), -2.2, 2.2).astype(np.float32)
    vertices = head.base + mix(np.outer((1 - male, male), ages).ravel(), head.age_sex)
    vertices += mix(ancestry, head.ancestry) + mix(weights, head.identity)

    return Person(vertices.astype(np.float32), age, male, ancestry)


@dataclass(frozen=True)
class Expression:
    """offsets: (V, 3) to add to a person's vertices; gaze: (3,) unit direction of the eyes in head
    space; strong: whether the face departs clearly from rest (the list's expression attribute)."""

    offsets: np.ndarray
    gaze: np.ndarray
    strong: bool


class _Units:
    """Random amounts of expression shapes; they add up when one is drawn more than once."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.weights: dict[str, float] = {}

    def middle(self, unit: str, low: float, high: float) -> None:
        self.weights[unit] = self.weights.get(unit, 0) + self.rng.uniform(low, high)

    def both(self, unit: str, low: float, high: float) -> None:
        """The left and the right one, about equally strong."""
        amount = self.rng.uniform(low, high)
        for side in ("Left", "Right"):
            share = amount * self.rng.uniform(0.8, 1.2)
            self.weights[unit + side] = self.weights.get(unit + side, 0) + share


def draw_expression(head: Head, rng: np.random.Generator) -> Expression:
    """A random expression: one of a few common ones, plus a little of anything."""
    kind = rng.choice(list(_KINDS), p=list(_KINDS.values()))
    units = _Units(rng)

    if kind in ("smile", "laugh"):
        _smile(units, str(kind))
    elif kind == "anything":
        for unit in rng.choice(_MIDDLE_UNITS, 2, replace=False):
            units.middle(unit, 0.2, 0.8)
        units.both(str(rng.choice(_SYMMETRIC_UNITS)), 0.2, 0.9)
        units.middle("jawOpen", 0.0, 0.5)
    else:
        for unit, low, high in _MOVES.get(str(kind), ()):
            (units.both if unit in _PAIRS else units.middle)(unit, low, high)

    # Nobody is perfectly at rest, or symmetric.
    for unit in rng.choice(_SYMMETRIC_UNITS, 3, replace=False):
        for side in ("Left", "Right"):
            units.middle(unit + side, 0, 0.25)

    if rng.random() < 0.25:
        units.both("browOuterUp", 0.2, 0.9)
        units.middle("browInnerUp", 0.0, 0.9)
    elif rng.random() < 0.25:
        units.both("browDown", 0.2, 0.9)

    gaze = _look(units)
    weights = units.weights
    strong = weights.get("jawOpen", 0) > 0.55 or weights.get("mouthSmileLeft", 0) > 0.85
    strong = strong or kind in ("surprise", "frown", "pucker")

    return Expression(head.expression(weights), gaze, bool(strong))


def _smile(units: _Units, kind: str) -> None:
    """A smile, with the mouth open or not, or a laugh."""
    units.both("mouthSmile", 0.3, 1.0)
    units.both("cheekSquint", 0.0, 0.8)
    units.both("mouthUpperUp", 0.0, 0.6)
    units.both("mouthLowerDown", 0.0, 0.5)
    if units.rng.random() < 0.4:
        units.both("mouthStretch", 0.0, 0.8)

    if kind == "laugh":
        units.middle("jawOpen", 0.2, 0.9)
    elif units.rng.random() < 0.6:  # shows teeth, as most smiles in pictures do
        units.middle("jawOpen", 0.05, 0.25)


def _look(units: _Units) -> np.ndarray:
    """Lids and gaze, which depend on each other: the (3,) unit direction of the eyes."""
    rng, weights = units.rng, units.weights
    pitch = float(np.clip(rng.normal(-0.05, 0.18), -0.5, 0.4))
    lids = [0.0, rng.uniform(0, 0.4), rng.uniform(0.5, 0.85), 1.0]
    lid = float(rng.choice(lids, p=[0.57, 0.31, 0.05, 0.07]))

    if rng.random() < 0.02:  # a wink
        weights["eyeBlinkLeft"], weights["eyeBlinkRight"] = lid, 0.0
    else:
        units.both("eyeBlink", lid, lid)
        for side in ("Left", "Right"):
            weights[f"eyeBlink{side}"] = min(weights[f"eyeBlink{side}"], 1)

    if lid < 0.4:
        units.both("eyeWide", 0.0, 0.9)
    if pitch < 0 and lid < 0.5:
        units.both("eyeLookDown", -2 * pitch, -2 * pitch)

    yaw = float(np.clip(rng.normal(0, 0.25), -0.6, 0.6))
    gaze = [np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)]

    return np.float32(gaze)
