"""Evaluation: predictions, subsets, bootstrap, perturbed boxes, cost, and ``test.py`` from the
outside.
"""

from __future__ import annotations

import csv
import functools
import json

import cv2
import numpy as np
import pytest
import torch
from conftest import centres_of_light, painted_dots, write_checkpoint
from torch import nn

from dataset.annotations import ATTRIBUTES
from dataset.crop import PatchFrame
from dataset.faces import central_crops, load_faces
from evaluation import evaluate, tables
from evaluation.cost import measure_speed, model_cost
from evaluation.evaluate import (
    bootstrap_means,
    face_errors,
    paired_difference,
    predict_landmarks,
    spread,
    subsets,
    summarize,
    true_landmarks,
)
from evaluation.robustness import SCALES, SHIFTS, perturbed_crops, robustness, to_nominal_crop
from models import Baseline, BaselineSepDyBN
from models.checkpoint import load_model
from prediction.predictor import LandmarkPredictor
from utils.metrics import nme


@pytest.fixture(scope="module")
def faces(prepared_set):
    return load_faces(prepared_set, "test")


@pytest.fixture(autouse=True)
def quick_timing(monkeypatch):
    monkeypatch.setattr(
        evaluate, "measure_speed", functools.partial(measure_speed, batch_size=8, seconds=0.0)
    )


class Constant(nn.Module):
    """Answers with the same landmarks (P, 2) for every crop."""

    def __init__(self, points):
        super().__init__()
        self.points = torch.as_tensor(points, dtype=torch.float32)

    def forward(self, crops):
        return self.points.flatten().expand(len(crops), -1)


# --- predictions, subsets -----------------------------------------------------------------------


def test_predictions_do_not_depend_on_the_batch_and_restore_the_mode(faces):
    torch.manual_seed(0)
    model = Baseline("bn", width=4).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    by_eight, by_three = (
        predict_landmarks(model, faces, device="cpu", batch_size=size) for size in (8, 3)
    )

    assert by_eight.shape == (8, 98, 2) and by_eight.dtype == np.float32
    np.testing.assert_allclose(by_three, by_eight, atol=1e-4)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    with torch.no_grad():
        # x0 y0 x1 y1 ...
        alone = model.eval()(central_crops(faces.patches[5:6])).reshape(98, 2).numpy()

    np.testing.assert_allclose(by_eight[5], alone, atol=1e-4)


def test_face_errors_of_a_constant_answer(faces):
    points = np.random.default_rng(0).uniform(0, 128, (98, 2)).astype(np.float32)
    expected = nme(np.broadcast_to(points, (8, 98, 2)), faces.landmarks.numpy() - 64.0, (60, 72))
    errors = face_errors(Constant(points), faces, device="cpu")
    np.testing.assert_allclose(errors, expected, rtol=1e-12)


def test_subsets_are_the_attributes(faces):
    masks = subsets(faces)
    assert masks.pop("full").all() and tuple(masks) == ATTRIBUTES
    assert np.array_equal(np.stack(list(masks.values()), axis=1), faces.attributes)


def test_an_empty_subset_is_a_dash_in_the_table():
    errors = np.array([0.02, 0.2])
    summary = summarize(errors, {"full": np.array([True, True]), "blur": np.array([False, False])})
    measured = {"faces": 2, "nme_percent": 11, "fr_percent": 50, "auc": 0.4}
    measured |= {"fr_percent_at_0.08": 50, "auc_at_0.08": 0.375}
    assert summary["full"] == pytest.approx(measured)
    assert summary["blur"]["faces"] == 0 and np.isnan(summary["blur"]["nme_percent"])

    table = tables.accuracy_table({"m": summary}, summary, "98 points")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert rows[2:] == [
        ["m", "NME %", "11.00", "–"],
        ["m", "FR@0.1 %", "50.00", "–"],
        ["m", "AUC@0.1", "0.4000", "–"],
        ["mean shape of the training set", "NME %", "11.00", "–"],
    ]
    assert len({len(line) for line in table.splitlines()}) == 1


# --- bootstrap ----------------------------------------------------------------------------------


