"""ONNX files: the same numbers in onnxruntime and in OpenCV as in torch, and what the file says
about itself.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import make_sets_differ, refused, write_checkpoint

from models.checkpoint import build_model, save

PLAIN, SEPBN = {"sets": None, "groups": None}, {"norm": "sepbn", "sets": 3, "groups": 2}
ARMS = {
    "none": PLAIN | {"norm": "none"},
    "bn": PLAIN | {"norm": "bn"},
    "sepbn1": SEPBN | {"groups": 1},
    "sepbn2": SEPBN,
    "grid": SEPBN | {"attention_grid": 4},
}
needs_packages = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="onnx, onnxscript or onnxruntime is not installed",
)


def export_checkpoint(path: Path, arm: str) -> torch.nn.Module:
    """A small network whose statistics and mapping sets are all different; returns it in evaluation
    mode.
    """
    settings = {"num_landmarks": 98, "width": 4, "temperature": 2.0} | ARMS[arm]
    torch.manual_seed(5)
    model = build_model(settings)
    make_sets_differ(model)
    write_checkpoint(path, model, **settings, resample="area", run="tiny")

    return model.eval()


@needs_packages
@pytest.mark.parametrize("arm", ARMS)
def test_onnxruntime_and_opencv_agree_with_torch(arm, tmp_path, run_script):
    import onnx
    import onnxruntime

    model = export_checkpoint(tmp_path / "final.pt", arm)
    file = tmp_path / "net.onnx"
    code, output, errors = run_script("export.py", tmp_path / "final.pt", "--onnx", file)

    assert code == 0, errors
    assert "crop px" in output

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    net = cv2.dnn.readNetFromONNX(str(file))

    for batch in (1, 3, 17):  # one file, one session: the batch size is open
        crops = torch.rand(batch, 3, 128, 128) * 2 - 1
        with torch.no_grad():
            expected = model(crops).numpy()

        assert (
            np.abs(session.run(["landmarks"], {"crops": crops.numpy()})[0] - expected).max() <= 1e-3
        )
        net.setInput(crops.numpy())
        assert np.abs(net.forward() - expected).max() <= 1e-3

    proto = onnx.load(file)
    assert "BatchNormalization" not in {node.op_type for node in proto.graph.node}

    said = {entry.key: entry.value for entry in proto.metadata_props}
    assert said["input_size"] == "128"
    assert said["channel_order"] == "RGB"
    assert said["scheme"] == "WFLW-98"

    assert said["scaling"] == "(x - 127.5) / 128, x in 0..255"
    assert said["resample"] == "area"
    assert said["run"] == "tiny"

    assert said["crop_rule"] and said["arm"]
    # no paths of this disk
    assert str(Path(__file__).parent.parent).encode() not in file.read_bytes()


@needs_packages
def test_a_network_that_answers_nonsense_is_not_written(tmp_path, run_script):
    model = export_checkpoint(tmp_path / "good.pt", "none")
    with torch.no_grad():
        model.fc2.weight.fill_(3e38)  # finite, but no answer is

    content = torch.load(tmp_path / "good.pt", weights_only=True)
    save(tmp_path / "bad.pt", content | {"model": model.state_dict()})
    code, _, errors = run_script("export.py", tmp_path / "bad.pt", "--onnx", tmp_path / "net.onnx")

    assert code == 1 and errors.count("error:") == 1 and "not written" in errors
    assert not (tmp_path / "net.onnx").exists()


def test_missing_packages_are_named_in_one_line(tmp_path, run_script, monkeypatch):
    find = importlib.util.find_spec

    def absent(name: str, *rest: object) -> object:
        return None if "onnx" in name else find(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", absent)
    line = refused(run_script, "export.py", tmp_path / "final.pt", "--onnx", tmp_path / "net.onnx")
    assert line.endswith("not installed; pip install onnx onnxscript onnxruntime")


@needs_packages
def test_the_checkpoint_is_never_overwritten(tmp_path, run_script):
    checkpoint = tmp_path / "final.pt"
    export_checkpoint(checkpoint, "none")
    before = checkpoint.read_bytes()
    (tmp_path / "soft.onnx").symlink_to("final.pt")
    os.link(checkpoint, tmp_path / "hard.onnx")

    for name in ("final.pt", "soft.onnx", "hard.onnx"):
        code, _, errors = run_script("export.py", checkpoint, "--onnx", tmp_path / name)
        assert code == 1 and "is the checkpoint itself" in errors and errors.count("\n") == 1
        assert (tmp_path / name).read_bytes() == before


@needs_packages
def test_what_is_no_regular_file_is_not_replaced(tmp_path, run_script):
    export_checkpoint(tmp_path / "final.pt", "none")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to(os.devnull)
    (tmp_path / "folder").mkdir()

    for name in ("pipe", "null", "folder"):
        code, _, errors = run_script("export.py", tmp_path / "final.pt", "--onnx", tmp_path / name)
        assert code == 1 and "it is no regular file" in errors and errors.count("\n") == 1

    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "null").is_symlink()
