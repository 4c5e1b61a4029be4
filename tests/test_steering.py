"""What the page of demo.py computes, without the page."""

from __future__ import annotations

import base64
import io
import json
import zlib

import cv2
import numpy as np
import pytest
import torch
from conftest import make_sets_differ

from dataset.landmarks import WFLW_98
from demonstration import scene as scenes
from demonstration.downloads import landmarks_json, overlay_jpeg, pts_text
from demonstration.drawing import attention_svg, face_svg, picture_svg
from demonstration.scene import BOX, DETECTED, WHOLE, Scene, cut_faces, drawn_box, find_faces
from demonstration.steering import LEARNT, UNIFORM, SteeredPredictor, Steering, measure_shift
from models import Baseline, BaselineSepDyBN, SepBatchNorm2d
from models.checkpoint import load_model
from prediction.predictor import LandmarkPredictor
from utils.files import UserError

TEMPERATURE = 1.7
MODULES = ("bn1", "bn2", "bn3", "bn4", "bn5", "bn6")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A network of width 2 whose sets and attention differ from face to face."""
    torch.manual_seed(3)
    model = BaselineSepDyBN(3, 2, TEMPERATURE, width=2)
    make_sets_differ(model)

    with torch.no_grad():
        for layer in sepbn_layers(model):
            layer.fc1.weight.normal_(0, 2)
            layer.fc2.weight.normal_(0, 2)

    path = tmp_path_factory.mktemp("network") / "steered.pt"
    torch.save(model.state_dict(), path)

    return path


def sepbn_layers(model) -> list[SepBatchNorm2d]:
    return [layer for layer in model.modules() if isinstance(layer, SepBatchNorm2d)]


@pytest.fixture(scope="module")
def faces(checkpoint):
    """A steered predictor, and two faces of a noisy picture cut out for it."""
    predictor = SteeredPredictor(checkpoint, device="cpu")
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    image[:, 60:] //= 5
    boxes = [[5, 10, 50, 70], [60, 5, 118, 80]]

    return predictor, image, boxes, *predictor.cut(image, boxes)


def changed(checkpoint, change) -> LandmarkPredictor:
    """A plain predictor of the network after `change(layer)` of each of its SepBN modules."""
    loaded = load_model(checkpoint)
    with torch.no_grad():
        for layer in sepbn_layers(loaded.model):
            change(layer)

    return LandmarkPredictor(loaded, device="cpu")


def test_as_learnt_is_what_the_predictor_says(checkpoint, faces):
    predictor, image, boxes, patches, frames = faces
    plain = LandmarkPredictor(checkpoint, device="cpu")(image, boxes)

    for steering in (Steering(), Steering(TEMPERATURE, (LEARNT,) * 6)):
        # float32, as the checkpoint keeps it
        assert np.array_equal(predictor.answer(patches, frames, steering).landmarks, plain)


def test_the_learnt_temperature_comes_back(checkpoint, faces):
    predictor, image, boxes, patches, frames = faces
    before = predictor(image, boxes)
    steered = predictor.answer(patches, frames, Steering(0.2, (UNIFORM, *[LEARNT] * 4, 1)))
    assert np.abs(steered.landmarks - before).max() > 1e-3

    assert np.array_equal(predictor(image, boxes), before)
    assert predictor.temperature == pytest.approx(TEMPERATURE)


def test_weights_are_those_of_the_modules(checkpoint, faces):
    """An independent way: hooks on the network that was not folded."""
    predictor, _, _, patches, frames = faces
    model, seen = load_model(checkpoint).model, []
    for layer in sepbn_layers(model):
        layer.register_forward_pre_hook(lambda m, x: seen.append(m.attention(x[0])))

    crops = (torch.from_numpy(patches[:, 64:192, 64:192]).permute(0, 3, 1, 2) - 127.5) / 128
    with torch.no_grad():
        model(crops)

    answer = predictor.answer(patches, frames)
    assert predictor.modules == MODULES and len(answer.attention) == 6

    for weights, expected in zip(answer.attention, seen, strict=True):
        np.testing.assert_allclose(weights, expected.numpy(), atol=1e-5)

    between_faces = max(np.ptp(weights, axis=0).max() for weights in answer.attention)
    assert between_faces > 0.05  # the two faces are told apart


def test_uniform_is_the_limit_of_a_high_temperature(faces):
    predictor, _, _, patches, frames = faces
    uniform = predictor.answer(patches, frames, Steering(None, (UNIFORM,) * 6))
    assert all(np.all(weights == np.float32(1 / 3)) for weights in uniform.attention)

    distances = [
        np.abs(predictor.answer(patches, frames, Steering(t)).landmarks - uniform.landmarks).max()
        for t in (1e2, 1e4, 1e8)
    ]

    assert distances[0] > 10 * distances[1] > 0 and distances[2] < 1e-3


def test_the_lowest_temperature_leaves_the_strongest_set(faces):
    predictor, _, _, patches, frames = faces
    learnt = predictor.answer(patches, frames).attention[0]
    cold = predictor.answer(patches, frames, Steering(1e-12)).attention[0]
    np.testing.assert_allclose(cold, np.eye(3)[learnt.argmax(2)], atol=1e-6)


@pytest.mark.parametrize("k", [0, 2])
def test_only_one_set_is_a_network_that_has_no_other(checkpoint, faces, k):
    predictor, image, boxes, patches, frames = faces

    def keep_one(layer: SepBatchNorm2d) -> None:
        layer.weight.copy_(layer.weight[k].clone().expand_as(layer.weight))
        layer.bias.copy_(layer.bias[k].clone().expand_as(layer.bias))

    answer = predictor.answer(patches, frames, Steering(None, (k,) * 6))
    np.testing.assert_allclose(
        answer.landmarks, changed(checkpoint, keep_one)(image, boxes), atol=1e-3
    )
    assert all(np.array_equal(w, np.eye(3)[np.full((2, 2), k)]) for w in answer.attention)


def test_a_choice_is_that_of_its_own_module(checkpoint, faces):
    predictor, image, boxes, patches, frames = faces
    layers = iter(range(6))

    def keep_one_in_the_third(layer: SepBatchNorm2d) -> None:
        if next(layers) == 2:
            layer.weight.copy_(layer.weight[1].clone().expand_as(layer.weight))
            layer.bias.copy_(layer.bias[1].clone().expand_as(layer.bias))

    choices = (LEARNT, LEARNT, 1, LEARNT, LEARNT, LEARNT)
    answer = predictor.answer(patches, frames, Steering(None, choices))
    np.testing.assert_allclose(
        answer.landmarks, changed(checkpoint, keep_one_in_the_third)(image, boxes), atol=1e-3
    )


@pytest.mark.parametrize("choices", [(3,) * 6, (-1,) * 6, ("learnt",) * 6, (0,) * 5])
def test_choices_that_are_none(faces, choices):
    predictor, _, _, patches, frames = faces
    with pytest.raises(ValueError):
        predictor.answer(patches, frames, Steering(None, choices))


def test_batches_of_one_keep_all_weights(checkpoint, faces):
    predictor, _, _, patches, frames = faces
    single = SteeredPredictor(checkpoint, device="cpu", batch_size=1).answer(patches, frames)
    for one, both in zip(
        single.attention, predictor.answer(patches, frames).attention, strict=True
    ):
        np.testing.assert_allclose(one, both, atol=1e-5)


def test_a_network_without_sepbn_has_nothing_to_steer(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "bn.pt"
    torch.save(Baseline("bn", width=2).state_dict(), path)
    predictor = SteeredPredictor(path, device="cpu")
    patches = np.zeros((1, 256, 256, 3), np.uint8)
    answer = predictor.answer(patches, predictor.cut(patches[0], [[0, 0, 99, 99]])[1])
    assert predictor.modules == () and answer.attention == () and predictor.temperature is None


def test_shift():
    before = np.zeros((98, 2))
    after = before.copy()
    after[96] = (3, 4)  # the left pupil alone
    shift = measure_shift(before, after, WFLW_98)
    assert (shift.largest, shift.contour) == (5, "left pupil")
    assert shift.mean == pytest.approx(5 / 98)


# -------------------------------------------------------------------------------- pictures, boxes


def encoded(image: np.ndarray, suffix: str = ".png") -> bytes:
    return cv2.imencode(suffix, image)[1].tobytes()


def test_a_picture_is_read_and_nothing_of_it_stays(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    image = np.random.default_rng(1).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    assert np.array_equal(scenes.read_picture(encoded(image), "a.png"), image)

    with pytest.raises(UserError):
        scenes.read_picture(encoded(image)[:40], "a.png")
    assert list(tmp_path.iterdir()) == []


def png_that_claims(width: int, height: int) -> bytes:
    """The head of a PNG of that size, and no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + kind + data + check

    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    parts = [chunk(b"IHDR", size + bytes([8, 2, 0, 0, 0])), chunk(b"IDAT", zlib.compress(b""))]

    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is damaged or no picture"),
        (b"GIF89a", "is damaged or no picture"),
        (encoded(np.full((64, 64, 3), 7, np.uint8), ".jpg")[:300], "is damaged or no picture"),
        (png_that_claims(9000, 9000), "more than 64 million"),
        (png_that_claims(60000, 60000), "far too large"),
        (bytes(scenes.LARGEST_FILE + 1), "more than 20 MB"),
    ],
)
def test_bad_pictures_get_one_sentence(data, words):
    with pytest.raises(UserError, match=words) as caught:
        scenes.read_picture(data, "mine.jpg")
    assert str(caught.value).startswith("mine.jpg") and "\n" not in str(caught.value)
    assert "choose" in str(caught.value)


