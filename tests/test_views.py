"""Views of a face: what a network sees of a painted dot comes back to one place."""

from __future__ import annotations

import numpy as np
import torch
from conftest import centres_of_light, painted_dots

from dataset.landmarks import WFLW_98
from dataset.views import MOST_VIEWS, make_views, mean_and_spread


def test_every_view_brings_a_dot_back_to_its_place():
    views = make_views(MOST_VIEWS, released_geometry=False)
    crops = views.crops(torch.from_numpy(painted_dots((256, 256), [120.0, 141.5])))
    seen = centres_of_light(crops[:, 0] + 127.5 / 128)

    assert np.linalg.norm(seen - seen[0], axis=1)[1:].min() > 0.2  # no two views alike
    found = views.back(np.tile(seen[None, :, None], (1, 1, 98, 1)), WFLW_98.mirror)
    np.testing.assert_allclose(found, np.broadcast_to([56.0, 77.5], found.shape), atol=0.03)


def test_mirrored_views_swap_left_and_right():
    views = make_views(2, released_geometry=False)
    points = np.random.default_rng(1).uniform(0, 127, (98, 2))
    mirrored = (points * (-1, 1) + (127, 0))[list(WFLW_98.mirror)]
    found = views.back(np.stack([points, mirrored])[None], WFLW_98.mirror)
    np.testing.assert_allclose(found, np.broadcast_to(points, (1, 2, 98, 2)), atol=1e-9)

    # the released code mirrors landmarks about 64 and pixels about 63.5
    released = make_views(2, released_geometry=True).back(
        np.stack([points, mirrored + (1, 0)])[None], WFLW_98.mirror
    )
    np.testing.assert_allclose(released, found, atol=1e-9)


def test_the_spread_is_the_root_mean_square_distance():
    landmarks = np.zeros((1, 4, 2, 2))
    landmarks[0, :, 1] = [[3, 0], [-3, 0], [0, 4], [0, -4]]
    mean, spread = mean_and_spread(landmarks)
    assert (mean == 0).all() and spread.tolist() == [[0, np.sqrt(12.5)]]
