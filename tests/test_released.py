"""Networks that are given away: packed, found by name, loaded by torch.hub, trained further."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, load_script, write_checkpoint

from dataset.faces import load_faces
from dataset.landmarks import EYELIDS_68, to_ibug_68
from evaluation.evaluate import face_errors, find_checkpoints
from models.checkpoint import load_model, read, save
from prediction.predictor import LandmarkPredictor

PRIVATE = {
    "command": "trainBaselineSepDyBN.py --data /home/somebody/faces",
    "data": "/home/somebody/faces",
    "machine": {"cpu": "somebody's"},
    "init": "/home/somebody/other.pt",
    "commit": "0" * 40,
    "device": "auto",
}


@pytest.fixture
def run(tmp_path) -> Path:
    """Folder of a finished run whose settings say where it was made."""
    final = write_checkpoint(tmp_path / "runs" / "somebodys" / "final.pt")
    content = read(final)
    content["config"] |= PRIVATE | {"epochs": 25, "seed": 3}
    save(final, content)

    return final.parent


def test_a_packed_network_is_small_and_nearly_the_same(run, prepared_set, run_script, tmp_path):
    out = tmp_path / "small16.pt"
    code, output, errors = run_script("research/pack.py", run, "--out", out, "--data", prepared_set)

    assert code == 0 and not errors
    assert f"sha256 {hashlib.sha256(out.read_bytes()).hexdigest()}" in output

    before, after = map(float, re.findall(r"([\d.]+) % (?:before|after)", output))
    assert abs(before - after) <= 0.02 and "n = 8" in output
    assert out.stat().st_size < 0.6 * (run / "final.pt").stat().st_size

    packed, original = load_model(out), load_model(run / "final.pt")
    assert packed.name == "small16" and packed.config["epochs"] == 25

    for name, tensor in original.model.state_dict().items():
        other = packed.model.state_dict()[name]
        assert other.dtype == tensor.dtype
        exact = tensor.half().to(tensor.dtype) if tensor.dim() > 1 else tensor
        assert torch.equal(other, exact), name

    # nor does it say where it was made
    assert set(read(out)) == {"model", "config", "format"}
    assert not set(packed.config) & set(PRIVATE)
    for word in (b"somebody", b"trainBaseline", bytes(str(tmp_path), "ascii")):
        assert word not in out.read_bytes()


def test_what_cannot_be_packed_is_named(run, prepared_set, run_script, tmp_path):
    final, last, out = run / "final.pt", run / "last.pt", tmp_path / "x.pt"
    content = read(final)
    weights, settings = content["model"], content["config"]

    def complaint(source: Path, target: Path = out, *options: object) -> str:
        before = final.read_bytes()
        code, _, line = run_script("research/pack.py", source, "--out", target, *options)
        assert code == 1 and line.count("\n") == 1
        assert final.read_bytes() == before and not out.exists()
        return line

    assert "own checkpoint" in complaint(run, final)
    save(last, content | {"training": {}})
    assert "not the final.pt of a finished run" in complaint(last)

    save(final, content | {"config": settings | {"hostname": "somebodys"}})
    assert "hostname" in complaint(run)

    too_large = weights["fc1.weight"].clone()
    too_large[0, 0] = 1e6  # floating point 16 ends at 65,504
    save(final, content | {"model": weights | {"fc1.weight": too_large}})
    assert "fc1.weight" in complaint(run)

    # large numbers that cancel: their rounding does not
    for name in ("fc1.weight", "fc2.weight"):
        weights[name][:] = 0
    weights["fc2.weight"][:, 0], weights["fc1.bias"][0] = 2049.0, 1.0
    weights["fc2.bias"][:] = -2049.0 + 60
    save(final, content)
    assert "differs by more than 0.02" in complaint(run, out, "--data", prepared_set)


def test_networks_beside_the_runs_are_found_by_name(tmp_path, run):
    folder = tmp_path / "checkpoints"
    for name in ("sepbn16.pt", "bn16.pt", "mine/final.pt", "published.pth"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(run / "final.pt", folder / name)

    found = [str(path.relative_to(folder)) for path in find_checkpoints(folder)]
    assert found == ["mine/final.pt", "bn16.pt", "sepbn16.pt", "published.pth"]


def test_every_setting_of_a_training_may_be_packed(run_script, prepared_set, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--data", prepared_set, "--width", 2, "--epochs", 1]
    assert run_script("trainBaselineSepDyBN.py", *options)[0] == 0
    assert run_script("research/pack.py", "checkpoints/sepbn", "--out", "packed.pt")[0] == 0
    assert bytes(str(tmp_path), "ascii") not in Path("packed.pt").read_bytes()


HUB = """
import sys, numpy as np, torch, utils
predictor = torch.hub.load(sys.argv[1], "sepbn_landmarks", source="local", device="cpu")
network = torch.hub.load(sys.argv[1], "sepbn_vanilla", source="local", pretrained=True)
fresh = torch.hub.load(sys.argv[1], "sepbn_vanilla", source="local", width=4, num_sets=2)
picture = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
np.savez(
    sys.argv[2],
    landmarks=predictor(picture, [[10, 10, 79, 79]]),
    output=network(torch.zeros(1, 3, 128, 128)).detach().numpy(),
    mode=[network.training, fresh.training],
    fresh=fresh(torch.zeros(2, 3, 128, 128)).shape,
    sets=fresh.bn1.num_sets,
)
predictor(picture, [[10, 10, 79, 79]])

