"""Metrics against slow references that spell the definitions out, and against cases done by
hand.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from utils.files import UserError
from utils.metrics import auc, failure_rate, nme, normalisers, point_errors

EYES = (0, 2)


def slow_nme(prediction, target, eyes):
    """The definition, one face and one point at a time."""
    result = []
    for p, g in zip(prediction.tolist(), target.tolist(), strict=True):
        normaliser = math.dist(g[eyes[0]], g[eyes[1]])
        result.append(
            math.fsum(math.dist(a, b) / normaliser for a, b in zip(p, g, strict=True)) / len(g)
        )

    return result


def slow_auc(errors, threshold):
    """Area under the empirical cumulative error curve, rectangle by rectangle between its jumps."""
    edges = sorted({0.0, threshold, *(e for e in errors if e < threshold)})
    area = 0.0
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        area += (high - low) * sum(e <= low for e in errors) / len(errors)
    return area / threshold


@pytest.mark.parametrize("num_points", [5, 68, 98])
def test_nme_follows_its_definition(num_points):
    random = np.random.default_rng(num_points)
    target = random.uniform(-20, 150, (17, num_points, 2))
    prediction = target + random.normal(0, 5, target.shape)
    assert nme(prediction, target, EYES) == pytest.approx(
        slow_nme(prediction, target, EYES), rel=1e-12
    )
    assert point_errors(prediction, target, EYES).shape == (17, num_points)


def test_nme_by_hand():
    target = np.array([[[0, 0], [10, 5], [20, 0]]])  # inter-ocular distance 20
    prediction = target + np.array([[[3, 4], [0, 0], [0, -1]]])  # errors 5, 0, 1
    assert nme(prediction, target, EYES) == pytest.approx([6 / 3 / 20], rel=1e-15)
    assert nme(target, target, EYES).tolist() == [0.0]


def test_other_normalisers_by_hand():
    target = np.array([[[0, 0], [10, 5], [20, 0], [4, 0], [12, 6], [16, 6]]])
    found = normalisers(target, EYES, ((0, 3), (4, 5)))  # pupils at (2, 0) and (14, 6)
    assert found["interocular"] == pytest.approx([20])
    assert found["interpupil"] == pytest.approx([math.hypot(12, 6)])
    assert found["box"] == pytest.approx([math.sqrt(20 * 6)])
    assert set(normalisers(target, EYES, None)) == {"interocular", "box"}


def test_nme_is_computed_in_float64():
    target = np.array([[[0, 0], [1, 1], [1, 0]]], dtype=np.float32)
    errors = nme(target + np.float32(2**-20), target, EYES)
    assert errors.dtype == np.float64
    assert errors[0] == pytest.approx(math.sqrt(2) * 2**-20, rel=1e-12)


@pytest.mark.parametrize("bad", ["coincide", "nan"])
def test_unusable_eye_corners_name_the_face(bad):
    target = np.random.default_rng(2).uniform(0, 128, (5, 4, 2))
    target[3, 2] = target[3, 0] if bad == "coincide" else np.nan
    with pytest.raises(UserError, match=r"face 3: the outer eye corners \(points 0 and 2\)"):
        nme(target, target, EYES)


def test_shapes_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        nme(np.zeros((2, 4, 2)), np.zeros((2, 5, 2)), EYES)


def test_failure_rate_is_strict():
    assert failure_rate([0.1, 0.1, 0.1]) == 0.0  # exactly at the threshold is no failure
    assert failure_rate([np.nextafter(0.1, 1), 0.1, 0.05, 0.3]) == 0.5
    assert failure_rate([0.3], threshold=0.3) == 0.0
    assert failure_rate([0.02]) == 0.0 and failure_rate([0.2]) == 1.0  # one face


def test_auc_by_hand():
    assert auc([0.0, 0.0]) == 1.0
    assert auc([0.1, 0.1]) == 0.0
    assert auc([0.5]) == 0.0
    assert auc([0.025]) == pytest.approx(0.75, rel=1e-14)  # all equal, or one face: a single jump
    assert auc([0.05, 0.15], threshold=0.2) == pytest.approx((0.75 + 0.25) / 2, rel=1e-14)


@pytest.mark.parametrize("seed", range(5))
def test_auc_is_the_area_under_the_step_curve(seed):
    random = np.random.default_rng(seed)
    errors = random.gamma(4, 0.015, 200)
    errors[:5] = errors[5]  # ties

    for threshold in (0.05, 0.08, 0.1):
        assert auc(errors, threshold) == pytest.approx(
            slow_auc(errors.tolist(), threshold), abs=1e-12
        )


def test_no_face_and_no_number():
    assert math.isnan(failure_rate([])) and math.isnan(auc([]))
    assert failure_rate([np.nan, 0.01]) == 0.5  # a model that answers nonsense has failed
    assert auc([np.nan, 0.0]) == 0.5
