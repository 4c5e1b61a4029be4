"""From pictures to landmarks and back: painted dots through every step, drawing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, centres_of_light, make_sets_differ, symmetric_shape
from torch import nn

from dataset.boxes import landmark_box
from dataset.crop import face_patch, patch_frame
from dataset.detector import Faces
from dataset.landmarks import scheme_for
from models import BaselineSepDyBN
from models.checkpoint import LoadedModel
from prediction.outputs import draw_landmarks, overlay_of
from prediction.predictor import SMALL_BATCH, LandmarkPredictor, box_about
from utils.files import UserError


class BrightestPoint(nn.Module):
    """A "network" that answers the centroid of brightness of the crop, for all 98 points."""

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        centres = centres_of_light(crops.mean(1) + 127.5 / 128)  # black is -127.5 / 128

        return torch.from_numpy(centres).repeat(1, 98)


class MeanColour(nn.Module):
    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        return crops.mean((2, 3))[:, [0, 2]].repeat(1, 98)  # "x" is the first channel, "y" the last


def predictor_of(
    model: nn.Module, resample: str = "nearest", box_scale: float = 1.0, **options
) -> LandmarkPredictor:
    config = {"num_landmarks": 98, "resample": resample, "box_scale": box_scale}
    config |= {"released_geometry": False}
    return LandmarkPredictor(
        LoadedModel(model.eval(), config, Path("fake.pt"), "fake"), device="cpu", **options
    )


def random_model() -> nn.Module:
    """A small network whose statistics and mapping sets are all different."""
    torch.manual_seed(3)
    model = BaselineSepDyBN(3, 2, 2.0, width=4)
    make_sets_differ(model)

    return model.eval()


BOXES = [
    (40, 30, 79, 69),  # inside; enlarged
    (40, 30, 80, 60),  # odd, not square
    (-25, -15, 40, 50),  # across the upper left corner
    (150, 110, 230, 199),  # across the lower right corner
    (0, 0, 199, 159),  # the whole picture; shrunk
    (-60, -80, 260, 240),  # far beyond all sides; shrunk
]


@pytest.mark.parametrize("box_scale", [1.0, 1.25])
@pytest.mark.parametrize("resample", ["nearest", "area"])
@pytest.mark.parametrize("box", BOXES)
def test_painted_dots_come_back_to_their_place_in_the_picture(box, resample, box_scale):
    random = np.random.default_rng(0)
    frame = patch_frame(box, resample, box_scale)
    patch_pixel = frame.side / 256  # in image px
    # so that no resampling loses the dot
    radius = int(np.ceil(patch_pixel)) if patch_pixel > 1 else 0
    low = np.maximum(np.array([frame.left, frame.top]) + frame.side // 4, 0) + radius + 2
    high = (
        np.minimum(np.array([frame.left, frame.top]) + 3 * frame.side // 4, [200, 160]) - radius - 3
    )
    predictor = predictor_of(BrightestPoint(), resample, box_scale)

    for _ in range(12):
        x, y = random.integers(low, high + 1)
        image = np.zeros((160, 200, 3), np.uint8)
        image[y - radius : y + radius + 1, x - radius : x + radius + 1] = 255
        points = predictor(image, [box])
        assert points.shape == (1, 98, 2) and points.dtype == np.float32
        error = np.abs(points[0] - (x, y)).max()
        assert error <= 0.5 * patch_pixel + (0.5 if resample == "nearest" else 0) + 1e-3


def test_the_patch_is_cut_by_the_rule_of_the_checkpoint():
    image = np.random.default_rng(1).integers(0, 256, (90, 90, 3), dtype=np.uint8)
    box = (20, 20, 60, 60)
    for resample, other in (("nearest", "area"), ("area", "nearest")):
        shot = predictor_of(MeanColour(), resample).cut(image, [box])
        assert np.array_equal(shot.patches[0][..., ::-1], face_patch(image, box, resample)[0])
        assert not np.array_equal(shot.patches[0][..., ::-1], face_patch(image, box, other)[0])
        assert shot.frames[0].resample == resample


def test_batches_and_streams_do_not_change_the_answer():
    image = np.random.default_rng(2).integers(0, 256, (160, 200, 3), dtype=np.uint8)
    model = random_model()
    single = np.concatenate([predictor_of(model, batch_size=1)(image, [box]) for box in BOXES])
    assert np.abs(predictor_of(model, batch_size=4)(image, np.array(BOXES)) - single).max() < 1e-3

    predictor = predictor_of(model, batch_size=4)
    groups = [BOXES[:1], [], BOXES[1:6], BOXES[:2]]
    answers = list(predictor.stream(predictor.cut(image, boxes) for boxes in groups))

    for shot, expected in zip(
        answers, [single[:1], single[:0], single[1:6], single[:2]], strict=True
    ):
        assert shot.landmarks.shape == expected.shape
        assert np.abs(shot.landmarks - expected).max(initial=0) < 1e-3


def test_the_callers_default_dtype_does_not_matter():
    image = np.random.default_rng(2).integers(0, 256, (160, 200, 3), dtype=np.uint8)
    expected = LandmarkPredictor(device="cpu")(image, BOXES)
    torch.set_default_dtype(torch.float64)
    try:
        found = LandmarkPredictor(device="cpu")(image, BOXES)
    finally:
        torch.set_default_dtype(torch.float32)
    assert np.array_equal(found, expected)


def test_a_turned_box_shows_the_turned_picture():
    image = np.zeros((300, 400, 3), np.uint8)
    cv2.circle(image, (190, 120), 4, (255, 255, 255), -1)
    predictor = predictor_of(BrightestPoint(), "area")
    boxes = [[130, 90, 229, 189]] * 3
    points = predictor(image, boxes, angles=[0, 70, -160])[:, 0]
    assert np.abs(points - (190, 120)).max() < 0.5

    for angles in ([1.0], [0.0, float("nan"), 0.0]):
        with pytest.raises(ValueError, match="angles must be 3 numbers"):
            predictor(image, boxes, angles=angles)


def test_several_views_agree_on_a_dot_and_tell_their_spread():
    image = np.zeros((300, 400, 3), np.uint8)
    cv2.circle(image, (190, 120), 4, (255, 255, 255), -1)
    boxes = [[130, 90, 229, 189], [100, 60, 259, 219]]
    predictor = predictor_of(BrightestPoint(), "area")
    points, spread = predictor(image, boxes, angles=[0, 50], views=14)
    assert points.shape == (2, 98, 2) and np.abs(points - (190, 120)).max() < 0.5
    assert spread.shape == (2, 98) and spread.max() < 0.3

    # of a network that answers one place in its crop, whatever it sees, the views are told apart
    for views, low, high in ((1, 0, 0), (2, 40, 60), (14, 40, 60)):
        _, spread = predictor_of(MeanColour(), "area")(image, boxes[:1], views=views)
        assert low <= spread.min() <= spread.max() <= high

    always = predictor_of(BrightestPoint(), "area", views=14, batch_size=3)
    assert np.abs(always(image, boxes, angles=[0, 50]) - points).max() < 1e-3


def test_a_second_look_is_a_look_at_the_box_about_the_landmarks():
    image = np.random.default_rng(2).integers(0, 256, (160, 200, 3), dtype=np.uint8)
    model = random_model()
    predictor = predictor_of(model, refine=True)
    once = predictor_of(model)
    first = once(image, BOXES, angles=[10.0 * i for i in range(len(BOXES))])
    eyes = once.scheme.outer_eyes
    boxes, angles = zip(*(box_about(p, eyes, 10.0 * i) for i, p in enumerate(first)), strict=True)
    expected = once(image, boxes, angles=angles)
    answer = predictor(image, BOXES, angles=[10.0 * i for i in range(len(BOXES))])
    assert np.abs(answer - expected).max() < 1e-3 and np.abs(answer - first).max() > 1

    nonsense = predictor_of(MeanColour(), refine=True)  # all points in one place
    assert np.array_equal(nonsense(image, BOXES), predictor_of(MeanColour())(image, BOXES))


@pytest.mark.parametrize("angle", [0, 15, -60, 170])
def test_the_box_about_landmarks_turns_with_them(angle):
    shape = 100 * symmetric_shape(98) * (1, -1)
    eyes = scheme_for(98).outer_eyes
    flip = np.sign(shape[eyes[1], 0] - shape[eyes[0], 0])
    upright = shape * (flip, 1) + (300, 200)
    radians = np.deg2rad(angle)
    turn = np.array([[np.cos(radians), np.sin(radians)], [-np.sin(radians), np.cos(radians)]])
    box, told = box_about((upright - (300, 200)) @ turn + (300, 200), eyes, 0.0)

    assert told == pytest.approx(angle if abs(angle) > 20 else 0, abs=1e-6)
    plain = np.array(landmark_box(upright))
    if abs(angle) > 20:
        assert abs((box[2] - box[0]) - (plain[2] - plain[0])) <= 2
        centre, expected = ((np.array(b[:2]) + b[2:]) / 2 - (300, 200) for b in (box, plain))
        assert np.abs(centre - expected @ turn).max() <= 2
    if angle == 0:
        assert np.abs(np.array(box) - plain).max() <= 1


@pytest.mark.parametrize(
    ("image", "boxes"),
    [
        (np.zeros((9, 9), np.uint8), [(0, 0, 5, 5)]),
        (np.zeros((0, 9, 3), np.uint8), None),
        (np.zeros((9, 9, 4), np.uint8), [(0, 0, 5, 5)]),
        (np.zeros((9, 9, 3), np.float32), [(0, 0, 5, 5)]),
        (None, [(0, 0, 5, 5)]),
        (None, None),
        ([[0, 0, 0]], None),
        (np.zeros((9, 9, 3), np.uint8), (0, 0, 5, 5)),
        (np.zeros((9, 9, 3), np.uint8), [(0, 0, float("nan"), 5)]),
    ],
)
def test_wrong_arrays_are_refused(image, boxes):
    with pytest.raises(ValueError, match="must be|image is None"):
        predictor_of(MeanColour())(image, boxes)


def test_boxes_in_shares_of_the_picture_are_refused():
    image = np.zeros((90, 90, 3), np.uint8)
    with pytest.raises(UserError, match="within one pixel"):
        predictor_of(MeanColour())(image, [(9, 9, 60, 60), (0.2, 0.2, 0.8, 0.9)])

    assert predictor_of(MeanColour())(image, [(-60, -60, 1, 1)]).shape[0] == 1


class Finder:
    """Stands for YuNet: always the same two boxes."""

    def __init__(self, path: Path) -> None:
        assert str(path) == "yunet.onnx"

    def __call__(self, image: np.ndarray) -> Faces:
        boxes = np.array([[40, 30, 79, 69], [0, 0, 50, 60]])
        return Faces(boxes, np.array([0.9, 0.7]), np.array([0.0, 30.0]))


def test_a_path_is_read_faces_are_found_and_decimals_are_rounded(tmp_path, monkeypatch):
    image = np.random.default_rng(2).integers(0, 256, (160, 200, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), image)
    monkeypatch.setattr("prediction.predictor.FaceDetector", Finder)
    monkeypatch.setattr("prediction.predictor.yunet_path", lambda _: Path("yunet.onnx"))
    predictor = predictor_of(random_model())
    boxes = [(40, 30, 79, 69), (0, 0, 50, 60)]
    expected = predictor(image, boxes, angles=[0, 30])

    for picture in (image, tmp_path / "a.png", str(tmp_path / "a.png")):
        assert np.array_equal(predictor(picture), expected)

    rounded = np.array([[39.6, 30.4, 78.9, 69.2], [-0.3, 0.2, 49.7, 60.4]])
    assert np.array_equal(predictor(image, rounded), predictor(image, boxes))

    with pytest.raises(UserError, match=r"image .*b\.png does not exist"):
        predictor(tmp_path / "b.png")

    # YuNet's file by its path, and a detector of one's own
    for detector in ("yunet.onnx", Finder(Path("yunet.onnx"))):
        predictor = predictor_of(random_model(), detector=detector)
        assert np.array_equal(predictor(image), expected)


def test_without_a_network_a_caller_hears_what_python_can_do(tmp_path, monkeypatch):
    def nothing(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", nothing)
    with pytest.raises(UserError, match="give the predictor boxes, or .* detector=") as caught:
        predictor_of(MeanColour())(np.zeros((9, 9, 3), np.uint8))
    assert "--" not in str(caught.value)


def test_loading_and_predicting_do_not_import_a_compiler():
    """torch._dynamo and sympy, 800 modules, would take longer than all the rest."""
    script = """