def test_bootstrap_interval_agrees_with_a_plain_loop():
    random = np.random.default_rng(3)
    # a shared part: the pairing matters
    errors = random.gamma(3, 0.02, (2, 60)) + random.gamma(3, 0.02, 60)
    slow = random.integers(0, 60, (10_000, 60))
    slow = [errors[1, draw].mean() - errors[0, draw].mean() for draw in slow]
    result = paired_difference(bootstrap_means(errors), errors)
    assert result["difference"] == pytest.approx(errors[1].mean() - errors[0].mean(), rel=1e-12)

    width = np.std(slow)
    assert result["low"] == pytest.approx(np.percentile(slow, 2.5), abs=0.1 * width)
    assert result["high"] == pytest.approx(np.percentile(slow, 97.5), abs=0.1 * width)


def test_bootstrap_is_paired_seeded_and_chunked():
    errors = np.random.default_rng(4).gamma(3, 0.02, 50)
    # the same faces are hard for both: no uncertainty is left
    twins = np.stack([errors, errors + 0.01])
    first, again, other = (bootstrap_means(twins, resamples=300, seed=seed) for seed in (0, 0, 1))
    assert list(paired_difference(first, twins).values()) == pytest.approx([0.01] * 3, rel=1e-9)
    assert np.array_equal(first, again) and not np.array_equal(first, other)

    many = np.random.default_rng(5).normal(size=(2, 3000))
    means = bootstrap_means(many, resamples=1000)  # several chunks
    assert means.shape == (2, 1000) and len(np.unique(means[0])) == 1000


# --- perturbed boxes ----------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [(0, 0), (10, -7)])
def test_a_shift_by_whole_pixels_is_a_slice(faces, shift):
    moved = perturbed_crops(faces.patches[:1], torch.tensor([shift]) / 128, 1.0)[0]
    x, y = shift
    expected = faces.patches[0, 64 + y : 192 + y, 64 + x : 192 + x].permute(2, 0, 1)
    np.testing.assert_allclose(moved.numpy() * 128 + 127.5, expected.numpy(), atol=0.05)


@pytest.mark.parametrize(
    ("shift", "scale"), [((0.0, 0.0), 1.4), ((0.3, -0.2), 0.7), ((-0.12, 0.21), 1.0)]
)
def test_painted_dots_come_back_to_where_they_were(shift, scale):
    dots = np.array([[130.0, 125.0], [160.0, 131.0], [145.0, 110.0]])  # patch px
    shifts = np.tile(np.float32(shift), (3, 1))
    patches = torch.from_numpy(painted_dots((256, 256), dots))
    seen = perturbed_crops(patches, torch.from_numpy(shifts), scale)
    centres = centres_of_light(seen[:, 0] + 127.5 / 128)  # window px
    found = to_nominal_crop(centres[:, None], shifts, scale)[:, 0]
    np.testing.assert_allclose(found, dots - 64, atol=0.12)


def test_outside_the_patch_is_black():
    white = torch.full((1, 256, 256, 3), 255, dtype=torch.uint8)
    seen = perturbed_crops(white, torch.tensor([[0.75, 0.0]]), 1.0)[0, 0]
    assert seen[:, -1].tolist() == pytest.approx([-127.5 / 128] * 128, abs=1e-6)
    assert seen[:, 0].tolist() == pytest.approx([127.5 / 128] * 128, abs=1e-4)


def test_robustness_of_a_constant_answer(faces):
    """A constant answer moves with the box, so its errors can be computed by hand."""
    points = np.random.default_rng(6).uniform(30, 100, (98, 2))
    curves = robustness(Constant(points), faces, device="cpu")
    assert list(curves["shift"]) == list(SHIFTS) and list(curves["scale"]) == list(SCALES)

    def percent(answer):
        return pytest.approx(
            100 * nme(answer, faces.crop_landmarks().numpy(), (60, 72)).mean(), rel=1e-5
        )

    for scale, value in curves["scale"].items():
        moved = (points - 63.5) * scale + 63.5  # about the centre of the crop
        assert value == percent(np.tile(moved, (8, 1, 1)))

    assert curves["shift"][0.0] == curves["scale"][1.0]
    angles = np.random.default_rng(0).uniform(0, 2 * np.pi, 8)
    step = 0.2 * 128 * np.stack([np.cos(angles), np.sin(angles)], axis=1)[:, None]
    assert curves["shift"][0.2] == percent(points + step)


