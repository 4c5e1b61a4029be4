"""Files that are fetched once: the right one, another one, none, or no network."""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path

import cv2
import pytest
from conftest import smooth_noise, write_checkpoint

from utils.fetching import RemoteFile, fetch_once
from utils.files import UserError

CONTENT = b"a small file that stands for a detector" * 50
SHA256 = hashlib.sha256(CONTENT).hexdigest()
OTHERWISE = "name one with --detector"


@pytest.fixture
def source(tmp_path) -> Path:
    """What lies at the URL of ``remote``."""
    path = tmp_path / "elsewhere" / "detector.onnx"
    path.parent.mkdir()
    path.write_bytes(CONTENT)

    return path


@pytest.fixture
def remote(source) -> RemoteFile:
    return RemoteFile(source.as_uri(), SHA256)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """The cache folder, inside a fresh one; no proxy stands between."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "TORCH_HOME"):
        monkeypatch.delenv(name, raising=False)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    return tmp_path / "cache/torch/hub/checkpoints"


def nobody_listens() -> RemoteFile:
    """A file at a port where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    return RemoteFile(f"http://127.0.0.1:{port}/detector.onnx", SHA256)


def complaint(wanted: RemoteFile) -> str:
    with pytest.raises(UserError) as error:
        fetch_once(wanted, otherwise=OTHERWISE)

    message = str(error.value)
    assert "\n" not in message and wanted.cached.name in message and OTHERWISE in message
    assert str(wanted.cached) in message

    return message


def test_the_right_file_is_fetched_once_and_then_used_offline(source, remote, cache, capsys):
    path = fetch_once(remote, otherwise=OTHERWISE)
    assert path == cache / "detector.onnx" and path.read_bytes() == CONTENT
    assert capsys.readouterr().out.count(f"fetching {remote.url}") == 1
    assert socket.getdefaulttimeout() is None

    source.unlink()
    assert fetch_once(remote, otherwise=OTHERWISE) == path
    assert not capsys.readouterr().out and list(cache.iterdir()) == [path]


def test_a_damaged_file_in_the_cache_is_fetched_again(remote, cache):
    cache.mkdir(parents=True)
    (cache / "detector.onnx").write_bytes(CONTENT[:-1])
    assert fetch_once(remote, otherwise=OTHERWISE).read_bytes() == CONTENT


@pytest.mark.parametrize("content", [b"<html>please log in</html>", CONTENT[:100]])
def test_another_file_is_not_kept(source, remote, cache, content):
    source.write_bytes(content)
    assert "incomplete or another file (its sha256 differs)" in complaint(remote)
    assert not list(cache.iterdir())


def test_a_file_that_cannot_be_had_is_named(source, remote, cache):
    source.unlink()
    assert "cannot be fetched" in complaint(remote)
    assert "refused" in complaint(nobody_listens())
    assert not list(cache.iterdir())


def test_a_cache_that_cannot_be_made_is_named(remote, tmp_path):
    (tmp_path / "cache").write_text("a file is in the way")
    assert "cannot write" in complaint(remote)


def test_torch_home_is_honoured(remote, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "elsewhere"))
    assert remote.cached == tmp_path / "elsewhere/hub/checkpoints/detector.onnx"


@pytest.fixture
def predict(run_script, tmp_path):
    """predict.py on a picture without a face -> (exit code, stdout, stderr)."""
    cv2.imwrite(str(tmp_path / "a.png"), smooth_noise())
    checkpoint = write_checkpoint(tmp_path / "tiny" / "final.pt")
    options = ("--checkpoint", checkpoint, "--out", tmp_path / "out")

    return lambda: run_script("predict.py", tmp_path / "a.png", *options)


def test_predict_fetches_the_detector(predict, remote, cache, monkeypatch):
    monkeypatch.setattr("dataset.detector.YUNET", remote)
    code, output, errors = predict()
    assert code == 1 and "fetching" in output and (cache / "detector.onnx").is_file()
    assert "detector.onnx is not a YuNet model" in errors  # it stands for one only


def test_predict_without_a_network_says_what_to_do(predict, cache, monkeypatch):
    monkeypatch.setattr("dataset.detector.YUNET", nobody_listens())
    code, _, errors = predict()
    assert code == 1 and errors.startswith("error: ") and errors.count("\n") == 1
    for word in (str(cache / "detector.onnx"), "--detector", "--box", "--whole"):
        assert word in errors
