"""Landmark schemes against the tables of the field and against real faces."""

from __future__ import annotations

import numpy as np
import pytest

from dataset.landmarks import IBUG_68, WFLW_98, scheme_for
from utils.files import UserError


@pytest.mark.parametrize("scheme", [WFLW_98, IBUG_68], ids=lambda scheme: scheme.name)
def test_mirror_is_an_involution_that_swaps_the_eye_corners(scheme):
    mirror = np.array(scheme.mirror)
    assert sorted(mirror) == list(range(scheme.num_points))
    assert (mirror[mirror] == np.arange(scheme.num_points)).all()
    left, right = scheme.outer_eyes
    assert mirror[left] == right and left != right


@pytest.mark.parametrize("scheme", [WFLW_98, IBUG_68], ids=lambda scheme: scheme.name)
def test_contours_cover_every_point_once_and_mirror_onto_each_other(scheme):
    points = [point for contour in scheme.contours for point in contour.points]
    assert sorted(points) == list(range(scheme.num_points))
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
