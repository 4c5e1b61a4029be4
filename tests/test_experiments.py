"""The experiments: what is trained, what is tuned on, what is skipped, what the tables say."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import load_script, make_sets_differ, refused, write_official_set

from dataset.annotations import read_crop_list
from dataset.faces import list_path, load_faces
from evaluation.attention import attention_weights, sepbn_modules
from evaluation.evaluate import predict_landmarks
from models import BaselineSepDyBN
from research import differences, liveness, mixtures, relatives
from research import experiment_runs as runs
from training.config import TrainConfig
from utils.files import UserError

SCRIPT = "research/experiments.py"
ROWS = "research/experiment_rows.py"
SMALL = "--width 2 --epochs 2 --limit 8"


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def command(suite: str, data: Path, work: Path, options: str = SMALL) -> list[object]:
    return ["--suite", suite, "--data", data, "--work", work, *options.split()]


def plan_for(*argv: object) -> runs.Plan:
    script = load_script(SCRIPT)
    return script.make_plans(script.parse([str(argument) for argument in argv]))[0]


def files_of(work: Path) -> dict[Path, int]:
    """When each file of a run was last written."""
    return {path: path.stat().st_mtime_ns for path in (work / "checkpoints").rglob("*.*")}


def test_a_suite_tunes_trains_tabulates_and_does_nothing_twice(run_script, prepared_set, tmp_path):
    arms = ("none", "bn", "sepbn-g2k3", "bn-released")
    suite = command("real98", prepared_set, tmp_path, f"{SMALL} --seeds 2 --arms {' '.join(arms)}")
    code, table, _ = run_script(SCRIPT, *suite)
    assert code == 0

    rows = read_rows(tmp_path / "real98.csv")
    main = [row for row in rows if row["stage"] == "main"]
    assert [(row["arm"], row["seed"]) for row in main] == [(a, s) for s in "01" for a in arms]
    assert {row["arm"] for row in rows if row["stage"] == "tune"} == {"none", "bn", "sepbn-g2k3"}
    assert str(tmp_path) not in (tmp_path / "real98.csv").read_text(), "a row names a folder"

    faces = read_rows(tmp_path / "real98_faces.csv")
    assert len(faces) == 8

    for row in main:
        head = f"{row['arm']} width 2 epochs 2 seed {row['seed']}"
        nme = float(row["nme_percent"])
        log = read_rows(tmp_path / "checkpoints" / row["run"] / "log.csv")
        assert 100 * np.mean([float(face[head]) for face in faces]) == pytest.approx(nme, abs=1e-3)
        assert float(log[-1]["test_nme_percent"]) == pytest.approx(nme, abs=1e-6)

    means = {arm: [float(row["nme_percent"]) for row in main if row["arm"] == arm] for arm in arms}
    for arm in arms:
        chosen = float(next(row["lr"] for row in main if row["arm"] == arm))
        assert f"| {arm} | {chosen:g} | 2 of 2 | {np.mean(means[arm]):.2f} ± " in table
    assert "\n| bn-released − bn |" in table

    tuned = {
        float(row["lr"]): float(row["nme_percent"])
        for row in rows
        if (row["stage"], row["arm"]) == ("tune", "bn")
    }
    best = min(tuned, key=tuned.get)
    assert {float(row["lr"]) for row in main if row["arm"].startswith("bn")} == {best}

    before = files_of(tmp_path)
    assert run_script(SCRIPT, *suite) == (0, table, "") and files_of(tmp_path) == before

    networks = [tmp_path / "checkpoints" / row["run"] / "final.pt" for row in main]
    options = ("--data", prepared_set, "--out", tmp_path / "liveness.csv")
    code, report, _ = run_script("research/liveness.py", networks[2], *options)
    assert code == 0 and report.count(f"| {main[2]['run']} |") >= 2

    found = read_rows(tmp_path / "liveness.csv")
    assert [row["module"] for row in found] == ["all", *(f"bn{i}" for i in range(1, 7))]
    assert float(found[0]["nme_percent"]) == pytest.approx(float(main[2]["nme_percent"]), abs=1e-3)
    assert "no SepBN in it" in refused(run_script, "research/liveness.py", networks[1], *options)


def test_a_stopped_suite_goes_on_where_it_was(run_script, prepared_set, tmp_path, monkeypatch):
    suite = command("real98", prepared_set, tmp_path, f"{SMALL} --rates 0.01 --seeds 2 --arms bn")
    train, calls = runs.train, []

    def stops_in_the_second_run(config, build, *, resume, **options):
        calls.append((config.run, resume))
        return 143 if len(calls) == 2 else train(config, build, resume=resume, **options)

    monkeypatch.setattr(runs, "train", stops_in_the_second_run)
    assert run_script(SCRIPT, *suite)[:2] == (143, "")
    assert len(read_rows(tmp_path / "real98.csv")) == 1

    code, output, _ = run_script(SCRIPT, *suite)
    assert code == 0 and "| bn | 0.01 | 2 of 2 |" in output
    assert len(calls) == 3 and calls[1] == calls[2] and calls[2][1], "it was not resumed"


@pytest.mark.parametrize("arm", ["none", "bn-se"])
def test_divergence_is_a_row_not_an_end(run_script, prepared_set, tmp_path, arm):
    options = f"{SMALL} --seeds 1 --arms {arm} --rates 1e18"
    code, table, _ = run_script(SCRIPT, *command("real98", prepared_set, tmp_path / "one", options))
    assert code == 0 and f"| {arm} | 1e+18 | 0 of 1 | – |" in table

    (row,) = read_rows(tmp_path / "one" / "real98.csv")
    assert row["status"] == "diverged" and row["nme_percent"] == ""

    suite = command("real98", prepared_set, tmp_path / "two", options + " 2e18")
    code, _, complaint = run_script(SCRIPT, *suite)
    assert code == 1
    assert f"every learning rate tried for {arm} diverged" in complaint.splitlines()[-1]


def test_other_faces_need_another_work_folder(run_script, prepared_set, tmp_path):
    run = tmp_path / "checkpoints" / f"{prepared_set.name}-main-bn-w2-e2-lr0.01-s0-n8"
    run.mkdir(parents=True)
    (run / "result.json").write_text(json.dumps({"lists": "others"}))
    suite = command("real98", prepared_set, tmp_path, f"{SMALL} --arms bn --rates 0.01")
    assert "choose another --work" in refused(run_script, SCRIPT, *suite)


def test_boxes_are_compared_on_the_same_faces(run_script, official_set, tmp_path):
    folders = [tmp_path / f"box{scale}" for scale in ("1", "1.5")]
    for folder in folders:
        options = ("--wflw", official_set, "--out", folder, "--box-scale", folder.name[3:])
        assert run_script("dataset/createWFLW256.py", *options)[0] == 0

    suite = ["--suite", "boxes98", "--work", tmp_path, "--data", *folders, *SMALL.split()]
    code, output, _ = run_script(SCRIPT, *suite, "--seeds", 1)
    assert code == 0 and "| bn | 0.09 | 1 of 1 |" in output
    assert "| sepbn-g1k3 | 0.03 | 1 of 1 |" in output

    lines = [line.strip("| ").split(" | ") for line in output.splitlines()[-5:] if line]
    assert [line[::2][:2] for line in lines] == [
        [folder.name, arm] for folder in folders for arm in ("bn", "sepbn-g1k3")
    ]
    nmes = [
        float(read_rows(tmp_path / f"boxes98_{folder.name}.csv")[0]["nme_percent"])
        for folder in folders
    ]
    assert float(lines[0][3]) == 0
    assert float(lines[2][3]) == pytest.approx(nmes[1] - nmes[0], abs=0.0051)


def test_a_face_is_cut_where_one_point_lies_outside(prepared_set):
    faces = load_faces(prepared_set, "test")
    faces.landmarks[:] = 128.0
    faces.landmarks[2, 5, 0] = 63.4  # crop px -0.6
    faces.landmarks[3, 6, 1] = 191.6  # crop px 127.6
    faces.landmarks[4, 7, 1] = 191.4
    assert load_script(SCRIPT).share_cut(faces) == 2 / 8


def test_the_wflw_suite_is_the_published_recipe():
    plan = plan_for("--suite", "wflw", "--data", "d")
    assert plan.arms == ("none", "bn", "sepbn-g1k3", "sepbn-g2k3") and len(plan.rates) == 1
    config = runs.configuration(plan, "sepbn-g1k3", run="r", lr=plan.rates[0], seed=0).settled()
    assert (config.epochs, config.warmup_epochs, config.lr) == (2000, 800, 1e-3)
    assert (config.batch_size, config.width, config.limit) == (8, 64, None)
    assert (config.sets, config.groups, config.temperature) == (3, 1, 30)
    assert not config.mean_shape_init and not config.released_geometry


def test_short_runs_reach_temperature_one_after_a_third():
    plan = plan_for("--suite", "sets68", "--data", "d", "--epochs", 30)

    def settings(arm: str) -> TrainConfig:
        return runs.configuration(plan, arm, run="r", lr=0.01, seed=0)

    annealed, fixed, released = map(settings, ("sepbn-g1k8", "sepbn-g1k8-fixed", "bn-released"))
    assert (annealed.temperature, annealed.sets, annealed.warmup_epochs) == (10, 8, 3)
    assert fixed.temperature == 1 and replace(fixed, temperature=annealed.temperature) == annealed
    assert released.released_geometry and released.norm == "bn" and released.temperature is None
    assert settings("sepbn-g1k8-grid4-fixed") == replace(fixed, attention_grid=4)


def test_rates_are_tuned_on_training_faces_only(prepared_set, tmp_path):
    plan = plan_for("--suite", "real98", "--data", prepared_set, "--work", tmp_path)
    (seen, kept), (unseen, held) = (
        read_crop_list(list_path(runs.hold_out(plan), split)) for split in ("train", "test")
    )
    landmarks, patches = read_crop_list(list_path(prepared_set, "train"))
    assert (len(kept), len(held)) == (9, 3) and sorted(kept + held) == sorted(patches)

    order = [patches.index(path) for path in kept + held]
    np.testing.assert_array_equal(np.concatenate([seen, unseen]), landmarks[order])
    assert read_crop_list(list_path(runs.hold_out(plan), "test"))[1] == held


@pytest.mark.parametrize(
    ("optimum", "tried"),
    [
        (0.02, {0.01, 0.03, 0.09}),
        (0.0011, {0.01, 0.03, 0.0033, 0.0011}),
        (1.0, {0.01, 0.03, 0.09, 0.27}),
        (0.004, {0.01, 0.03, 0.0033, 0.0011}),
    ],
)
def test_the_grid_grows_towards_the_best_rate(prepared_set, tmp_path, monkeypatch, optimum, tried):
    def error_by_rate(plan, arm, lr, *, seed, stage):
        assert (seed, stage, plan.epochs) == (0, "tune", 30)
        error = {} if lr > 0.5 else {"nme_percent": abs(np.log(lr / optimum))}  # {}: diverged
        return {"run": f"lr{lr}", "lr": lr} | error

    monkeypatch.setattr(runs, "run_once", error_by_rate)
    plan, rows = plan_for(*command("real98", prepared_set, tmp_path, "")), []
    best = min(tried, key=lambda lr: abs(np.log(lr / optimum)))
    assert runs.tune(plan, "bn", rows) == best and {row["lr"] for row in rows} == tried


def test_several_seeds_decide_on_a_rate(prepared_set, tmp_path, monkeypatch):
    found = {0.01: (5, 9, 9), 0.03: (6, 7, 8), 0.09: (4, 4, None)}  # None: diverged

    def run_once(plan, arm, lr, *, seed, stage):
        assert plan.epochs == 50
        error = found[lr][seed]
        return {"run": f"{lr} {seed}", "lr": lr} | ({"nme_percent": error} if error else {})

    monkeypatch.setattr(runs, "run_once", run_once)
    plan, rows = plan_for(*command("lengths98", prepared_set, tmp_path, "--epochs 50")), []
    assert runs.tune(plan, "bn", rows) == 0.03 and len(rows) == 9


def by_seed(errors: np.ndarray) -> dict[int, np.ndarray]:
    return dict(enumerate(errors))


def test_differences_are_paired_by_face_and_in_points():
    errors = np.random.default_rng(0).uniform(0.02, 0.4, (3, 50))
    first, higher = by_seed(errors), by_seed(errors + 0.01)
    assert differences.difference(first, higher) == ("+1.00", "+1.00 … +1.00", "0.00")

    lower = by_seed(errors - [[0.01], [0.02], [0.03]])
    assert differences.difference(first, lower) == ("-2.00", "-2.00 … -2.00", "1.00")

    one_in_common = {1: first[1], 2: first[2]}, {0: higher[0], 2: higher[2]}
    assert differences.difference(*one_in_common)[2] == "–"


def test_share_of_the_gain_that_batchnorm_has():
    none = np.random.default_rng(0).uniform(0.2, 0.3, (2, 40))

    def words(bn: np.ndarray, sepbn: np.ndarray, ending: str = "") -> str:
        arms = zip(("none", "bn", "sepbn-g1k3"), (none, bn, sepbn), strict=True)
        return differences.explained({arm + ending: by_seed(e) for arm, e in arms}, ending)

    gain = words(none - 0.08, none - 0.1)
    assert gain.startswith("BatchNorm alone gives 80 % (95 % over faces: 80 … 80)")
    released = words(none - 0.08, none - 0.1, "-released")
    assert released.endswith("from none-released to sepbn-g1k3-released.")

    noise = np.random.default_rng(1).normal(0, 0.05, none.shape)
    assert words(none, none + noise - noise.mean()).startswith("There is no clear difference")


def lively_network() -> torch.nn.Module:
    torch.manual_seed(0)
    model = BaselineSepDyBN(3, 2, 1.0, width=4)
    make_sets_differ(model)

    return model.eval()


def test_constant_attention_is_uniform_or_as_given(prepared_set):
    faces, model = load_faces(prepared_set, "test"), lively_network()
    flat = liveness.constant_attention(model)
    np.testing.assert_allclose(attention_weights(flat, faces, device="cpu")[1], 1 / 3, rtol=1e-6)

    mixed = np.random.default_rng(0).dirichlet([1, 1, 1], (6, 2))  # (M, G, K)
    mixture = sepbn_modules(liveness.constant_attention(model, mixed))

    for shares, (name, module) in zip(mixed, sepbn_modules(model).items(), strict=True):
        share = np.repeat(shares, module.num_features // 2, axis=0).T  # (K, C)
        for kind in ("weight", "bias"):
            sets, found = (getattr(m, kind).detach().numpy() for m in (module, mixture[name]))
            expected = np.broadcast_to((share * sets).sum(axis=0), sets.shape)
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)

    learnt = predict_landmarks(model, faces, device="cpu")
    for module in sepbn_modules(model).values():
        module.temperature.fill_(1e9)  # makes attention uniform in another way
    ours, other = (predict_landmarks(network, faces, device="cpu") for network in (flat, model))

    np.testing.assert_allclose(ours, other, rtol=1e-3, atol=1e-3 * np.abs(other).max())
    assert np.abs(learnt - ours).max() > 0.01 * np.abs(ours).max()


def test_attention_that_knows_a_label_stands_out():
    random = np.random.default_rng(0)
    masks = {"known": np.arange(80) < 30, "unknown": random.permutation(80) < 30}
    logits = random.normal(size=(80, 2, 1, 3))
    logits[masks["known"], 1, 0, 2] += 3
    weights = np.exp(logits) / np.exp(logits).sum(axis=3, keepdims=True)
    found = np.array([line[2:] for line in liveness.attention_by_label(weights, masks)], float)
    (known, chance), (unknown, other_chance) = found

    assert known > 2 * chance and unknown < 1.5 * other_chance


@pytest.fixture
def seeds(monkeypatch) -> dict[str, str]:
    """Synthetic faces are drawn quickly instead of rendered: folder -> seed of those made."""
    made = {}

    def draw(argv: list[str]) -> int:
        options = dict(zip(argv[::2], argv[1::2], strict=False))
        made[options["--out"]] = options["--seed"]
        counts = {split: int(options[f"--{split}"]) for split in ("train", "test")}
        write_official_set(Path(options["--out"]), **counts, seed=int(options["--seed"]))
        return 0

    monkeypatch.setattr(mixtures.createSynthetic, "main", draw)

    return made


def test_mixtures_hold_equal_shares_of_their_sub_domains(seeds, tmp_path, monkeypatch):
    folder = mixtures.mixture(tmp_path, 2, 8)
    faces = load_faces(folder, "train")
    assert [path.parent.parent.name for path in faces.paths] == ["plain"] * 4 + ["lighting"] * 4
    assert len(set(seeds.values())) == len(seeds) == 2, "two sub-domains share their people"

    labels = liveness.face_labels(load_faces(folder, "test"))
    np.testing.assert_array_equal(labels["domain plain"], [True, True, False, False])

    monkeypatch.setattr(mixtures.createSynthetic, "main", lambda argv: 1)
    with pytest.raises(UserError, match="sub-domain plain"):
        mixtures.mixture(tmp_path / "other", 1, 8)


def randomised(layer: torch.nn.Module) -> torch.nn.Module:
    """Its weights and running estimates away from their initial values."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, value in (*layer.named_parameters(), *layer.named_buffers()):
            if value.is_floating_point():
                random = torch.rand(value.shape, generator=generator)
                value.copy_(random * 2 - float("var" not in name))

    return layer.double()


