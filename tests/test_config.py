"""The command line of the training scripts and what it refuses."""

from __future__ import annotations

from dataclasses import fields

import pytest

from models.architecture import Architecture
from models.vanilla import NORMS
from training.config import TrainConfig, parse_arguments
from utils.schedule import temperature

PUBLISHED = {"epochs": 2000, "warmup_epochs": 800, "batch_size": 8, "lr": 1e-3}
PUBLISHED |= {"momentum": 0.9, "weight_decay": 5e-4, "width": 64}
BASELINE = {"norm": "bn", "run": "baseline", "sets": None, "temperature": None}
SEPBN = {"norm": "sepbn", "run": "sepbn", "sets": 3, "groups": 2, "temperature": 30.0}


@pytest.mark.parametrize(("sepbn", "own"), [(False, BASELINE), (True, SEPBN)])
def test_defaults_are_the_published_recipe(sepbn, own):
    config, existing = parse_arguments([], sepbn=sepbn)
    config.check()
    settled = config.settled()
    settled.check()
    for name, value in (PUBLISHED | own).items():
        assert getattr(settled, name) == value, name

    assert existing == {"resume": False, "overwrite": False}


def test_every_option_reaches_the_config():
    argv = "--norm none --width 8 --epochs 50 --lr 2e-2 --mean-shape-init --limit 20 --resume"
    config, existing = parse_arguments(argv.split(), sepbn=False)
    given = {"norm": "none", "width": 8, "epochs": 50, "lr": 0.02}
    assert config == TrainConfig(run="none", mean_shape_init=True, limit=20, **given)
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


@pytest.mark.parametrize("script", ["trainBaseline.py", "trainBaselineSepDyBN.py"])
def test_help_shows_defaults(run_script, script):
    code, output, _ = run_script(script, "--help")
    assert code == 0 and "(default: 2000)" in output and "--overwrite" in output
    assert ("--groups" in output) == (script == "trainBaselineSepDyBN.py")
    assert " ".join(output.split()).count("(default: 0)") == 3  # seed, eval-every, keep-every


@pytest.mark.parametrize(
    ("norm", "width", "sepbn", "words"),
    [
        ("none", 64, (), "(a published network)"),
        ("bn", 64, (), "not published; the published baseline has no normalisation"),
        ("none", 16, (), "width 16, not the published 64"),
        ("sepbn", 64, (3, 1), "(a published network)"),
        ("sepbn", 64, (3, 2), "the released code has G = 1"),
        ("sepbn", 64, (4, 1), "not a published setting"),
        ("sepbn", 64, (3, 2, 4), "4 x 4 grid: a reconstruction"),
    ],
)
def test_the_arm_in_words(norm, width, sepbn, words):
    assert words in Architecture(norm, 98, width, *sepbn).describe()


def test_every_norm_that_may_be_chosen_has_layers_and_words():
    (choices,) = (s.metadata["choices"] for s in fields(TrainConfig) if s.name == "norm")
    assert {"sepbn", *choices} == NORMS.keys()
