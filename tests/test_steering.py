"""What the page of demo.py computes, without the page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, make_sets_differ

from dataset.boxes import BoxTable
from dataset.detector import Faces
from dataset.landmarks import WFLW_98
from demonstration.drawing import attention_html, describe_shift, describe_spread, draw_face
from demonstration.steering import ALIKE, ATTENTION, SteeredPredictor
from models import Baseline, BaselineSepDyBN, SepBatchNorm2d
from models.checkpoint import load_model
from prediction.predictor import LandmarkPredictor
from utils.files import UserError

TEMPERATURE = 1.7
MODULES = ("bn1", "bn2", "bn3", "bn4", "bn5", "bn6")
EXAMPLES = ROOT / "docs" / "examples"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A network of width 2 whose sets and attention differ from face to face."""
    torch.manual_seed(3)
    model = BaselineSepDyBN(3, 2, TEMPERATURE, width=2)
    make_sets_differ(model)

    path = tmp_path_factory.mktemp("network") / "steered.pt"
    torch.save(model.state_dict(), path)

    return path


def sepbn_layers(model) -> list[SepBatchNorm2d]:
    return [layer for layer in model.modules() if isinstance(layer, SepBatchNorm2d)]


@pytest.fixture(scope="module")
def faces(checkpoint):
    """A steered predictor, and a noisy picture with the boxes and angles of two faces."""
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    image[:, 60:] //= 5
    two = [([5, 10, 50, 70], 0.0), ([60, 5, 118, 80], 40.0)]

    return SteeredPredictor(checkpoint, device="cpu"), image, two


def plain_answer(predictor: LandmarkPredictor, image: np.ndarray, face) -> np.ndarray:
    return predictor(image, [face[0]], angles=[face[1]])[0]


def changed(checkpoint, change) -> LandmarkPredictor:
    """A plain predictor of the network after `change(layer)` of each of its SepBN modules."""
    loaded = load_model(checkpoint)
    with torch.no_grad():
        for layer in sepbn_layers(loaded.model):
            change(layer)

    return LandmarkPredictor(loaded, device="cpu")


def test_as_trained_is_what_the_predictor_says(checkpoint, faces):
    predictor, image, two = faces
    plain = plain_answer(LandmarkPredictor(checkpoint, device="cpu"), image, two[1])
    assert predictor.temperature == pytest.approx(TEMPERATURE) and predictor.sets == 3

    for steering in ((), (0.2, 1, MODULES), (predictor.temperature, ATTENTION, MODULES)):
        landmarks, _ = predictor.answer(image, two[1], steering)
        assert np.allclose(landmarks, plain, atol=1e-3) == (steering[:1] != (0.2,))


def test_weights_are_those_of_the_modules(checkpoint, faces):
    """An independent way: hooks on the network that was not folded."""
    predictor, image, two = faces
    boxes, angles = zip(*two, strict=True)
    patches = predictor.cut(image, boxes, angles=angles).patches
    model, seen = load_model(checkpoint).model, []
    for layer in sepbn_layers(model):
        layer.register_forward_pre_hook(lambda m, x: seen.append(m.attention(x[0])))

    crops = (torch.from_numpy(patches[:, 64:192, 64:192]).permute(0, 3, 1, 2) - 127.5) / 128
    with torch.no_grad():
        model(crops)

    told = [predictor.answer(image, face)[1] for face in two]
    assert tuple(told[0]) == tuple(predictor.layers) == MODULES

    for name, expected in zip(MODULES, seen, strict=True):
        np.testing.assert_allclose([used[name] for used in told], expected.numpy(), atol=1e-5)

    between_faces = max(np.abs(told[0][name] - told[1][name]).max() for name in MODULES)
    assert between_faces > 0.05  # the two faces are told apart


