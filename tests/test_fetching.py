"""Files that are fetched once, from a server on 127.0.0.1 that answers rightly, wrongly, by half,
or not at all.
"""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import write_checkpoint

from dataset.detector import YUNET
from utils.fetching import RemoteFile, cache_folder, fetch_once
from utils.files import UserError

CONTENT = b"a small file that stands for a detector" * 50
OTHERWISE = "name one with --detector"


class Server:
    """Gives ``content`` to every request, ``sent`` bytes of it, and counts the requests."""

    def __init__(self, content: bytes) -> None:
        self.content, self.sent, self.status, self.requests = content, None, 200, 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests += 1
                self.send_response(outer.status)
                self.send_header("Content-Length", str(len(outer.content)))
                self.end_headers()
                self.wfile.write(outer.content[: outer.sent])

            def log_message(self, *_: object) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def file(self) -> RemoteFile:
        url = f"http://127.0.0.1:{self._server.server_port}/models/detector.onnx"
        return RemoteFile(url, hashlib.sha256(CONTENT).hexdigest())

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(CONTENT)
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """The cache folder, inside a fresh one; no proxy stands between."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "TORCH_HOME"):
        monkeypatch.delenv(name, raising=False)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    return tmp_path / "cache/torch/hub/checkpoints"


def refused_file() -> RemoteFile:
    """A file at a port where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    return RemoteFile(f"http://127.0.0.1:{port}/detector.onnx", hashlib.sha256(CONTENT).hexdigest())


def complaint(wanted: RemoteFile) -> str:
    with pytest.raises(UserError) as error:
        fetch_once(wanted, otherwise=OTHERWISE)

    message = str(error.value)
    assert "\n" not in message and wanted.name in message and OTHERWISE in message
    assert str(cache_folder() / wanted.name) in message

    return message


def test_the_right_file_is_fetched_once_and_then_used_offline(server, cache, capsys):
    path = fetch_once(server.file, otherwise=OTHERWISE)
    assert path == cache / "detector.onnx" and path.read_bytes() == CONTENT
    assert capsys.readouterr().out.count("fetching http://127.0.0.1") == 1
    assert socket.getdefaulttimeout() is None

    assert fetch_once(server.file, otherwise=OTHERWISE) == path
    assert server.requests == 1 and not capsys.readouterr().out
    assert list(cache.iterdir()) == [path]


def test_a_damaged_file_in_the_cache_is_fetched_again(server, cache):
    cache.mkdir(parents=True)
    (cache / "detector.onnx").write_bytes(CONTENT[:-1])
    assert fetch_once(server.file, otherwise=OTHERWISE).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"content": b"<html>please log in</html>"}, "its sha256 differs"),
        ({"sent": len(CONTENT) // 2}, "incomplete"),
        ({"status": 404}, "cannot be fetched"),
    ],
)
def test_what_is_not_the_file_is_not_kept(server, cache, change, words):
    vars(server).update(change)
    assert words in complaint(server.file)
    assert not list(cache.iterdir())


def test_a_refused_connection_is_named(cache):
    message = complaint(refused_file())
    assert "cannot be fetched" in message and "refused" in message
    assert not list(cache.iterdir())


def test_a_cache_that_cannot_be_made_is_named(server, tmp_path):
    (tmp_path / "cache").write_text("a file is in the way")
    assert "cannot write" in complaint(server.file)
    assert server.requests == 0


def test_torch_home_is_honoured(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "elsewhere"))
    assert cache_folder() == tmp_path / "elsewhere/hub/checkpoints"


def predict_without_box_option(run_script, tmp_path) -> tuple[int, str, str, list[dict]]:
    """predict.py on a picture without a face, and the files of landmarks.json."""
    noise = np.random.default_rng(4).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), cv2.resize(noise, (160, 120)))
    checkpoint = write_checkpoint(tmp_path / "tiny" / "final.pt")
    out = tmp_path / "out"
    code, output, errors = run_script(
        "predict.py", tmp_path / "a.png", "--checkpoint", checkpoint, "--out", out
    )
    written = out / "landmarks.json"

    return code, output, errors, json.loads(written.read_text())["files"] if code == 0 else []


def test_predict_fetches_the_detector(run_script, server, cache, tmp_path, monkeypatch):
    monkeypatch.setattr("dataset.detector.YUNET", server.file)
    code, output, errors, _ = predict_without_box_option(run_script, tmp_path)
    assert code == 1 and "fetching" in output and (cache / "detector.onnx").is_file()
    assert "detector.onnx is not a YuNet model" in errors  # it stands for one only


def test_predict_without_a_network_says_what_to_do(run_script, cache, tmp_path, monkeypatch):
    monkeypatch.setattr("dataset.detector.YUNET", refused_file())
    code, _, errors, _ = predict_without_box_option(run_script, tmp_path)
    assert code == 1 and errors.startswith("error: ") and errors.count("\n") == 1
    assert str(cache / "detector.onnx") in errors
    assert all(option in errors for option in ("--detector", "--box", "--whole"))


def test_predict_uses_the_real_detector_from_the_cache(
    shared_data, run_script, cache, tmp_path, monkeypatch
):
    content = (shared_data / "models" / YUNET.name).read_bytes()
    server = Server(content)
    try:
        monkeypatch.setattr(
            "dataset.detector.YUNET",
            RemoteFile(server.file.url.replace("detector.onnx", YUNET.name), YUNET.sha256),
        )
        code, output, _, files = predict_without_box_option(run_script, tmp_path)
    finally:
        server.stop()

    assert code == 0 and "fetching" in output and files[0]["faces"] == []

    # the server is gone
    code, output, _, _ = predict_without_box_option(run_script, tmp_path)
    assert code == 0 and "fetching" not in output