import models, models.mine

assert utils.OWN and models.mine.OWN and sys.modules["utils"] is utils
"""


def test_torch_hub_loads_the_predictor_and_the_network(run, tmp_path):
    # a clone with this network in the place of the one that comes with the code
    clone = tmp_path / "clone"
    for room in ("models", "prediction", "dataset", "utils"):
        shutil.copytree(
            ROOT / room,
            clone / room,
            ignore=shutil.ignore_patterns("__pycache__", "WFLW*", "synthetic_set*"),
        )

    shutil.copy(ROOT / "hubconf.py", clone)
    (clone / "checkpoints").mkdir()
    shutil.copy(run / "final.pt", clone / "checkpoints/sepbn16.pt")

    # elsewhere, and in another process, so that nothing but torch.hub finds the modules; with
    # modules of a user's own that have the same names, one imported before and one after
    (tmp_path / "utils.py").write_text("OWN = True")
    (tmp_path / "models").mkdir()
    (tmp_path / "models/mine.py").write_text("OWN = True")
    answer = tmp_path / "answer.npz"
    command = [sys.executable, "-c", HUB, str(clone), str(answer)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr

    answers = np.load(answer)
    picture = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    expected = LandmarkPredictor(run / "final.pt", device="cpu")(picture, [[10, 10, 79, 79]])
    assert np.abs(answers["landmarks"] - expected).max() < 1e-3

    model = load_model(run / "final.pt").model
    with torch.no_grad():
        assert np.abs(answers["output"] - model(torch.zeros(1, 3, 128, 128)).numpy()).max() < 1e-3

    assert answers["mode"].tolist() == [False, True]
    assert answers["fresh"].tolist() == [2, 196] and answers["sets"] == 2


def numbers(text: str) -> list[float]:
    return [float(word) for word in re.findall(r"-?\d+\.\d+", text.replace("−", "-"))]


def test_released_prints_errors_with_intervals_by_set_and_attribute(
    run, prepared_set, run_script, tmp_path
):
    networks = run / "final.pt", write_checkpoint(tmp_path / "other" / "final.pt", seed=1)
    sets = ["--set", "some", prepared_set, "test", "--set", "more", prepared_set, "train"]
    code, output, errors = run_script("research/released.py", *networks, *sets)
    assert code == 0 and not errors

    faces = load_faces(prepared_set, "test")
    nmes = [100 * face_errors(load_model(p).model, faces, device="cpu") for p in networks]
    lines = {line.split("|")[1].strip(): line for line in output.splitlines() if "|" in line}
    assert "| 8 |" in lines["some"] and "more" in lines

    found = numbers(lines["some"])
    assert found[0] == round(nmes[0].mean(), 2) and found[3] == round(nmes[1].mean(), 2)
    assert abs(found[6] - (nmes[0] - nmes[1]).mean()) < 0.006
    assert found[1] < found[0] < found[2] and found[7] < found[6] < found[8]

    blurred = faces.attributes[:, 5]
    assert blurred.any() and f"| {blurred.sum()} |" in lines["some, blur"]
    assert numbers(lines["some, blur"])[0] == round(nmes[0][blurred].mean(), 2)


def test_released_tries_98_points_on_the_60_that_68_share():
    script = load_script("research/released.py")
    points = np.random.default_rng(0).uniform(0, 127, (3, 98, 2))
    truth = to_ibug_68(points) + (3, 4)
    truth[:, list(EYELIDS_68)] += 50  # the other eight
    apart = np.linalg.norm(points[:, 60] - points[:, 72], axis=1)
    np.testing.assert_allclose(script.percent_errors(points, truth), 100 * 5 / apart)


def test_released_sorts_synthetic_faces_by_their_skin(run, run_script):
    code, output, _ = run_script("research/released.py", run / "final.pt", "--tones", 12)
    assert code == 0
    counts = [int(line.split("|")[2]) for line in output.splitlines() if "°" in line]
    assert len(counts) == 6 and sum(counts) == 12


def test_the_typology_angle_of_known_colours():
    angle = load_script("research/released.py").typology_angle
    # L* = 50 gives 0 whatever b* is; brighter skin is above, darker below
    colours = np.array([[205, 226, 255], [98, 117, 141], [30, 37, 54]], np.float32)
    light, middle, dark = angle(colours)
    assert light > 55 and abs(middle) < 10 and dark < -30


def test_offsets_of_definition_are_taken_away():
    script = load_script("research/released.py")
    generator = np.random.default_rng(0)
    truth = generator.uniform(0, 127, (6, 98, 2))
    truth[:, 60], truth[:, 72] = (20, 50), (60, 50)  # outer eye corners, 40 px apart
    shifts = generator.normal(0, 2, (98, 2))
    rest, offsets = script.without_offsets(truth + shifts, truth)

    np.testing.assert_allclose(rest, 0, atol=1e-9)
    np.testing.assert_allclose(offsets, 100 * shifts / 40)

    # What differs from half to half is no offset: it stays, and is counted twice.
    alternating = np.array([1.0, -1.0] * 3)[:, None, None]
    rest, _ = script.without_offsets(truth + 4 * alternating, truth)
    np.testing.assert_allclose(rest, 100 * 8 * np.sqrt(2) / 40)