def test_a_drawn_box():
    image = np.zeros((50, 100, 3), np.uint8)
    assert drawn_box([80.4, 40, 20.2, 10], image) == [20, 10, 80, 40]
    assert drawn_box([-30, -30, 500, 500], image) == [0, 0, 99, 49]
    with pytest.raises(UserError, match="smaller than 8 pixels"):
        drawn_box([20, 20, 26, 40], image)


def test_where_the_faces_are():
    image = np.zeros((50, 100, 3), np.uint8)
    box = [10, 10, 30, 30]
    many = np.array([box] * 25), np.linspace(1, 0.7, 25, dtype=np.float32)
    nobody = np.zeros((0, 4), np.int64), np.zeros(0, np.float32)

    assert find_faces(image, WHOLE, detector=None, box=box)[0] == [[0, 0, 99, 49]]
    assert find_faces(image, BOX, detector=None, box=box)[0] == [box]

    boxes, _, sentence = find_faces(image, BOX, detector=None, box=None)
    assert boxes == [] and "Drag a box" in sentence

    boxes, scores, sentence = find_faces(image, DETECTED, detector=lambda _: many, box=None)
    assert len(boxes) == len(scores) == scenes.MOST_FACES and "25 faces" in sentence

    boxes, _, sentence = find_faces(image, DETECTED, detector=lambda _: nobody, box=None)
    assert boxes == [[0, 0, 99, 49]] and "finds no face" in sentence
    assert find_faces(image, DETECTED, detector=lambda _: nobody, box=box)[0] == [box]


