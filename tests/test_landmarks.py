"""Landmark schemes against the tables of the field and against real faces."""

from __future__ import annotations

import json

import pytest

from dataset.landmarks import COMMON_60, IBUG_68, WFLW_98, define, read_scheme, scheme_for
from utils.files import UserError


@pytest.mark.parametrize("scheme", [WFLW_98, IBUG_68, COMMON_60], ids=lambda scheme: scheme.name)
def test_built_in_schemes_are_what_is_asked_of_a_users(scheme, tmp_path):
    path = tmp_path / "own.json"
    path.write_text(json.dumps(define(scheme) | {"name": "own"}))
    assert read_scheme(path).mirror == scheme.mirror

    left, right = scheme.outer_eyes
    assert scheme.mirror[left] == right and scheme.mirror[right] == left != right
    groups = {frozenset(contour.points) for contour in scheme.contours}
    for contour in scheme.contours:
        assert frozenset(scheme.mirror[point] for point in contour.points) in groups


def test_wflw_mirror_is_the_published_table():
    expected = list(range(32, -1, -1))
    expected += [46, 45, 44, 43, 42, 50, 49, 48, 47, 37, 36, 35, 34, 33, 41, 40, 39, 38]
    expected += [51, 52, 53, 54, 59, 58, 57, 56, 55]
    expected += [72, 71, 70, 69, 68, 75, 74, 73, 64, 63, 62, 61, 60, 67, 66, 65]

    expected += [*range(82, 75, -1), *range(87, 82, -1), *range(92, 87, -1)]
    expected += [95, 94, 93, 97, 96]

    assert list(WFLW_98.mirror) == expected


def test_unknown_number_of_points():
    with pytest.raises(UserError, match="no landmark scheme has 5 points"):
        scheme_for(5)
