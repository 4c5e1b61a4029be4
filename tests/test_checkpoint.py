"""Checkpoints: strict, safe, whole; released files are recognised from their keys."""

from __future__ import annotations

import errno
import os
import pickle

import pytest
import torch

from models import BaselineSepDyBN, checkpoint
from models.checkpoint import build_model, load_model
from models.vanilla import released_state_dict
from utils.files import InputError

CONFIG = {
    "norm": "sepbn",
    "num_landmarks": 98,
    "width": 4,
    "sets": 3,
    "groups": 2,
    "resample": "area",
    "released_geometry": False,
    "run": "mine",
}


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
    content = {
        "model": scramble(build_model(config)).state_dict(),
        "config": config,
        "format": 1,
    } | changes
    checkpoint.save(path, content)
    return path


def one_line(error) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_round_trip_of_our_own_form(tmp_path):
    path = own_file(tmp_path / "final.pt")
    loaded = load_model(path)
    assert (
        loaded.name == "mine"
        and loaded.config["format_name"] == "own"
        and loaded.config["resample"] == "area"
    )
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
        with pytest.raises(InputError, match="refused") as error:
            load_model(tmp_path / name)

        assert one_line(error)

    assert not (tmp_path / "ran").exists()


def test_missing_truncated_and_foreign_files(tmp_path):
    with pytest.raises(InputError, match="no such checkpoint file"):
        load_model(tmp_path / "absent.pt")

    whole = own_file(tmp_path / "final.pt").read_bytes()
    for share in (0.0, 0.1, 0.5, 0.99):
        (tmp_path / "part.pt").write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(InputError, match="part.pt: ") as error:
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
        with pytest.raises(InputError, match=words) as error:
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
        with pytest.raises(InputError, match=f"do not fit the network: .*{words}") as error:
            load_model(own_file(tmp_path / f"{name}.pt", model=model))

        assert one_line(error)

    with pytest.raises(InputError, match="its config lacks width"):
        content = {
            "model": state,
            "config": {k: v for k, v in CONFIG.items() if k != "width"},
            "format": 1,
        }

        checkpoint.save(tmp_path / "config.pt", content)
        load_model(tmp_path / "config.pt")

    with pytest.raises(InputError, match="format 2, this code reads format 1"):
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
    with pytest.raises(InputError, match="the disk is full"):
        own_file(path, run="other")

    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("width", "a", "width"),
        ("width", 10_000_000, "width"),
        ("sets", -1, "sets"),
        ("norm", "foo", "norm"),
        ("groups", None, "groups"),
        ("num_landmarks", 68, "num_landmarks"),
        ("run", 5, "run"),
        ("resample", "cubic", "resample"),
        ("resample", None, "resample"),
        ("released_geometry", "no", "released_geometry"),
    ],
)
def test_a_config_that_lies_is_refused_by_name(tmp_path, name, value, words):
    path = own_sepbn_file(tmp_path)
    content = checkpoint.read(path)
    content["config"][name] = value
    checkpoint.save(path, content)

    with pytest.raises(InputError, match=words) as error:
        checkpoint.load_model(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("bad", [float("nan"), "int32", "list", "claims"])
def test_weights_that_are_none_are_refused(tmp_path, bad):
    path = own_sepbn_file(tmp_path)
    content = checkpoint.read(path)
    weight = content["model"]["conv2.weight"]
    if bad == "int32":
        weight = weight.int()
    elif bad == "list":
        weight = weight.tolist()
    elif bad == "claims":  # a few bytes that say they are terabytes
        weight = torch.zeros(1).expand(10_000_000, 10_000, 3, 3)
    else:
        weight = torch.full_like(weight, bad)
    content["model"]["conv2.weight"] = weight
    checkpoint.save(path, content)

    with pytest.raises(InputError, match="conv2.weight") as error:
        checkpoint.load_model(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("grid", [None, 1, 2, 4])
def test_a_bare_state_dict_of_ours_is_recognised(tmp_path, grid):
    model = BaselineSepDyBN(4, 2, attention_grid=grid, num_landmarks=68, width=8)
    path = tmp_path / "bare.pt"
    torch.save(model.state_dict(), path)
    loaded = checkpoint.load_model(path)

    assert {name: loaded.config[name] for name in ("norm", "sets", "groups", "attention_grid")} == {
        "norm": "sepbn",
        "sets": 4,
        "groups": 2,
        "attention_grid": grid,
    }
    assert loaded.config["released_geometry"] is False
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value)


def own_sepbn_file(folder):
    """A small SepBN network in our own form."""
    config = {"norm": "sepbn", "num_landmarks": 98, "width": 4, "sets": 3, "groups": 2}
    config |= {"attention_grid": None, "run": "own", "resample": "nearest"}
    config |= {"released_geometry": False}
    model = checkpoint.build_model(config)
    path = folder / "own.pt"
    content = {"model": model.state_dict(), "config": config, "format": checkpoint.FORMAT}
    checkpoint.save(path, content)

    return path
