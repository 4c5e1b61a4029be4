"""ONNX files: the same numbers in onnxruntime and in OpenCV as in torch, and what the file says
about itself.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, build_model, make_sets_differ, refused, smooth_noise, write_checkpoint

from dataset.detector import FaceDetector
from models.checkpoint import save

PLAIN, SEPBN = {"sets": None, "groups": None}, {"norm": "sepbn", "sets": 3, "groups": 2}
ARMS = {
    "none": PLAIN | {"norm": "none"},
    "bn": PLAIN | {"norm": "bn"},
    "sepbn1": SEPBN | {"groups": 1},
    "sepbn2": SEPBN,
    "grid": SEPBN | {"attention_grid": 4},
}
SAID = {"input_size": "128", "channel_order": "RGB", "scheme": "WFLW-98", "resample": "area"}
SAID |= {"scaling": "(x - 127.5) / 128, x in 0..255", "run": "tiny"}
needs_packages = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="onnx, onnxscript or onnxruntime is not installed",
)


def export_checkpoint(path: Path, arm: str, **settings: object) -> torch.nn.Module:
    """A small network whose statistics and mapping sets are all different; returns it in evaluation
    mode.
    """
    settings = {"num_landmarks": 98, "width": 4, "temperature": 2.0, "resample": "area"} | settings
    settings |= ARMS[arm]
    torch.manual_seed(5)
    model = build_model(settings)
    make_sets_differ(model)
    write_checkpoint(path, model, **settings, run="tiny")

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

        (answer,) = session.run(["landmarks"], {"crops": crops.numpy()})
        assert np.abs(answer - expected).max() <= 1e-3
        net.setInput(crops.numpy())
        assert np.abs(net.forward() - expected).max() <= 1e-3

    proto = onnx.load(file)
    assert "BatchNormalization" not in {node.op_type for node in proto.graph.node}
    assert (proto.opset_import[0].version, proto.ir_version) == (18, 8)  # onnxruntime 1.16 reads it

    said = {entry.key: entry.value for entry in proto.metadata_props}
    assert said.items() >= SAID.items() and said["crop_rule"] and said["arm"]
    # no paths of this disk
    assert str(Path(__file__).parent.parent).encode() not in file.read_bytes()


@needs_packages
@pytest.mark.parametrize(("resample", "box_scale"), [("nearest", 1.0), ("area", 1.3)])
def test_the_example_without_torch_answers_as_predict_py_does(
    resample, box_scale, tmp_path, run_script
):
    export_checkpoint(tmp_path / "final.pt", "sepbn1", resample=resample, box_scale=box_scale)
    file = tmp_path / "net.onnx"
    assert run_script("export.py", tmp_path / "final.pt", "--onnx", file, "--opset", 18)[0] == 0

    picture = tmp_path / "a.png"
    cv2.imwrite(str(picture), smooth_noise(300, 400))
    # odd and not square, beyond the border, larger than the patch
    boxes = [[100, 60, 162, 117], [-20, -31, 70, 80], [150, 20, 380, 280], [40, 40, 47, 49]]
    arguments = [str(value) for box in boxes for value in ("--box", *box)]
    command = [sys.executable, "examples/landmarks_onnx.py", file, picture, *arguments]
    told = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout)

    predict = ("predict.py", picture, *arguments, "--checkpoint", tmp_path / "final.pt")
    run_script(*predict, "--out", tmp_path / "out")
    (entry,) = json.loads((tmp_path / "out" / "landmarks.json").read_text())["files"]
    for face, expected in zip(told, entry["faces"], strict=True):
        assert face["box"] == expected["box"]
        assert np.abs(np.subtract(face["landmarks"], expected["landmarks"])).max() <= 1e-3


def test_the_example_without_torch_finds_faces(shared_data, tmp_path):
    pytest.importorskip("onnxruntime")
    spec = importlib.util.spec_from_file_location("example", ROOT / "examples/landmarks_onnx.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    yunet = shared_data / "models/face_detection_yunet_2023mar.onnx"
    image = cv2.imread(str(next((shared_data / "w300_68pt/images").iterdir())))
    expected = FaceDetector(yunet)(image).boxes.tolist()
    assert [list(box) for box in example.find_faces(image, str(yunet))] == expected


@needs_packages
def test_a_network_that_answers_nonsense_is_not_written(tmp_path, run_script):
    model = export_checkpoint(tmp_path / "good.pt", "none")
    with torch.no_grad():
        model.fc2.weight.fill_(3e38)  # finite, but no answer is

    content = torch.load(tmp_path / "good.pt", weights_only=True)
    save(tmp_path / "bad.pt", content | {"model": model.state_dict()})
    line = refused(run_script, "export.py", tmp_path / "bad.pt", "--onnx", tmp_path / "net.onnx")
    assert "not written" in line
    assert not (tmp_path / "net.onnx").exists()


def test_missing_packages_are_named_in_one_line(tmp_path, run_script, monkeypatch):
    find = importlib.util.find_spec

    def absent(name: str, *rest: object) -> object:
        return None if "onnx" in name else find(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", absent)
    line = refused(run_script, "export.py", tmp_path / "final.pt", "--onnx", tmp_path / "net.onnx")
    assert line.endswith("missing; pip install onnx onnxscript onnxruntime")


@needs_packages
def test_the_checkpoint_is_never_overwritten(tmp_path, run_script):
    checkpoint = tmp_path / "final.pt"
    export_checkpoint(checkpoint, "none")
    before = checkpoint.read_bytes()
    (tmp_path / "soft.onnx").symlink_to("final.pt")
    os.link(checkpoint, tmp_path / "hard.onnx")

    for name in ("final.pt", "soft.onnx", "hard.onnx"):
        line = refused(run_script, "export.py", checkpoint, "--onnx", tmp_path / name)
        assert "is the checkpoint itself" in line
        assert (tmp_path / name).read_bytes() == before