@pytest.mark.parametrize(
    ("choice", "modules"), [(0, MODULES), (2, MODULES), (1, ("bn3",)), (ALIKE, MODULES)]
)
def test_chosen_sets_are_a_network_that_has_no_other_there(checkpoint, faces, choice, modules):
    predictor, image, (face, _) = faces
    names = iter(MODULES)
    shares = np.full(3, np.float32(1 / 3)) if choice == ALIKE else np.eye(3)[choice]

    def keep(layer: SepBatchNorm2d) -> None:
        if next(names) in modules:
            for sets in (layer.weight, layer.bias):
                sets.copy_((torch.tensor(shares).float() @ sets).expand_as(sets))

    expected = plain_answer(changed(checkpoint, keep), image, face)
    landmarks, attention = predictor.answer(image, face, (predictor.temperature, choice, modules))
    np.testing.assert_allclose(landmarks, expected, atol=1e-3)
    for name, weights in attention.items():
        assert np.array_equal(weights, [shares, shares]) == (name in modules)


def test_a_network_without_sepbn_has_nothing_to_steer(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "bn.pt"
    torch.save(Baseline("bn", width=2).state_dict(), path)
    predictor = SteeredPredictor(path, device="cpu")
    landmarks, attention = predictor.answer(np.zeros((99, 99, 3), np.uint8), ([0, 0, 98, 98], 0.0))
    assert landmarks.shape == (98, 2) and attention == {} and predictor.sets == 0
    assert attention_html(attention, attention) == ""


# ------------------------------------------------------------------------------- what is shown


def test_the_shift_in_words():
    before = np.zeros((98, 2))
    after = before.copy()
    assert describe_shift(before, after, WFLW_98) == "The landmarks have **not moved**."

    after[96] = (3, 4)  # the left pupil alone
    said = describe_shift(before, after, WFLW_98)
    assert "0.05 pixels" in said and "at most 5.00; most in the left pupil" in said


@pytest.mark.parametrize("box", [[120, 90, 219, 209], [-30, -40, 60, 50], [0, 0, 30, 30]])
def test_a_face_close_up_has_its_landmarks_where_the_picture_has_them(box):
    """A red spot of the picture and a landmark on it come to lie at one place."""
    x, y = np.clip(np.mean(np.reshape(box, (2, 2)), axis=0).round().astype(int), 1, None)
    picture = np.zeros((400, 500, 3), np.uint8)
    picture[y - 1 : y + 2, x - 1 : x + 2] = (0, 0, 255)
    away, there = np.full((98, 2), -1e3), np.full((98, 2), (x, y), np.float32)

    spot = draw_face(picture, box, away, away, WFLW_98)
    with_landmark = draw_face(picture * 0, box, there, there, WFLW_98)
    assert max(spot.shape) in (719, 720) and spot.shape == with_landmark.shape

    centres = [np.argwhere(shown.max(2) > 128).mean(0) for shown in (spot, with_landmark)]
    np.testing.assert_allclose(*centres, atol=1)


def test_a_bar_has_a_part_for_every_set():
    used = {"bn1": np.array([[0.2, 0.3, 0.5], [0, 1, 0]])}
    html = attention_html(used, {"bn1": np.full((2, 3), 1 / 3)})
    parts = re.findall(r'flex-grow:([\d.]+)">([\d.]*)<', html)
    now, before = [("0.2000", "0.20"), ("0.3000", "0.30"), ("0.5000", "0.50")], ("0.3333", "0.33")
    assert parts[:6] == [*now, *[before] * 3]
    assert parts[6:9] == [("0.0000", ""), ("1.0000", "1.00"), ("0.0000", "")]
    assert re.findall("<dt>(.*?)</dt>", html) == ["bn1, group 1", "bn1, group 2"]


# ----------------------------------------------------------------------------- pictures, boxes


@pytest.fixture
def page(monkeypatch):
    pytest.importorskip("gradio", reason="gradio is missing: pip install -r requirements-demo.txt")
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "0")
    from demonstration import page

    return page


