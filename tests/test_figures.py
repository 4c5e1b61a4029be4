"""Figures: what they show is what was computed, and ``visualize.py`` writes them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from conftest import make_sets_differ, write_checkpoint
from matplotlib.text import Text

from dataset.faces import central_crops, load_faces
from evaluation import attention, figures
from models import BaselineSepDyBN
from utils.metrics import THRESHOLD


@pytest.fixture(scope="module")
def faces(prepared_set):
    return load_faces(prepared_set, "test")


@pytest.fixture(scope="module")
def model():
    """A small network with SepBN whose sets differ and whose attention is not flat."""
    torch.manual_seed(0)
    network = BaselineSepDyBN(3, 2, 1.0, width=4).eval()
    make_sets_differ(network)

    return network


def test_cohens_d_by_hand():
    inside, outside = np.array([1.0, 3.0])[:, None], np.array([0.0, 1.0, 2.0])[:, None]
    pooled = (1 * 2.0 + 2 * 1.0) / 3  # variances 2 and 1 with 1 and 2 degrees of freedom
    assert attention.cohens_d(inside, outside) == pytest.approx([1 / np.sqrt(pooled)])
    assert attention.cohens_d(outside, inside) == pytest.approx([-1 / np.sqrt(pooled)])
    assert np.isnan(attention.cohens_d(inside[:1], outside)).all()  # one face has no spread
    assert np.isnan(attention.cohens_d(np.full((3, 1), 1 / 3), np.full((4, 1), 1 / 3))).all()


def test_relative_distances_by_hand():
    sets = np.array([[3.0, 0.0], [0.0, 3.0], [-3.0, 0.0]])
    assert attention.relative_distances(sets) == pytest.approx([np.sqrt(2), 2, np.sqrt(2)])
    assert attention.relative_distances(np.ones((2, 5))).tolist() == [0]
    unshifted = attention.relative_distances(np.zeros((3, 5)))  # as initialised
    assert unshifted.tolist() == [0, 0, 0]
    assert attention.relative_distances(np.ones((1, 5))).size == 0


def test_attention_weights_are_those_of_the_forward_pass(model, faces):
    prediction, weights = attention.attention_weights(model, faces, device="cpu", batch_size=3)
    assert prediction.shape == (8, 98, 2) and weights.shape == (8, 6, 2, 3)
    np.testing.assert_allclose(weights.sum(axis=3), 1, atol=1e-6)

    with torch.no_grad():  # by hand, for the first two modules
        x = model.conv1(central_crops(faces.patches))
        np.testing.assert_allclose(weights[:, 0], model.bn1.attention(x), atol=1e-5)
        x = model.conv2(torch.nn.functional.leaky_relu(torch.max_pool2d(model.bn1(x), 2), 0.01))
        hidden = model.bn2.fc1(x.mean((2, 3), keepdim=True))
        logits = model.bn2.fc2(torch.nn.functional.leaky_relu(hidden, 0.01))
        np.testing.assert_allclose(weights[:, 1], logits.reshape(8, 2, 3).softmax(dim=2), atol=1e-5)

    assert not any(module._forward_pre_hooks for module in model.modules())


def _smallest_type(figure) -> float:
    """Smallest type of a figure that a page shows 1,000 px wide, in px."""
    figure.draw_without_rendering()
    sizes = [text.get_fontsize() for text in figure.findobj(Text) if text.get_text()]

    return min(sizes) * 1000 / (72 * figure.get_figwidth())


def test_mapping_parameters_are_twelve_maps_left_and_right_of_one_line(model):
    figure = figures.mapping_parameters(model)
    figure.draw_without_rendering()  # lays it out
    assert _smallest_type(figure) >= 10
    (line,) = figure.artists
    (middle,) = set(figure.bbox.width * np.array(line.get_xdata()))
    panels = [axes for axes in figure.axes if axes.images]
    modules = attention.sepbn_modules(model)
    assert [axes.get_title() for axes in panels] == [*modules, *modules]

    expected = [m.weight for m in modules.values()] + [m.bias for m in modules.values()]
    for number, (axes, values) in enumerate(zip(panels, expected, strict=True)):
        image = axes.images[0]
        shown = np.asarray(image.get_array())
        np.testing.assert_array_equal(shown, values.detach().numpy().T)  # a row per channel
        assert image.get_clim() == (shown.min(), shown.max())

        place = axes.get_window_extent()  # px
        assert place.x1 < middle if number < 6 else place.x0 > middle


def test_attention_gallery_is_absolute_and_set_major(model, faces):
    _, weights = attention.attention_weights(model, faces, device="cpu")
    figure = figures.attention_gallery(faces, weights, np.array([1, 4, 6, 7]))
    heat_maps = [axes for axes in figure.axes if axes.get_xlabel() == "SepBN module"]
    assert len(heat_maps) == 4

    image = heat_maps[1].images[0]
    assert image.get_clim() == (0, 1)
    labels = [label.get_text() for label in heat_maps[1].get_yticklabels()]
    assert labels[:3] == ["set 1, gr. 1", "set 1, gr. 2", "set 2, gr. 1"]

    for row, (k, g) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]):
        np.testing.assert_allclose(np.asarray(image.get_array())[row], weights[4, :, g, k])


def test_attention_by_subset_finds_a_planted_effect():
    random = np.random.default_rng(0)
    weights = random.dirichlet([5, 5, 5], (200, 6, 2))
    attributes = random.random((200, 6)) < 0.3
    attributes[:, 5] = False  # nobody is blurred
    weights[attributes[:, 1], 3, 1] = random.dirichlet([50, 5, 5], attributes[:, 1].sum())
    figure = figures.attention_by_subset(weights, attributes)
    panels = {
        axes.get_title().split(":")[0]: axes for axes in figure.axes if ":" in axes.get_title()
    }
    effect = np.asarray(panels["expression"].images[0].get_array())

    # set 1 group 2, module 4
    assert np.unravel_index(effect.argmax(), effect.shape) == (1, 3) and effect[1, 3] > 1.5
    assert np.asarray(panels["largepose"].images[0].get_array()).max() < 0.8

    inside = attributes[:, 1]
    words = f"{weights[inside, 3, 1, 0].mean():.2f} | {weights[~inside, 3, 1, 0].mean():.2f}\n"
    words += f"d +{effect[1, 3]:.2f}"

    assert words in [text.get_text() for text in panels["expression"].texts]
    assert _smallest_type(figure) >= 10
    assert panels["blur"].get_title() == "blur: 0 faces against 200"
    assert [text.get_text() for text in panels["blur"].texts] == ["nothing to compare"]


def test_weights_that_do_not_move_have_no_effect():
    random = np.random.default_rng(0)
    weights = np.zeros((40, 6, 1, 2))
    weights[..., 0] = 1
    attributes = random.random((40, 6)) < 0.5
    weights[:, 2] += 0.001 * attributes[:, :1, None]  # follows the attribute, but hardly moves
    weights[:, 4] += 0.1 * attributes[:, :1, None] + 0.05 * random.random((40, 1, 2))
    axes = figures.attention_by_subset(weights, attributes).axes[0]
    effect = np.ma.filled(axes.images[0].get_array(), np.nan)

    assert np.isfinite(effect).all(axis=0).tolist() == [False] * 4 + [True, False]
    constant = {text.get_text() for text in axes.texts if text.get_position()[0] != 4}
    assert constant == {"1.00", "0.00"}


def test_a_curve_without_test_errors_has_one_axis():
    rows = [{"epoch": 0, "loss": 2.0, "test_nme_percent": ""}]
    assert len(figures.training_curve(rows).axes) == 1

    rows.append({"epoch": 1, "loss": 1.0, "test_nme_percent": 9.5})
    loss, nme = figures.training_curve(rows).axes
    assert loss.lines[0].get_xydata().tolist() == [[1, 2], [2, 1]]
    assert nme.lines[0].get_xydata().tolist() == [[2, 9.5]]


def test_set_usage(model):
    weights = np.zeros((10, 6, 2, 3))
    weights[..., 0] = 1  # one set alone
    weights[:, 2:] = 1 / 3  # all alike from the third module on
    by_entropy, by_set, by_distance = figures.set_usage(model, weights).axes
    entropy = by_entropy.containers[0].lines[0].get_ydata()
    assert entropy == pytest.approx([0, 0, 1, 1, 1, 1], abs=1e-12)

    shares = {line.get_label(): line.get_ydata() for line in by_set.lines}
    assert shares["set 1, group 2"] == pytest.approx([1, 1, *[1 / 3] * 4])

    distances = by_distance.containers[0].lines[0].get_ydata()
    expected = attention.relative_distances(model.bn1.weight.detach().double().numpy()).mean()
    assert distances[0] == pytest.approx(expected)


def test_cumulative_error_is_the_step_function():
    errors = np.array([0.02, 0.08, 0.08, 0.3])
    figure = figures.cumulative_error({"model": errors})
    curve = figure.axes[0].lines[0]
    x, y = curve.get_xdata(), curve.get_ydata()

    for at in (0.01, 0.02, 0.05, 0.08, 0.1, 0.15):
        shown = y[np.flatnonzero(x <= 100 * at + 1e-9)[-1]]  # drawn with steps after each point
        assert curve.get_drawstyle() == "steps-post" and shown == (errors <= at).mean()

    assert figure.axes[0].lines[1].get_xdata() == [100 * THRESHOLD] * 2


def test_many_models_and_odd_values_can_be_drawn(faces, tmp_path):
    """Seven models of which one answers NaN; an empty subset; fewer faces than panels."""
    random = np.random.default_rng(1)
    names = [f"model {i}" for i in range(7)]
    errors = {name: random.gamma(3, 0.02, 4) for name in names} | {"model 6": np.full(4, np.nan)}
    table = {
        "full": {"faces": 4, "nme_percent": 6.0},
        "blur": {"faces": 0, "nme_percent": float("nan")},
    }
    prediction = faces.crop_landmarks().numpy() + random.normal(0, 3, (8, 98, 2))
    prediction[0] = np.nan
    rows = [("worst: ", np.arange(3)), ("", np.arange(1))]
    by_point = {name: random.random(98) for name in names[:5]}
    shape, unknown = random.random((98, 2)), np.full(8, np.nan)

    drawn = {
        "ced": figures.cumulative_error(errors),
        "points": figures.error_by_landmark(by_point, shape, faces.scheme),
        "subsets": figures.error_by_subset(dict.fromkeys(names, table)),
        "faces": figures.face_gallery(faces, prediction, unknown, rows=rows, title="t"),
    }

    for name, figure in drawn.items():
        path = figures.save(figure, tmp_path / f"{name}.png")
        assert cv2.imread(str(path)).std() > 5

    labels = [text.get_text() for text in drawn["subsets"].axes[0].get_xticklabels()]
    assert labels == ["full\n4 faces", "blur\n0 faces"]


def test_visualize_draws_everything(run_script, prepared_set, tmp_path):
    """Of the network that comes with the code, where none is named."""
    code, output, _ = run_script("visualize.py", "--data", prepared_set, "--out", tmp_path / "out")
    assert code == 0 and output.startswith("sepbn16: Vanilla CNN with SepBN")

    pictures = list((tmp_path / "out").iterdir())
    names = "mapping_parameters attention_faces attention_by_subset set_usage faces"
    assert {picture.stem for picture in pictures} == set(names.split())
    assert output.count("wrote ") == 5
    assert all(cv2.imread(str(picture)).std() > 5 for picture in pictures)


def test_visualize_without_sepbn_draws_the_faces_and_says_so(run_script, prepared_set, tmp_path):
    path = write_checkpoint(tmp_path / "bn.pt", norm="bn")
    options = ("--data", prepared_set, "--out", tmp_path / "out")
    code, output, _ = run_script("visualize.py", path, *options)
    assert code == 0 and "no SepBN modules in this checkpoint" in output
    assert [picture.name for picture in (tmp_path / "out").iterdir()] == ["faces.png"]
