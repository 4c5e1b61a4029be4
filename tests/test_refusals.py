"""What every command refuses at its door: one line, exit code 1 (input) or 2 (usage), and nothing
is written.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import refused, write_checkpoint

PREPARE, PREDICT = "dataset/createWFLW256.py", "predict.py a.png --checkpoint good.pt"
EXPERIMENTS = "research/experiments.py --suite real98"
TRAIN = "trainBaseline.py --data prepared"
PTS = f"{PREPARE} --pts-train a --pts-test b"

# Command; exit code; words of the line. The folder holds what `folder` below puts there.
REFUSED = [
    (PREPARE, 2, "give one of --wflw"),
    (f"{PREPARE} --wflw nowhere", 1, "image folder nowhere/WFLW_images"),
    (f"{PREPARE} --wflw listless", 1, "list_98pt_rect_attr_test.txt does not exist"),
    (f"{PREPARE} --wflw blind", 1, "WFLW_images does not exist"),
    (f"{PREPARE} --wflw official --out text.pt", 1, "cannot write text.pt"),
    (f"{PREPARE} --wflw official --out text.pt/below", 1, "cannot write text.pt/below"),
    (f"{PREPARE} --wflw official --out mine", 1, "holds other files"),
    (f"{PREPARE} --wflw a --images b", 2, "--wflw"),
    (f"{PREPARE} --images a --train-list b --test-list c", 2, "--out"),
    (f"{PREPARE} --images a --train-list b --out c", 2, "--test-list"),
    (f"{PREPARE} --wflw a --workers 0", 2, "--workers"),
    (f"{PREPARE} --wflw a --resample cubic", 2, "--resample"),
    (f"{PREPARE} --pts-train a --out c", 2, "--pts-test"),
    (PTS, 2, "--out"),
    (f"{PTS} --out c --wflw d", 2, "--wflw"),
    (f"{PTS} --out c --boxes d --detector e", 2, "--detector"),
    (f"{PREPARE} --wflw a --boxes b", 2, "--boxes"),
    (f"{PREPARE} --wflw a --box-scale 0.1", 2, "--box-scale"),
    (f"{PREPARE} --wflw a --box-scale nan", 2, "--box-scale"),
    (f"{PREPARE} --wflw a --box-scale 4", 2, "--box-scale"),
    ("trainBaseline.py --data nowhere", 1, "nowhere holds no prepared faces"),
    (f"{TRAIN} --batch-size 13", 1, "--batch-size 13: must be at most 12, the training faces"),
    (f"{TRAIN} --init none.pt", 1, "none.pt does not exist"),
    (f"{TRAIN} --device cuda:7", 1, "--device cuda:7"),
    (f"{TRAIN} --device tpu", 1, "--device tpu cannot be used"),
    (f"{TRAIN} --sets 3", 2, "--sets 3"),
    (f"{TRAIN} --norm sepbn", 2, "--norm"),
    (f"{TRAIN} --resume --overwrite", 2, "--overwrite"),
    (f"{TRAIN} --epoch 5", 2, "--epoch 5"),
    (f"{TRAIN} --epochs 50 --warmup-epochs 50", 1, "50 is not shorter than the run of 50 epochs"),
    (f"{TRAIN} --epochs 0", 1, "--epochs: must be a number, at least 1"),
    (f"{TRAIN} --lr nan", 1, "--lr: must be a number, at least 0"),
    (f"{TRAIN} --run a/b", 1, "--run 'a/b': must be a plain name"),
    (f"{TRAIN} --run ..", 1, "--run '..': must be a plain name"),
    (f"{TRAIN} --run=", 1, "--run '': must be a plain name"),
    (f"{TRAIN} --seed {2**63}", 1, "below 2**63"),
    (f"{TRAIN} --width {10**400}", 1, "below 2**63"),
    ("trainBaselineSepDyBN.py --temperature 0.5", 1, "--temperature: must be a number, at least 1"),
    ("trainBaselineSepDyBN.py --groups 3", 1, "--groups 3 does not divide --width 64"),
    ("trainBaselineSepDyBN.py --attention-grid 3", 2, "--attention-grid"),
    ("synthetic/createSynthetic.py --train 2 --test 1 --out mine", 1, "mine"),
    ("synthetic/createSynthetic.py --train 2 --test 1 --out text.pt/below", 1, "text.pt"),
    ("test.py good.pt", 1, "dataset/WFLW256"),
    ("test.py --data prepared", 1, "no checkpoint in checkpoints/"),
    ("test.py none.pt --data prepared", 1, "none.pt"),
    ("test.py text.pt --data prepared", 1, "text.pt"),
    ("test.py good.pt --data nowhere", 1, "nowhere"),
    ("test.py good.pt --data empty_list", 1, "WFLW256_train.txt"),
    ("test.py good.pt --data other_list", 1, "WFLW256_train.txt"),
    ("test.py good.pt --data prepared --batch-size 0", 2, "--batch-size"),
    ("visualize.py none.pt --data prepared", 1, "none.pt"),
    ("visualize.py good.pt --data nowhere", 1, "nowhere"),
    ("export.py good.pt", 2, "--onnx"),
    ("export.py none.pt --onnx net.onnx", 1, "none.pt"),
    ("export.py good.pt --onnx good.pt", 1, "is the checkpoint itself"),
    ("export.py good.pt --onnx .", 1, "cannot write .: it is no regular file"),
    ("export.py good.pt --onnx net.onnx --opset 17", 2, "--opset must be at least 18"),
    (f"{PREDICT} --whole --box 1 1 9 9", 2, "--box"),
    (f"{PREDICT} --whole --detector x.onnx", 2, "--detector"),
    (f"{PREDICT} --box 9 9 1 1", 2, "--box"),
    (f"{PREDICT} --box 1 2 3", 2, "--box"),
    (f"{PREDICT} --whole --batch-size 0", 2, "--batch-size"),
    (f"{PREDICT} --detector x.onnx --detect-every 0", 2, "--detect-every"),
    (f"{PREDICT} --detector x.onnx --detect-every 5", 2, "video"),
    (f"{PREDICT} --whole --detect-every 5", 2, "--detect-every"),
    (f"{PREDICT} --whole --smooth", 2, "video"),
    (f"{PREDICT} --whole --format xml", 2, "--format"),
    (f"{PREDICT} --whole --unknown", 2, "--unknown"),
    (f"{PREDICT} --whole --views 15", 2, "--views"),
    (f"{PREDICT} --whole --min-face 20", 2, "--min-face"),
    (f"{PREDICT} --detector x.onnx --min-face 3", 2, "--min-face"),
    (f"{PREDICT} --detector x.onnx --score 1", 2, "--score"),
    (f"{PREDICT} --box 1 1 9 9 --score 0.5", 2, "--score"),
    (f"{PREDICT} --box 1 1 9 9 --angle 5 --angle 6", 2, "--angle"),
    (f"{PREDICT} --box 1 1 9 9 --angle nan", 2, "--angle"),
    (f"{PREDICT} --angle 5", 2, "--angle"),
    ("predict.py 0 --whole --checkpoint good.pt", 1, "cameras are for the page, python demo.py"),
    ("predict.py https://a.org/a.jpg --whole --checkpoint good.pt", 1, "download the file"),
    (f"{PREDICT} --whole --out .", 2, "overwritten"),
    (f"{PREDICT} --detector none.onnx", 1, "no face detector at"),
    (f"{PREDICT} --box {10**30} 1 {10**30 + 5} 9", 2, "an edge lies beyond"),
    ("predict.py a.png --whole --checkpoint none.pt", 1, "none.pt"),
    (f"{EXPERIMENTS} --data prepared --arms gn", 1, "--arms gn: no such arm"),
    (f"{EXPERIMENTS} --data prepared --arms sepbn-g3k2 --width 4", 1, "does not divide --width 4"),
    (f"{EXPERIMENTS} --data nowhere", 1, "nowhere"),
    (f"{EXPERIMENTS} --data one two", 2, "takes one folder"),
    (f"{EXPERIMENTS} --data prepared --seeds 0", 2, "must be positive"),
    (f"{EXPERIMENTS} --data prepared --rates -1", 2, "must be positive"),
    ("predict.py blank --whole --checkpoint good.pt", 1, "holds no pictures"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, official_set, prepared_set) -> Path:
    """What the commands find."""
    folder = tmp_path_factory.mktemp("door")
    (folder / "official").symlink_to(official_set)
    (folder / "prepared").symlink_to(prepared_set)

    shutil.copytree(official_set, folder / "listless")
    shutil.copytree(official_set, folder / "blind")
    next((folder / "listless").rglob("*_test.txt")).unlink()
    shutil.rmtree(folder / "blind/WFLW_images")

    for name, text in (("empty_list", ""), ("other_list", " ".join(["1.5"] * 136) + " x.png\n")):
        shutil.copytree(prepared_set, folder / name)
        (folder / name / "WFLW256_train.txt").write_text(text)

    (folder / "blank").mkdir()
    (folder / "checkpoints").mkdir()
    (folder / "mine").mkdir()
    (folder / "mine" / "letter.txt").write_text("mine")
    (folder / "text.pt").write_text("hello")
    (folder / "v.mp4").write_bytes(b"")
    cv2.imwrite(str(folder / "a.png"), np.zeros((120, 160, 3), np.uint8))
    write_checkpoint(folder / "good.pt")

    return folder


@pytest.mark.parametrize(("command", "code", "words"), REFUSED)
def test_it_is_refused(run_script, folder, monkeypatch, command, code, words):
    monkeypatch.chdir(folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert words in refused(run_script, *command.split(), code=code)

    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    kept = {path for path in after if ".patches" not in path.name}
    assert kept <= set(before) and all(after[p] == before[p] for p in kept if p.is_file())