def normalised(x: np.ndarray, layer: torch.nn.Module) -> np.ndarray:
    """What BatchNorm makes of (N, C, ...): by the batch's statistics in training, else by the
    running ones.
    """
    axes, shape = (0, *range(2, x.ndim)), (-1,) + (1,) * (x.ndim - 2)
    mean, var = x.mean(axis=axes), x.var(axis=axes)
    if not layer.training:
        mean, var = layer.running_mean.numpy(), layer.running_var.numpy()

    hat = (x - mean.reshape(shape)) / np.sqrt(var.reshape(shape) + 1e-5)
    if not layer.affine:
        return hat
    scale, shift = (values.detach().numpy().reshape(shape) for values in layer.parameters(False))

    return hat * scale + shift


def product(x: np.ndarray, layer: torch.nn.Conv2d) -> np.ndarray:
    """What a convolution of 1 x 1 makes of (N, C)."""
    bias = 0 if layer.bias is None else layer.bias.detach().numpy()
    return x @ layer.weight.detach().numpy()[:, :, 0, 0].T + bias


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("sets", [5, 10])
def test_attentive_normalisation_is_a_sum_of_weighted_affine_maps(training, sets):
    layer = randomised(relatives.AttentiveNorm2d(6, sets)).train(training)
    x = np.random.default_rng(0).normal(1, 2, (4, 6, 3, 5))
    logits = normalised(product(x.mean(axis=(2, 3)), layer.squeeze), layer.normalise_weights)
    share = np.clip(logits / 6 + 0.5, 0, 1)  # (N, K)
    scale, shift = (share @ values.detach().numpy() for values in (layer.weight, layer.bias))
    expected = scale[:, :, None, None] * normalised(x, layer.normalise) + shift[:, :, None, None]

    np.testing.assert_allclose(layer(torch.from_numpy(x)).detach(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("channels", "hidden"), [(32, 2), (8, 1)])
def test_squeeze_and_excitation_gates_every_channel(training, channels, hidden):
    layer = randomised(relatives.SqueezeExcitedBatchNorm2d(channels)).train(training)
    x = np.random.default_rng(0).normal(1, 2, (4, channels, 3, 5))
    z = normalised(x, layer)
    inner = np.maximum(product(z.mean(axis=(2, 3)), layer.squeeze), 0)
    assert inner.shape == (4, hidden)
    gate = 1 / (1 + np.exp(-product(inner, layer.excite)))
    expected = gate[:, :, None, None] * z

    np.testing.assert_allclose(layer(torch.from_numpy(x)).detach(), expected, rtol=1e-9, atol=1e-12)


def test_relatives_are_arms_like_the_others(run_script, prepared_set, tmp_path):
    options = f"{SMALL} --rates 0.01 --seeds 1 --arms bn an-k5 bn-se"
    code, table, _ = run_script(SCRIPT, *command("relatives98", prepared_set, tmp_path, options))
    assert code == 0 and "| an-k5 − bn |" in table and "| bn-se − bn |" in table
    assert {row["status"] for row in read_rows(tmp_path / "relatives98.csv")} == {"finished"}


def test_a_suite_of_lengths_shares_its_tuning_runs(run_script, prepared_set, tmp_path):
    options = "--width 2 --limit 8 --tune-epochs 1 --seeds 2 --epochs 3 2 --arms none bn"
    code, output, _ = run_script(SCRIPT, *command("lengths98", prepared_set, tmp_path, options))
    assert code == 0

    rows = read_rows(tmp_path / "lengths98.csv")
    names = [row["run"] for row in rows]
    assert len(set(names)) == len(names), "a run is listed twice"

    lengths = [int(row["epochs"]) for row in rows if row["stage"] == "main"]
    assert lengths == [2] * 4 + [3] * 4

    heads, _, *lines = output.split("\n\n")[-2].splitlines()
    assert heads == "| epochs | width | seeds | none | bn | bn − none (95 % over faces) |"
    assert [line.split(" | ")[:3] for line in lines] == [["| 2", "2", "2"], ["| 3", "2", "2"]]

    titles = [f"98 points={tmp_path / 'lengths98.csv'}"] * 2
    picture = tmp_path / "lengths.png"
    assert run_script(ROWS, "lengths", "--out", picture, *titles)[0] == 0
    assert cv2.imread(str(picture)).std() > 10


def test_real_and_synthetic_faces_together(run_script, prepared_set, tmp_path, seeds):
    options = "--width 2 --epochs 2 --seeds 1 --rates 0.01 --limit 16"
    code, output, _ = run_script(SCRIPT, *command("domains", prepared_set, tmp_path, options))
    assert code == 0 and output.startswith("domains: 16 training, 8 test faces")
    assert "| sepbn-g1k3 − bn |" in output

    mixed = tmp_path / "synthetic" / f"{prepared_set.name}_8_and_8_synthetic"
    homes = {
        split: [path.parent.parent.name for path in load_faces(mixed, split).paths]
        for split in ("train", "test")
    }
    real = [prepared_set.name] * 8
    assert homes == {"train": real + ["synthetic"] * 8, "test": real}

    best, _, chance = output.strip().splitlines()[-1].strip("| ").split(" | ")[1:]
    assert 0.5 <= float(best) <= 1 and 0.5 <= float(chance) <= 1


def test_separability_is_the_area_under_the_roc_curve():
    random = np.random.default_rng(0)
    first, second = random.normal(0, 1, (30, 2, 1, 3)), random.normal(0, 1, (20, 2, 1, 3))
    first[:, 1, 0, 2] -= 10  # apart without an error, the other way round
    first[:, 0, 0, 0], second[:, 0, 0, 0] = 1, 1  # ties tell nothing
    found = liveness.separability(first, second)
    assert found.shape == (2, 1, 3) and found[1, 0, 2] == 1 and found[0, 0, 0] == 0.5
    wins = sum(a > b for a in first[:, 0, 0, 1] for b in second[:, 0, 0, 1]) / 600
    assert found[0, 0, 1] == pytest.approx(max(wins, 1 - wins))


def write_faces(path: Path, errors: np.ndarray, people: np.ndarray | None = None) -> Path:
    """Rows as a suite writes them: arms a and b with two seeds each; (2, 2, N) errors."""
    with path.open("w", encoding="utf-8") as file:
        writer = csv.writer(file)
        names = [f"{arm} seed {seed}" for arm in "ab" for seed in (0, 1)]
        writer.writerow(["test_face", *([] if people is None else ["person"]), *names])
        for face in range(errors.shape[-1]):
            who = [] if people is None else [people[face]]
            writer.writerow([face, *who, *errors[:, :, face].ravel()])
    return path


def test_intervals_from_rows_alone_over_faces_and_over_people(run_script, tmp_path):
    random = np.random.default_rng(0)
    people = np.repeat(np.arange(10), 20)
    errors = random.uniform(0.05, 0.2, (2, 2, 200))
    of_a_person = 0.02 * random.normal(size=10)  # what a network is worth depends on who it is
    errors[1] += of_a_person[people]
    plain = write_faces(tmp_path / "plain.csv", errors)
    code, words, _ = run_script(ROWS, "difference", plain, "a", "b")
    change = 100 * (errors[1].mean() - errors[0].mean())

    assert code == 0 and words.startswith(f"b − a: {change:+.2f} points (95 % over 200 faces ")
    assert "people" not in words

    known = write_faces(tmp_path / "known.csv", errors, people)
    words = run_script(ROWS, "difference", known, "a", "b")[1]
    intervals = [
        [float(number) for number in re.findall(r"[+-]\d+\.\d\d", part)]
        for part in words.partition("(")[2].split(";")
    ]
    assert "95 % over 10 people" in words

    (low, high), (person_low, person_high) = intervals
    assert person_high - person_low > 1.5 * (high - low)


def test_differences_run_by_run(run_script, tmp_path):
    runs = [
        *(("main", "finished", "a", 25, seed, nme) for seed, nme in ((0, 20.0), (1, 22.0))),
        *(("main", "finished", "b", 25, seed, nme) for seed, nme in ((0, 19.0), (1, 23.0))),
        ("main", "finished", "a", 50, 0, 12.0),
        ("main", "finished", "b", 50, 0, 9.0),
        ("main", "finished", "b", 50, 1, 1.0),  # a has no such run
        ("main", "diverged", "a", 100, 0, ""),
        ("tune", "finished", "b", 100, 0, 5.0),
    ]
    path = tmp_path / "runs.csv"
    with path.open("w", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["stage", "status", "arm", "epochs", "seed", "nme_percent", "width"])
        writer.writerows([*run, 8] for run in runs)

    code, output, _ = run_script(ROWS, "runs", path, "a", "b")
    lines = output.splitlines()
    assert code == 0
    assert lines[:3] == [
        "b − a, points by seed",
        "width 8, 25 epochs: -1.00, +1.00; mean +0.00",
        "width 8, 50 epochs: -3.00; mean -3.00",
    ]
    # Of 27 equally likely draws of three one is 3 times the worst, one 3 times the best.
    assert lines[3] == "all 3: mean -1.00, 95 % over runs -3.00 … +1.00; 2 below 0"


def test_people_of_few_faces_and_of_many_are_drawn_alike():
    means = differences.over_people(np.array([[0.1, 0.3, 0.5]]), ["x", "x", "y"])
    # x twice, x and y, y twice
    assert {round(float(mean), 9) for mean in means[0]} == {0.2, 0.3, 0.5}
    assert 0.2 < (means[0] == 0.5).mean() < 0.3


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        (None, "difference FILE a b", "No such file"),
        ("test_face,a seed 0\n0,0.1\n", "difference FILE a b", "has no arm 'b'; it has a"),
        ("test_face,a seed 0\n0,x\n", "lengths --out o.png t=FILE", "not a file of runs"),
        (
            "stage,status,arm,epochs,seed,nme_percent,width\nmain,finished,a,9,0,9,8\n",
            "runs FILE a b",
            "has no runs of both 'a' and 'b'",
        ),
    ],
)
def test_bad_rows_are_one_line(run_script, tmp_path, text, arguments, message):
    path = tmp_path / "rows.csv"
    if text is not None:
        path.write_text(text)
    complaint = refused(run_script, ROWS, *arguments.replace("FILE", str(path)).split())
    assert message in complaint and str(path) in complaint
