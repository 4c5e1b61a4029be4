"""The memory-mapped patches: the same as decoded ones, made once, anew when a patch changed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT

from dataset import patches as module
from dataset.faces import list_path, load_faces
from utils.files import UserError


@pytest.fixture
def folder(prepared_set: Path, tmp_path: Path) -> Path:
    """A prepared set of its own, without a store."""
    target = tmp_path / "set"
    shutil.copytree(prepared_set, target, ignore=shutil.ignore_patterns("*.patches", ".*"))

    return target


def decoded(folder: Path, split: str) -> np.ndarray:
    paths = sorted((folder / split).glob("*.png"))

    return np.stack([cv2.imread(str(path))[:, :, ::-1] for path in paths])


def count_decodings(monkeypatch) -> list[Path]:
    seen: list[Path] = []
    read = module._read_patch
    monkeypatch.setattr(
        module, "_read_patch", lambda path, where: seen.append(path) or read(path, where)
    )

    return seen


def test_mapped_patches_are_the_decoded_ones_and_are_decoded_once(folder, monkeypatch):
    seen = count_decodings(monkeypatch)
    first = load_faces(folder, "train")
    again = load_faces(folder, "train")

    assert len(seen) == 12
    expected = decoded(folder, "train")
    for faces in (first, again):
        assert (faces.patches.numpy() == expected).all()
        assert faces.sums.tolist() == expected.reshape(12, -1).sum(axis=1).tolist()

    assert not list(folder.glob(".*.tmp"))


def test_a_changed_patch_makes_the_store_anew(folder):
    before = load_faces(folder, "test")
    path = before.paths[3]
    cv2.imwrite(str(path), 255 - cv2.imread(str(path)))
    os.utime(path, ns=(1, 1))
    after = load_faces(folder, "test")

    assert (after.patches[3] == 255 - before.patches[3]).all()
    assert (after.patches[2] == before.patches[2]).all()
    assert after.fingerprint() != before.fingerprint()


def test_a_damaged_store_is_made_anew(folder):
    expected = load_faces(folder, "test").patches.clone()
    store = list_path(folder, "test").with_suffix(".patches")
    store.write_bytes(store.read_bytes()[:-1000])

    assert torch.equal(load_faces(folder, "test").patches, expected)


def test_a_limit_decodes_so_many_only_unless_there_is_a_store(folder, monkeypatch):
    seen = count_decodings(monkeypatch)
    few = load_faces(folder, "train", limit=5)
    assert len(seen) == len(few) == 5 and not list(folder.glob("*.patches"))

    load_faces(folder, "train")
    again = load_faces(folder, "train", limit=5)
    assert len(seen) == 17
    assert torch.equal(few.patches, again.patches) and few.fingerprint() == again.fingerprint()


def test_where_nothing_can_be_written_patches_go_to_memory(folder, monkeypatch, capfd):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", refuse)
    faces = load_faces(folder, "train")

    assert (faces.patches.numpy() == decoded(folder, "train")).all()
    assert capfd.readouterr().err.count("\n") == 1
    assert not list(folder.glob("*.patches")) and not list(folder.glob(".*.tmp"))


def test_processes_that_start_together_decode_once(folder):
    code = (
        "import sys; from dataset import patches; from dataset.faces import load_faces;"
        "read = patches._read_patch;"
        "patches._read_patch = lambda *a: (print('decoded'), read(*a))[1];"
        "print(load_faces(sys.argv[1], 'train').fingerprint())"
    )
    command = [sys.executable, "-c", code, str(folder)]
    started = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    printed = [process.communicate()[0] for process in started]
    fingerprints = {text.split()[-1].removeprefix("decoded") for text in printed}

    assert "".join(printed).count("decoded") == 12
    assert len(fingerprints) == 1


def test_fingerprint_is_that_of_the_first_release(folder):
    from hashlib import blake2b

    faces = load_faces(folder, "train")
    digest = blake2b(faces.landmarks.numpy().tobytes(), digest_size=16)
    digest.update(faces.patches.flatten(1).sum(dim=1, dtype=torch.int64).numpy().tobytes())

    assert faces.fingerprint() == digest.hexdigest()


def test_a_test_face_without_eye_distance_is_refused_when_it_is_read(folder):
    source = list_path(folder, "test")
    lines = source.read_text().splitlines()
    fields = lines[4].split()
    fields[72], fields[98 + 72] = fields[60], fields[98 + 60]
    lines[4] = " ".join(fields)
    source.write_text("\n".join(lines) + "\n")

    with pytest.raises(UserError, match=r"WFLW256_test.txt, line 5: the outer eye corners"):
        load_faces(folder, "test")
