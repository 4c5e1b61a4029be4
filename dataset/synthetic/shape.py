"""Who it is and what the face does: random identity and expression as vertices in head space."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dataset.synthetic.head import Head, mix

_SYMMETRIC_UNITS = ("browDown", "browOuterUp", "cheekSquint", "eyeSquint", "mouthDimple", "mouthFrown", "mouthPress",
                    "mouthSmile", "mouthStretch", "mouthUpperUp", "mouthLowerDown", "noseSneer")  # fmt: skip
_MIDDLE_UNITS = ("browInnerUp", "cheekPuff", "jawForward", "jawLeft", "mouthFunnel", "mouthLeft", "mouthPucker",
                 "mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper")  # fmt: skip


@dataclass(frozen=True)
class Person:
    """What stays the same when the face moves.

    vertices: (V, 3) in head space, resting; age: 0 (baby) to 3 (old); male: 0 to 1; ancestry: (African, Asian,
    Caucasian) shares, which shift the skin's tone as well.
    """

    vertices: np.ndarray
    age: float
    male: float
    ancestry: np.ndarray


def draw_person(head: Head, rng: np.random.Generator) -> Person:
    """A random identity: sex, age, ancestry, and everything else as a random mixture of the identity shapes."""
    male = float(np.clip(rng.normal(rng.integers(2), 0.12), 0, 1))
    age = float(rng.choice([rng.uniform(0.3, 1.6), rng.uniform(1.6, 2.3), rng.uniform(2.3, 3.0)], p=[0.17, 0.5, 0.33]))
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
    """offsets: (V, 3) to add to a person's vertices; gaze: (3,) unit direction of the eyes in head space;
    strong: whether the face departs clearly from rest (the list's expression attribute)."""

    offsets: np.ndarray
    gaze: np.ndarray
    strong: bool


def draw_expression(head: Head, rng: np.random.Generator) -> Expression:
    """A random expression: one of a few common ones, plus a little of anything."""
    kind = rng.choice(["rest", "smile", "laugh", "shout", "talk", "surprise", "frown", "pucker", "anything"],
                      p=[0.26, 0.19, 0.11, 0.11, 0.11, 0.04, 0.06, 0.04, 0.08])  # fmt: skip
    weights: dict[str, float] = {}

    def both(unit: str, low: float, high: float) -> None:
        amount = rng.uniform(low, high)
        for side in ("Left", "Right"):
            weights[unit + side] = weights.get(unit + side, 0) + amount * rng.uniform(0.8, 1.2)

    def middle(unit: str, low: float, high: float) -> None:
        weights[unit] = weights.get(unit, 0) + rng.uniform(low, high)

    if kind in ("smile", "laugh"):
        both("mouthSmile", 0.3, 1.0)
        both("cheekSquint", 0.0, 0.8)
        both("mouthUpperUp", 0.0, 0.6)
        both("mouthLowerDown", 0.0, 0.5)
        if rng.random() < 0.4:
            both("mouthStretch", 0.0, 0.8)
    if kind == "smile" and rng.random() < 0.6:  # shows teeth, as most smiles in pictures do
        middle("jawOpen", 0.05, 0.25)
    if kind == "laugh":
        middle("jawOpen", 0.2, 0.9)
    elif kind == "shout":
        middle("jawOpen", 0.5, 1.4)
        both("mouthStretch", 0.0, 0.8)
        both("noseSneer", 0.0, 0.8)
        both("mouthUpperUp", 0.0, 0.6)
    elif kind == "talk":
        middle("jawOpen", 0.05, 0.5)
        both("mouthLowerDown", 0.0, 0.6)
    elif kind == "surprise":
        middle("browInnerUp", 0.3, 1.0)
        both("browOuterUp", 0.3, 1.0)
        both("eyeWide", 0.2, 1.0)
        middle("jawOpen", 0.0, 0.9)
    elif kind == "frown":
        both("browDown", 0.3, 1.0)
        both("mouthFrown", 0.0, 1.0)
        both("noseSneer", 0.0, 0.6)
        both("mouthPress", 0.0, 0.7)
    elif kind == "pucker":
        middle("mouthPucker", 0.3, 1.0)
        middle("mouthFunnel", 0.0, 0.7)
    elif kind == "anything":
        for unit in rng.choice(_MIDDLE_UNITS, 2, replace=False):
            middle(unit, 0.2, 0.8)
        both(str(rng.choice(_SYMMETRIC_UNITS)), 0.2, 0.9)
        middle("jawOpen", 0.0, 0.5)
    for unit in rng.choice(_SYMMETRIC_UNITS, 3, replace=False):  # nobody is perfectly at rest, or symmetric
        for side in ("Left", "Right"):
            weights[unit + side] = weights.get(unit + side, 0) + rng.uniform(0, 0.25)
    if rng.random() < 0.25:
        both("browOuterUp", 0.2, 0.9)
        middle("browInnerUp", 0.0, 0.9)
    elif rng.random() < 0.25:
        both("browDown", 0.2, 0.9)

    gaze_pitch = float(np.clip(rng.normal(-0.05, 0.18), -0.5, 0.4))
    lid = float(rng.choice([0.0, rng.uniform(0, 0.4), rng.uniform(0.5, 0.85), 1.0], p=[0.57, 0.31, 0.05, 0.07]))
    if rng.random() < 0.02:
        weights["eyeBlinkLeft"], weights["eyeBlinkRight"] = lid, 0.0
    else:
        both("eyeBlink", lid, lid)
        weights["eyeBlinkLeft"], weights["eyeBlinkRight"] = (min(weights[f"eyeBlink{s}"], 1) for s in ("Left", "Right"))
    if lid < 0.4:
        both("eyeWide", 0.0, 0.9)
    if gaze_pitch < 0 and lid < 0.5:
        both("eyeLookDown", -2 * gaze_pitch, -2 * gaze_pitch)
    gaze_yaw = float(np.clip(rng.normal(0, 0.25), -0.6, 0.6))
    gaze = [np.sin(gaze_yaw) * np.cos(gaze_pitch), np.sin(gaze_pitch), np.cos(gaze_yaw) * np.cos(gaze_pitch)]
    strong = weights.get("jawOpen", 0) > 0.55 or weights.get("mouthSmileLeft", 0) > 0.85
    strong = strong or kind in ("surprise", "frown", "pucker")
    return Expression(head.expression(weights), np.float32(gaze), bool(strong))
