"""Checkpoints: strict, safe, whole; released files are recognised from their keys."""

from __future__ import annotations

import errno
import os
import pickle

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


def own_file(path, config=CONFIG, **changes):
    content = {"model": scramble(build_model(config)).state_dict(), "config": config, "format": 1}
    checkpoint.save(path, content | changes)
    return path


def one_line(error) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_round_trip_of_our_own_form(tmp_path):
    path = own_file(tmp_path / "final.pt")
    loaded = load_model(path)
    assert loaded.name == "mine"
    assert loaded.config["format_name"] == "own"
    assert loaded.config["resample"] == "area"
    assert "G = 2" in loaded.config["arm"] and not loaded.model.training
    for name, value in scramble(build_model(CONFIG)).state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value)


def test_attention_on_a_grid_comes_back(tmp_path):
    config = CONFIG | {"attention_grid": 4}
    loaded = load_model(own_file(tmp_path / "grid.pt", config))
    assert "4 x 4 grid" in loaded.config["arm"] and loaded.config["attention_grid"] == 4
    assert load_model(own_file(tmp_path / "older.pt")).config["attention_grid"] is None

    faces = torch.randn(2, 3, 128, 128)
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.model(faces), scramble(build_model(config))(faces), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(
    "settings",
    [
        {"norm": "none"},
        {"norm": "bn"},
        {"norm": "sepbn", "sets": 3, "groups": 1},
        {"norm": "sepbn", "sets": 5, "groups": 1},
    ],
    ids=lambda settings: f"{settings['norm']}{settings.get('sets', '')}",
)
def test_released_files_are_recognised_and_compute_the_same(tmp_path, settings, prefix):
    config = CONFIG | {"sets": None, "groups": None, "num_landmarks": 68} | settings
    model = scramble(build_model(config | {"temperature": 1.0}))
    torch.save(
        {prefix + key: value for key, value in released_state_dict(model).items()},
        tmp_path / "net_final.pth",
    )
    loaded = load_model(tmp_path / "net_final.pth")
    for name in ("norm", "sets", "groups", "width", "num_landmarks"):
        assert loaded.config[name] == config[name], name

    assert loaded.config["format_name"] == "released" and loaded.name == "net_final"
    faces = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(loaded.model(faces), model(faces), rtol=1e-4, atol=1e-5)


class Planted:
    """A pickle that would run code."""

    def __reduce__(self):
        return os.mkdir, (os.environ["PLANTED"],)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.setenv("PLANTED", str(tmp_path / "ran"))
    torch.save({"model": Planted(), "config": {}}, tmp_path / "zip.pt")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Planted()))

    for name in ("zip.pt", "plain.pth"):
        with pytest.raises(UserError, match="refused") as error:
            load_model(tmp_path / name)

        assert one_line(error)

    assert not (tmp_path / "ran").exists()


def test_missing_truncated_and_foreign_files(tmp_path):
    with pytest.raises(UserError, match="no such checkpoint file"):
        load_model(tmp_path / "absent.pt")

    whole = own_file(tmp_path / "final.pt").read_bytes()
    for share in (0.0, 0.1, 0.5, 0.99):
        (tmp_path / "part.pt").write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(UserError, match="part.pt: ") as error:
            load_model(tmp_path / "part.pt")

        assert one_line(error)

    (tmp_path / "text.pt").write_text("hello")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")

    for name, words in (
        ("text.pt", "text.pt"),
        ("list.pt", "holds a list"),
        ("other.pt", "neither a checkpoint"),
    ):
        with pytest.raises(UserError, match=words) as error:
            load_model(tmp_path / name)

        assert one_line(error)


def test_weights_that_do_not_fit(tmp_path):
    state = scramble(build_model(CONFIG)).state_dict()
    missing = {key: value for key, value in state.items() if key != "conv3.bias"}
    wrong = state | {"fc1.bias": torch.zeros(7)}

    for name, model, words in (
        ("missing", missing, "conv3.bias"),
        ("unexpected", state | {"extra.weight": torch.zeros(1)}, "extra.weight"),
        ("shape", wrong, "fc1.bias"),
    ):
        with pytest.raises(UserError, match=f"do not fit the network: .*{words}") as error:
            load_model(own_file(tmp_path / f"{name}.pt", model=model))

        assert one_line(error)

    with pytest.raises(UserError, match="its config says width = None"):
        config = {name: value for name, value in CONFIG.items() if name != "width"}
        content = {"model": state, "config": config, "format": 1}
        checkpoint.save(tmp_path / "config.pt", content)
        load_model(tmp_path / "config.pt")

    with pytest.raises(UserError, match="format 2, this code reads format 1"):
        load_model(own_file(tmp_path / "format.pt", format=2))