def test_spread_keeps_the_ends():
    assert spread(10, 4).tolist() == [0, 3, 6, 9] and spread(3, 12).tolist() == [0, 1, 2]


# --- cost ---------------------------------------------------------------------------------------


def macs_by_hand(width, points=98):
    channels = [3, *(width * 2**stage for stage in range(6))]
    stages = zip(channels[:-1], channels[1:], (128, 64, 32, 16, 8, 4), strict=True)
    convolutions = sum(9 * a * b * side**2 for a, b, side in stages)

    return convolutions + 4 * 32 * width * 32 * width + 32 * width * 2 * points


def test_cost_of_the_published_networks():
    device = torch.device("meta")
    with device:
        plain, norm = Baseline("none").eval(), Baseline("bn").eval()
    assert model_cost(plain, device) == {"parameters": 42_327_876, "macs": macs_by_hand(64)}
    assert model_cost(norm, device) == {"parameters": 42_335_940, "macs": macs_by_hand(64)}
    assert macs_by_hand(64) / 1e9 == pytest.approx(1.555, abs=5e-4)


@pytest.mark.parametrize("groups", [1, 2])
def test_cost_counts_the_attention(groups):
    model = BaselineSepDyBN(groups=groups, width=8).eval()
    channels = [8, 16, 32, 64, 128, 256]
    attention = sum(c * max(1, c // 10) + max(1, c // 10) * 3 * groups for c in channels)
    # the sets of scale and of shift, weighted and summed
    mixing = sum(2 * 3 * groups * c for c in channels)
    cost = model_cost(model, torch.device("cpu"))
    assert cost["macs"] == macs_by_hand(8) + attention + mixing
    assert cost["parameters"] == sum(parameter.numel() for parameter in model.parameters())


def test_speed_says_what_it_measures():
    models = [Baseline("none", width=2).eval(), BaselineSepDyBN(width=4).eval()]
    speeds = measure_speed(models, torch.device("cpu"), batch_size=4, seconds=0.02)
    assert len(speeds) == 2
    for speed in speeds:
        assert 0 < speed["latency_ms_median"] <= speed["latency_ms_p95"] < 5000
        assert speed["throughput_faces_per_second"] > 0 and speed["throughput_batch_size"] == 4


# --- test.py ------------------------------------------------------------------------------------


def test_everything_that_is_written(run_script, prepared_set, faces, tmp_path):
    names = ["b_unfinished_", "b (unfinished)"]  # which differ in odd characters alone
    first = write_checkpoint(tmp_path / names[0] / "final.pt", norm="bn")
    second = write_checkpoint(tmp_path / "b" / "last.pt", norm="none", resample="area")
    out = tmp_path / "new" / "out"
    options = ("--data", prepared_set, "--out", out, "--batch-size", 3)
    code, output, errors = run_script("test.py", first, second, *options)

    assert code == 0
    assert errors.count("warning: b (unfinished) was trained on patches resampled by 'area'") == 1
    for words in ("points 60 and 72", "WFLW-98", "8 faces", "by 'nearest'", "strictly above 0.1"):
        assert words in output

    metrics = json.loads((out / "metrics.json").read_text(), parse_constant=pytest.fail)
    found = [metrics["models"][name]["subsets"] for name in names]
    full = found[0]["full"]

    # three conventions: one error over the eyes' distance, the pupils', and the landmarks' box
    prediction = predict_landmarks(load_model(first).model, faces, device="cpu")
    by = {"nme_percent": [], "nme_percent_interpupil": [], "nme_percent_box": []}
    for points, true in zip(prediction.astype(float), true_landmarks(faces), strict=True):
        error = 100 * np.linalg.norm(points - true, axis=1).mean()
        by["nme_percent"].append(error / np.linalg.norm(true[60] - true[72]))
        by["nme_percent_interpupil"].append(error / np.linalg.norm(true[96] - true[97]))
        by["nme_percent_box"].append(error / np.sqrt(np.ptp(true, axis=0).prod()))

    for name, errors in by.items():
        assert full[name] == pytest.approx(np.mean(errors), rel=1e-6), name

    rows = list(csv.DictReader((out / "faces.csv").open()))
    assert [int(row["index"]) for row in rows] == list(range(8))

    for name, own in zip(names, found, strict=True):
        values = np.array([float(row[f"nme_percent {name}"]) for row in rows])
        for subset, table in own.items():
            chosen = values[[subset == "full" or row[subset] == "1" for row in rows]]
            assert len(chosen) == table["faces"]
            assert chosen.mean() == pytest.approx(table["nme_percent"], rel=1e-5)

    (pair,) = metrics["differences"]
    assert [pair["first"], pair["second"]] == names
    one, other = (each["full"]["nme_percent"] for each in found)
    interval = pair["subsets"]["full"]
    assert interval["low"] <= interval["difference"] <= interval["high"]
    assert interval["difference"] == pytest.approx(other - one)
    assert metrics["mean_shape"]["full"]["nme_percent"] > 0
    assert metrics["robustness"][names[0]]["scale"]["1.0"] == pytest.approx(one, rel=1e-3)
    assert metrics["machine"]["torch"] and metrics["data"]["scheme"] == "WFLW-98"

    table = (out / "table.md").read_text()
    assert f"| {names[0]} " in table and "NME %, shift of the box (8 faces)" in table

    pictures = {path.stem for path in out.glob("*.png")}
    stems = "ced nme_by_landmark nme_by_subset robustness faces_b_unfinished_"
    assert pictures == {*stems.split(), "faces_b_unfinished__2"}
    assert all(cv2.imread(str(out / f"{name}.png")).std() > 5 for name in pictures)


def test_views_stand_beside_the_published_protocol(run_script, prepared_set, faces, tmp_path):
    checkpoint = write_checkpoint(tmp_path / "a" / "final.pt", norm="bn")
    arguments = [checkpoint, "--data", prepared_set, "--batch-size", 20]
    _, plain, _ = run_script("test.py", *arguments, "--out", tmp_path / "plain")
    code, output, _ = run_script("test.py", *arguments, "--views", 14, "--out", tmp_path / "views")
    assert code == 0 and "not the published protocol" in output

    plain, views = (
        json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("plain", "views")
    )
    assert plain["models"]["a"]["subsets"] == views["models"]["a"]["subsets"]
    assert plain["protocol"] == views["protocol"] and "with_views" not in plain

    # as the predictor's mean, which cuts the views in the same patches
    predictor = LandmarkPredictor(checkpoint, device="cpu", views=14)
    frames = [PatchFrame(0, 0, 256, "nearest")] * len(faces)
    prediction, _ = predictor.predict_patches(faces.patches.numpy(), frames)
    expected = 100 * nme(prediction, faces.landmarks.numpy(), faces.scheme.outer_eyes).mean()
    assert views["with_views"]["a"]["full"]["nme_percent"] == pytest.approx(expected, rel=1e-5)


def test_the_mean_shape_needs_the_training_list(prepared_set, faces, tmp_path):
    train = load_faces(prepared_set, "train").landmarks.double().mean(dim=0).numpy() - 64
    expected = 100 * nme(np.tile(train, (8, 1, 1)), faces.crop_landmarks().numpy(), (60, 72)).mean()
    assert evaluate.mean_shape_summary(prepared_set, faces)["full"]["nme_percent"] == pytest.approx(
        expected, rel=1e-6
    )
    assert evaluate.mean_shape_summary(tmp_path, faces) is None


def test_checkpoints_are_found(run_script, prepared_set, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "checkpoints"
    write_checkpoint(folder / "done" / "final.pt")
    write_checkpoint(folder / "done" / "last.pt")
    write_checkpoint(folder / "running" / "last.pt")
    write_checkpoint(folder / "other" / "final.pt", num_landmarks=68)
    torch.save(Baseline("none", width=4).state_dict(), folder / "baseline_model_final.pth")
    code, output, errors = run_script("test.py", "--data", prepared_set)
    assert code == 0

    assert "baseline_model_final.pth (released form)" in output and "corrected geometry" in output
    names = {line.split(":")[0] for line in output.splitlines() if line.startswith("Model ")}
    assert names == {"Model done", "Model running (unfinished)", "Model baseline_model_final"}
    assert errors.count("warning: left out: ") == 1 and "predicts 68 landmarks" in errors
