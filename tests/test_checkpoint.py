"""Checkpoints: strict, safe, whole; released files are recognised from their keys."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from conftest import build_model

from models import checkpoint
from models.architecture import Architecture
from models.checkpoint import load_model
from models.vanilla import released_state_dict
from utils.files import UserError

CONFIG = {"norm": "sepbn", "num_landmarks": 98, "width": 4, "sets": 3, "groups": 2}
CONFIG |= {"resample": "area", "released_geometry": False, "run": "mine"}


def scramble(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Random weights and running statistics, so that nothing is at its initial value."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if value.is_floating_point() and "temperature" not in name:
            value.copy_(
                torch.rand(value.shape, generator=generator) * 0.2
                + (0.5 if "running_var" in name else 0.0)
            )

    return model.eval()


def own_file(path, config=CONFIG):
    state = scramble(build_model(config)).state_dict()
    checkpoint.save(path, {"model": state, "config": config, "format": 1})
    return path


def complaint(path: Path) -> str:
    """The one line, about the file, that refuses it."""
    with pytest.raises(UserError) as error:
        load_model(path)

    line = str(error.value)
    assert "\n" not in line and str(path) in line and len(line) < 600

    return line


def assert_same_answers(one: torch.nn.Module, other: torch.nn.Module) -> None:
    faces = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(one(faces), other(faces), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("grid", [None, 4])
def test_round_trip_of_our_own_form(tmp_path, grid):
    config = CONFIG | ({"attention_grid": grid} if grid else {})  # older files say nothing of it
    loaded = load_model(own_file(tmp_path / "final.pt", config))
    assert loaded.name == "mine" and not loaded.model.training
    assert loaded.config["format_name"] == "own" and loaded.config["resample"] == "area"
    assert loaded.config["attention_grid"] == grid
    assert ("4 x 4 grid" in loaded.config["arm"]) == bool(grid) and "G = 2" in loaded.config["arm"]
    for name, value in scramble(build_model(config)).state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("sets", ["none", "bn", 3, 5])
def test_released_files_are_recognised_and_compute_the_same(tmp_path, sets, prefix):
    size = {"sets": sets, "groups": 1} if isinstance(sets, int) else {"norm": sets, "groups": None}
    config = CONFIG | {"sets": None, "num_landmarks": 68, "temperature": 1.0} | size
    model = scramble(build_model(config))
    state = {prefix + key: value for key, value in released_state_dict(model).items()}
    torch.save(state, tmp_path / "net_final.pth")

    loaded = load_model(tmp_path / "net_final.pth")
    for name in ("norm", "sets", "groups", "width", "num_landmarks"):
        assert loaded.config[name] == config[name], name

    assert loaded.config["format_name"] == "released" and loaded.name == "net_final"
    assert_same_answers(loaded.model, model)


@pytest.mark.parametrize("grid", [None, 1, 2, 4])
def test_a_bare_state_dict_of_ours_computes_the_same(tmp_path, grid):
    config = CONFIG | {"attention_grid": grid}
    model = scramble(build_model(config))
    torch.save(model.state_dict(), tmp_path / "bare.pt")

    loaded = load_model(tmp_path / "bare.pt")
    for key in ("norm", "width", "sets", "groups", "num_landmarks", "attention_grid"):
        assert loaded.config[key] == config[key], key

    assert loaded.config["format_name"] == "own" and not loaded.config["released_geometry"]
    assert_same_answers(loaded.model, model)


SHAPES = [(norm, 2, None, None, None) for norm in ("bn", "none")] + [
    ("sepbn", *size, grid)
    for size in ((4, 3, 2), (10, 1, 1), (6, 5, 3), (3, 2, 3))
    for grid in (None, 1, 4)
]


@pytest.mark.parametrize(("norm", "width", "sets", "groups", "grid"), SHAPES)
def test_the_architecture_follows_from_the_shapes(norm, width, sets, groups, grid):
    architecture = Architecture(norm, 68, width, sets, groups, grid)
    assert Architecture.from_state_dict(architecture.build().state_dict()) == architecture


class Planted:
    """A pickle that would run code."""

    def __reduce__(self):
        return os.mkdir, (os.environ["PLANTED"],)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.setenv("PLANTED", str(tmp_path / "ran"))
    torch.save({"model": Planted(), "config": {}}, tmp_path / "zip.pt")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Planted()))

    for name in ("zip.pt", "plain.pth"):
        assert "refused" in complaint(tmp_path / name)

    assert not (tmp_path / "ran").exists()


def test_missing_truncated_and_foreign_files(tmp_path):
    assert "does not exist" in complaint(tmp_path / "absent.pt")

    whole = own_file(tmp_path / "final.pt").read_bytes()
    for share in (0.0, 0.1, 0.5, 0.99):
        (tmp_path / "part.pt").write_bytes(whole[: int(len(whole) * share)])
        complaint(tmp_path / "part.pt")

    (tmp_path / "text.pt").write_text("hello")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
    complaint(tmp_path / "text.pt")
    assert "not a checkpoint" in complaint(tmp_path / "list.pt")
    assert "no checkpoint of this project or of the released" in complaint(tmp_path / "other.pt")


PARTS = [
    *({"config": wrong} for wrong in ([1], None, {}, {5: 6})),
    *({"config": CONFIG | {name: None}} for name in ("width", "sets")),
    *({"config": CONFIG | {name: 2}} for name in ("width", "sets", "attention_grid")),
    *({"config": CONFIG | {"norm": wrong}} for wrong in ("foo", "bn", ["sepbn"])),
    {"config": CONFIG | {"groups": 4}},
    {"config": CONFIG | {"num_landmarks": 68}},
    {"config": CONFIG | {"box_scale": "x"}},
    {"config": {name: value for name, value in CONFIG.items() if name != "resample"}},
    *({"model": wrong} for wrong in ([1], None, {}, {5: torch.zeros(1)}, {"conv1.weight": 3})),
    *({"format": wrong} for wrong in (2, "x\ny", torch.zeros(3))),
]


@pytest.mark.parametrize("parts", PARTS, ids=str)
def test_parts_that_cannot_be(tmp_path, parts):
    path = own_file(tmp_path / "final.pt")
    torch.save(checkpoint.read(path) | parts, path)
    line = complaint(path)
    assert "format" in line if "format" in parts else "damaged" in line


@pytest.mark.parametrize("where", ["torch.load", "models.architecture.Architecture.build"])
def test_a_lack_of_memory_is_no_damage(tmp_path, monkeypatch, where):
    def fail(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 GB")

    path = own_file(tmp_path / "final.pt")
    monkeypatch.setattr(where, fail)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        checkpoint.load_model(path)


WEIGHTS = [
    ("conv3.weight", lambda tensor: tensor * torch.nan, "conv3.weight is not finite"),
    ("fc1.bias", lambda tensor: tensor.double() + 1e300, "fc1.bias is not finite"),
    ("conv1.weight", lambda tensor: tensor[:, :2], "conv1.weight"),
    ("conv1.weight", lambda tensor: tensor[:0], ""),
    ("fc2.weight", lambda tensor: tensor[:-1], "fc2.weight"),
    ("bn6.fc2.weight", lambda tensor: tensor[:-1], ""),
    ("conv3.weight", lambda tensor: tensor[:, :1].contiguous(), "conv3.weight"),
    ("conv3.bias", None, "conv3.bias"),
    ("extra.weight", lambda _: torch.zeros(1), "extra.weight"),
]


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize(("name", "change", "words"), WEIGHTS)
def test_weights_that_no_network_has(tmp_path, name, change, words, bare):
    content = checkpoint.read(own_file(tmp_path / "mine.pt"))
    weight = content["model"].pop(name, None)
    if change:
        content["model"][name] = change(weight)

    torch.save(content["model"] if bare else content, tmp_path / "mine.pt")
    assert words in complaint(tmp_path / "mine.pt")


def test_loading_leaves_the_random_generator_alone(tmp_path):
    path = own_file(tmp_path / "final.pt")
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    load_model(path)
    assert torch.equal(torch.rand(3), expected)