def test_loading_leaves_the_random_generator_alone(tmp_path):
    path = own_file(tmp_path / "final.pt")
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    load_model(path)
    assert torch.equal(torch.rand(3), expected)


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = own_file(tmp_path / "last.pt")
    before = path.read_bytes()

    def full(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        own_file(path, run="other")

    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("attention_grid", [None, 1, 4])
@pytest.mark.parametrize(("width", "sets", "groups"), [(4, 3, 2), (10, 1, 1), (6, 5, 3), (3, 2, 3)])
def test_the_architecture_follows_from_the_shapes(width, sets, groups, attention_grid):
    architecture = Architecture("sepbn", 68, width, sets, groups, attention_grid)
    assert Architecture.from_state_dict(architecture.build().state_dict()) == architecture


@pytest.mark.parametrize("norm", ["bn", "none"])
def test_the_architecture_without_sepbn_follows_from_the_shapes(norm):
    architecture = Architecture(norm, 98, 2)
    assert Architecture.from_state_dict(architecture.build().state_dict()) == architecture


def test_a_bare_state_dict_of_ours_computes_the_same(tmp_path):
    for name, grid in (("plain", None), ("one", 1), ("two", 2), ("four", 4)):
        config = CONFIG | {"attention_grid": grid}
        model = scramble(build_model(config))
        torch.save(model.state_dict(), tmp_path / f"{name}.pt")
        loaded = load_model(tmp_path / f"{name}.pt")

        for key in ("norm", "width", "sets", "groups", "num_landmarks", "attention_grid"):
            assert loaded.config[key] == config.get(key), key

        assert loaded.config["format_name"] == "own" and not loaded.config["released_geometry"]
        faces = torch.randn(2, 3, 128, 128)
        with torch.no_grad():
            torch.testing.assert_close(loaded.model(faces), model(faces), rtol=1e-4, atol=1e-5)


LIES = {
    "width": ("a", 10_000_000, 4.0),
    "sets": (-1, None, True),
    "groups": (None, 4),
    "norm": ("foo", "bn", ["sepbn"]),
    "num_landmarks": (68, torch.tensor([1, 2])),
    "attention_grid": (2, {}),
    "run": (5,),
    "resample": (torch.zeros(2, 2), None, ["area"]),
    "released_geometry": ("no",),
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in LIES.items() for value in values]
)
def test_a_config_that_lies(tmp_path, monkeypatch, name, value):
    path = own_file(tmp_path / "final.pt")
    content = checkpoint.read(path)
    content["config"] = CONFIG | {name: value}
    torch.save(content, path)

    def build(*_, **__):
        raise AssertionError("a network was built before the config was looked at")

    monkeypatch.setattr(Architecture, "build", build)
    with pytest.raises(UserError, match="final.pt: its config ") as error:
        load_model(path)

    assert one_line(error)


@pytest.mark.parametrize(
    "parts",
    [
        {"config": [1]},
        {"config": None},
        {"config": {}},
        {"config": {5: 6}},
        {"model": [1]},
        {"model": None},
        {"model": {}},
        {"model": {5: torch.zeros(1)}},
        {"model": {"conv1.weight": 3}},
        {"format": "x\ny"},
        {"format": torch.zeros(2, 2)},
    ],
    ids=str,
)
def test_parts_of_another_kind(tmp_path, parts):
    torch.save(checkpoint.read(own_file(tmp_path / "final.pt")) | parts, tmp_path / "final.pt")
    with pytest.raises(UserError, match="final.pt: ") as error:
        load_model(tmp_path / "final.pt")

    assert one_line(error)


WEIGHTS = [
    ("conv3.weight", lambda tensor: tensor * torch.nan, "is not finite"),
    ("fc1.bias", lambda tensor: tensor.double() + 1e300, "is not finite"),
    ("conv3.weight", lambda tensor: tensor.int(), "is torch.int32, not floating-point"),
    ("conv3.weight", lambda tensor: tensor.to(torch.complex64), "not floating-point"),
    ("conv3.weight", lambda tensor: tensor.to_sparse(), "is no ordinary tensor"),
    ("conv3.weight", lambda tensor: tensor.to("meta"), "is no ordinary tensor"),
    ("conv1.weight", lambda tensor: tensor[:, :2], "has the shape"),
    ("conv1.weight", lambda tensor: tensor[:0], "has the shape"),
    ("fc2.weight", lambda tensor: tensor[:-1], "not two for every landmark"),
    ("bn6.fc2.weight", lambda tensor: tensor[:-1], "do not share equally"),
    ("conv3.weight", lambda tensor: tensor[:, :1].contiguous(), "do not fit the network"),
]


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize(("name", "change", "words"), WEIGHTS)
def test_weights_that_no_network_has(tmp_path, name, change, words, bare):
    content = checkpoint.read(own_file(tmp_path / "mine.pt"))
    content["model"][name] = change(content["model"][name])
    torch.save(content["model"] if bare else content, tmp_path / "mine.pt")
    with pytest.raises(UserError, match=words) as error:
        load_model(tmp_path / "mine.pt")

    assert one_line(error)


@pytest.mark.parametrize("kind", [TypeError, AssertionError, AttributeError, MemoryError])
def test_whatever_torch_stumbles_over_is_one_line(tmp_path, monkeypatch, kind):
    path = own_file(tmp_path / "final.pt")

    def stumble(*_, **__):
        raise kind("of\ntwo lines")

    monkeypatch.setattr(torch, "load", stumble)
    with pytest.raises(UserError, match="truncated or not a checkpoint") as error:
        load_model(path)

    assert one_line(error)
