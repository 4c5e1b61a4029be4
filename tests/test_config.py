"""The command line of the training scripts and what it refuses."""

from __future__ import annotations

from dataclasses import fields

import pytest

from models.architecture import Architecture
from models.vanilla import NORMS
from training.config import TrainConfig, parse_arguments
from utils.files import UserError
from utils.schedule import temperature


def test_defaults_are_the_published_recipe():
    config, existing = parse_arguments([], sepbn=True)
    config = config.settled()

    assert (config.norm, config.sets, config.groups, config.temperature, config.run) == (
        "sepbn",
        3,
        2,
        30.0,
        "sepbn",
    )

    assert (config.epochs, config.warmup_epochs, config.batch_size, config.lr) == (
        2000,
        800,
        8,
        1e-3,
    )
    assert (config.momentum, config.weight_decay, config.width) == (0.9, 5e-4, 64)
    assert existing == {"resume": False, "overwrite": False}

    config.check()
    baseline = parse_arguments([], sepbn=False)[0].settled()

    assert (baseline.norm, baseline.run, baseline.sets, baseline.temperature) == (
        "bn",
        "baseline",
        None,
        None,
    )


def test_every_option_reaches_the_config():
    config, existing = parse_arguments(
        "--norm none --width 8 --epochs 50 --lr 2e-2 --mean-shape-init --limit 20 --resume".split(),
        sepbn=False,
    )

    assert config == TrainConfig(
        norm="none",
        width=8,
        epochs=50,
        lr=0.02,
        mean_shape_init=True,
        limit=20,
    )

    assert existing["resume"] and config.settled().warmup_epochs == 20


@pytest.mark.parametrize("norm", ["bn", "none"])
def test_only_sepbn_has_its_options(norm):
    config = TrainConfig(norm=norm, sets=3, groups=2, temperature=30.0, attention_grid=4).settled()
    assert (config.sets, config.groups, config.temperature, config.attention_grid) == (None,) * 4


def test_what_is_left_open_comes_from_the_file_or_from_the_recipe():
    file = {"norm": "sepbn", "width": 16, "sets": 5, "groups": 1, "temperature": 4.0}
    asked = TrainConfig(norm="sepbn", width=8)
    found = asked.settled(file | {"attention_grid": None})
    assert (found.width, found.sets, found.groups, found.temperature) == (8, 5, 1, 4.0)


@pytest.mark.parametrize(("epochs", "start"), [(1, 1), (4, 2), (50, 25), (60, 30), (2000, 30)])
def test_the_temperature_gets_down_to_one_in_every_run(epochs, start):
    config = TrainConfig(norm="sepbn", epochs=epochs).settled()
    assert config.temperature == start
    assert temperature(epochs - 1, start=config.temperature) == 1


@pytest.mark.parametrize(
    "argv", [["--sets", "3"], ["--norm", "sepbn"], ["--resume", "--overwrite"], ["--epoch", "5"]]
)
def test_wrong_usage_exits_with_two(run_script, argv):
    code, _, errors = run_script("trainBaseline.py", *argv)
    assert code == 2 and "usage:" in errors


@pytest.mark.parametrize("script", ["trainBaseline.py", "trainBaselineSepDyBN.py"])
def test_help_shows_defaults(run_script, script):
    code, output, _ = run_script(script, "--help")
    assert code == 0 and "(default: 2000)" in output and "--overwrite" in output
    assert ("--groups" in output) == (script == "trainBaselineSepDyBN.py")
    assert " ".join(output.split()).count("(default: 0)") == 3  # seed, eval-every, keep-every


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--epochs", "50", "--warmup-epochs", "50"],
            "--warmup-epochs 50 is not shorter than the run of 50 epochs",
        ),
        (["--epochs", "0"], "--epochs 0: must be at least 1"),
        (["--lr", "nan"], "--lr nan: must be a finite number"),
        (["--weight-decay", "-1"], "--weight-decay -1.0: must not be negative"),
        (["--temperature", "0.5"], "--temperature 0.5: must be at least 1"),
        (["--groups", "3"], "--groups 3 does not divide --width 64"),
        (["--limit", "0"], "--limit 0: must be at least 1"),
        (["--attention-grid", "3"], "--attention-grid 3: must be 1, 2 or 4"),
        (["--run", "a/b"], "--run 'a/b': must be a plain name"),
        (["--run", ".."], "--run '..': must be a plain name"),
        (["--run", ""], "--run '': must be a plain name"),
        (["--seed", str(2**63)], "must be below 2"),
        (["--width", "1" + "0" * 400], r"--width: must be below 2\*\*63"),
        (["--epochs", "-1" + "0" * 400], r"--epochs: must be below 2\*\*63"),
    ],
)
def test_values_no_run_could_use(argv, message):
    with pytest.raises(UserError, match=message):
        parse_arguments(argv, sepbn=True)[0].settled().check()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"norm": "none", "width": 64}, "(a published network)"),
        ({"norm": "bn", "width": 64}, "not published; the published baseline has no normalisation"),
        ({"norm": "sepbn", "width": 64, "sets": 3, "groups": 1}, "(a published network)"),
        (
            {"norm": "sepbn", "width": 64, "sets": 3, "groups": 2},
            "the released code has G = 1",
        ),
        ({"norm": "sepbn", "width": 64, "sets": 4, "groups": 1}, "not a published setting"),
        (
            {"norm": "sepbn", "width": 64, "sets": 3, "groups": 2, "attention_grid": 4},
            "4 x 4 grid: a reconstruction",
        ),
        ({"norm": "none", "width": 16}, "width 16, not the published 64"),
    ],
)
def test_the_arm_in_words(settings, words):
    assert words in Architecture(num_landmarks=98, **settings).describe()


def test_every_norm_that_may_be_chosen_has_layers_and_words():
    (choices,) = (s.metadata["choices"] for s in fields(TrainConfig) if s.name == "norm")
    assert {"sepbn", *choices} == NORMS.keys()