import sys
import numpy as np
from prediction.predictor import LandmarkPredictor

predictor = LandmarkPredictor(device="cpu")
predictor(np.zeros((90, 90, 3), np.uint8), [[10, 10, 70, 70]])
print([name for name in ("torch._dynamo", "sympy") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_small_batches_take_one_thread_and_give_the_others_back(monkeypatch):
    seen = []

    class Threads(MeanColour):
        def forward(self, crops: torch.Tensor) -> torch.Tensor:
            seen.append((len(crops), torch.get_num_threads()))
            return super().forward(crops)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        predictor = predictor_of(Threads())
        for count in (1, SMALL_BATCH - 1, SMALL_BATCH):
            predictor(np.zeros((90, 90, 3), np.uint8), [[10, 10, 70, 70]] * count)

        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)

    assert seen == [(1, 1), (SMALL_BATCH - 1, 1), (SMALL_BATCH, 2)]


def test_drawing_marks_points_and_box_on_a_copy():
    scheme = scheme_for(98)
    image = np.full((100, 120, 3), 10, np.uint8)
    shot = predictor_of(MeanColour()).cut(image, [(5, 6, 110, 90)])
    shot.landmarks = np.tile([60.0, 50.0], (1, 98, 1))
    shot.landmarks[0, 96] = (20.0, 30.0)  # a pupil, alone
    drawn = overlay_of(shot, scheme)

    assert (image == 10).all()
    assert (drawn[30, 20] != 10).any() and (drawn[50, 60] != 10).any()
    assert (drawn[6, 5:111] == 255).all() and (drawn[6:91, 110] == 255).all()
    assert (drawn[20, 90] == 10).all() and (drawn[95:] == 10).all()

    draw_landmarks(image, np.full((98, 2), 1e9), scheme)  # what an untrained network may answer
    assert (image == 10).all()