def test_the_examples_are_small_and_have_boxes():
    found = scenes.examples()
    assert len(found) == 6
    assert sum(path.stat().st_size for path, _ in found.values()) <= 300_000
    for path, (left, top, right, bottom) in found.values():
        height, width = cv2.imread(str(path)).shape[:2]
        assert 0 <= left < right < width and 0 <= top < bottom < height


def test_the_examples_are_drawn_again_alike(run_script, tmp_path):
    assert run_script("docs/draw_examples.py", "--out", tmp_path)[0] == 0
    for name, (path, _) in scenes.examples().items():
        committed, again = cv2.imread(str(path)), cv2.imread(str(tmp_path / f"{name}.jpg"))
        # other processors round otherwise
        assert np.abs(committed.astype(int) - again).mean() < 1
    assert (tmp_path / "boxes.csv").read_bytes() == (scenes.EXAMPLES / "boxes.csv").read_bytes()


# ------------------------------------------------------------------------- what is shown and given


@pytest.fixture(scope="module")
def shown(faces) -> Scene:
    predictor, image, boxes, _, _ = faces
    return Scene("two.png", image, None, boxes, [0.9, 0.8], cut_faces([predictor], image, boxes))


def test_the_face_shows_the_contours_that_are_asked_for(shown, faces):
    scheme = faces[0].scheme
    learnt = shown.cuts[0].learnt.landmarks[0]
    options = {"learnt": learnt, "scheme": scheme}
    every = [contour.name for contour in scheme.contours]
    svg = face_svg(shown.image, shown.boxes[0], learnt, contours=every, **options)

    assert svg.count('class="landmark"') == 98 and 'class="moved"' not in svg
    assert f'cx="{learnt[5, 0] + 0.5:.2f}"' in svg

    svg = face_svg(shown.image, shown.boxes[0], learnt + 3, contours=["left eye"], **options)
    assert svg.count('class="landmark"') == svg.count('class="moved"') == 8


def test_a_chart_has_a_bar_a_set_and_group():
    used = np.array([[0.2, 0.3, 0.5], [0, 1, 0]])
    svg = attention_svg("bn<1>", used, np.full((2, 3), 1 / 3))
    assert svg.count('class="bar"') == svg.count('class="learnt"') == 6
    assert 'data-group="2" data-set="2" data-weight="1.0000"' in svg and "bn&lt;1&gt;" in svg


def test_the_picture_shows_all_boxes(shown):
    svg = picture_svg(shown.image, shown.boxes, chosen=1, drawable=True)
    assert svg.count('class="number"') == 2 and svg.count('class="box chosen"') == 1
    data = svg.split("base64,")[1].split('"')[0]
    picture = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), 1)
    assert picture.shape == shown.image.shape


def test_downloads(shown, faces):
    predictor = faces[0]
    steering = Steering(4.0, (0, UNIFORM, *[LEARNT] * 4))
    answer = predictor.answer(shown.cuts[0].patches, shown.cuts[0].frames, steering)

    content = json.loads(landmarks_json(shown, predictor, answer, steering))
    assert content["steering"]["temperature"] == 4.0
    assert list(content["steering"]["modules"].values())[:3] == ["only set 1", UNIFORM, LEARNT]

    (entry,) = content["files"]
    assert (entry["file"], entry["width"], entry["height"]) == ("two.png", 120, 90)
    np.testing.assert_allclose(entry["faces"][1]["landmarks"], answer.landmarks[1], atol=1e-4)
    assert entry["faces"][0]["attention"]["bn1"] == [[1, 0, 0], [1, 0, 0]]

    rows = np.loadtxt(io.StringIO(pts_text(answer.landmarks[0]).decode()), skiprows=3, comments="}")
    np.testing.assert_allclose(rows, answer.landmarks[0] + 1, atol=1e-4)

    overlay = overlay_jpeg(shown, answer.landmarks, predictor.scheme)
    assert cv2.imdecode(np.frombuffer(overlay, np.uint8), 1).shape == (90, 120, 3)