def test_faces_are_counted_from_the_left(page):
    found = Faces(
        np.array([[200, 10, 240, 60], [20, 30, 60, 80]]), np.array([0.9, 0.8]), np.array([0, 35.0])
    )
    path = EXAMPLES / "smile.jpg"
    picture = {"path": str(path), "orig_name": "mine.jpg"}
    button, box, scene, choice, said = page.Finder(lambda image: found).find(picture)

    assert scene[2] == [([20, 30, 60, 80], 35), ([200, 10, 240, 60], 0)] and box == ""
    assert [value for _, value in choice.choices] == [1, 2] and choice.visible
    assert said == "mine.jpg: faces found: 2." and not button.visible
    assert np.array_equal(scene[1], cv2.imread(str(path)))


def test_where_no_face_is_found_the_whole_picture_is_one(page):
    picture = {"path": str(EXAMPLES / "smile.jpg"), "orig_name": "mine.jpg"}
    nobody = Faces(np.zeros((0, 4), np.int64), np.zeros(0), np.zeros(0))
    height, width = cv2.imread(picture["path"]).shape[:2]

    for detector in (None, lambda image: nobody):
        _, _, scene, _, said = page.Finder(detector).find(picture)
        assert scene[2] == [([0, 0, width - 1, height - 1], 0)] and "no face found" in said


def test_a_typed_box(page):
    assert page.parse_box("80, 40,20, 10") == [20, 10, 80, 40]
    for wrong in ("1, 2, 3", "a, b, c, d", f"0, 0, {10**40}, 9", "1e3, 2, 3, 4", "9, 9, 9, 9, 9"):
        with pytest.raises(UserError):
            page.parse_box(wrong)


def test_an_answer_tells_the_spread_of_its_views(page, faces, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    predictor, image, two = faces
    plain = LandmarkPredictor(checkpoint, device="cpu")

    for number, (box, angle) in enumerate(two, 1):
        steering = predictor.temperature, ATTENTION, MODULES
        _, said, _, file = page.show(predictor, ("a.jpg", image, two), number, *steering)
        _, (spread,) = plain(image, [box], angles=[angle], views=14)
        saved = json.loads(Path(file).read_text())
        np.testing.assert_allclose(saved["spread"], spread, atol=1e-3)
        np.testing.assert_allclose(
            saved["landmarks"], plain_answer(plain, image, (box, angle)), atol=1e-3
        )
        assert "not moved" in said and f"spread by **{spread.mean():.2f} pixels**" in said

        # a network that nobody trained answers one place, whatever it sees
        assert saved["doubtful"] and "Doubtful" in said

    calm = describe_spread(np.full(98, 0.5), two[0][0], WFLW_98)
    assert "Doubtful" not in calm and "0.50 pixels" in calm


def test_what_is_asked_of_a_deleted_picture_shows_nothing(page, faces):
    face, said, bars, file = page.show(faces[0], None, 1, TEMPERATURE, ALIKE, MODULES)
    assert face is None and "kept for 15 minutes" in said and bars == "" and file is None


def test_the_examples_are_small_have_boxes_and_are_made_again_alike(run_script, tmp_path):
    pictures, table = sorted(EXAMPLES.glob("*.jpg")), BoxTable(EXAMPLES / "boxes.csv")
    assert len(pictures) == 6 and sum(path.stat().st_size for path in pictures) <= 300_000
    assert run_script("docs/draw_examples.py", "--out", tmp_path)[0] == 0
    assert (tmp_path / "boxes.csv").read_bytes() == (EXAMPLES / "boxes.csv").read_bytes()

    for path in pictures:
        committed, again = cv2.imread(str(path)), cv2.imread(str(tmp_path / path.name))
        # other processors round otherwise
        assert np.abs(committed.astype(int) - again).mean() < 1

        (_, (left, top, right, bottom), *_), *others = table.boxes_of(path)
        height, width = committed.shape[:2]
        assert 0 <= left < right < width and 0 <= top < bottom < height and not others
