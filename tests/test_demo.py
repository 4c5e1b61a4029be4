"""The page of demo.py in a real browser, which may reach nothing but this machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, make_sets_differ

from models import Baseline, BaselineSepDyBN

PATIENCE = 90  # s; busy machines take their time
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
EXAMPLES = ROOT / "docs" / "examples"


@pytest.mark.parametrize(
    ("module", "words"),
    [(None, "needs gradio ("), (SimpleNamespace(__version__="5.49.1"), "here is 5.49.1")],
)
def test_without_gradio_there_is_one_line(run_script, tmp_path, monkeypatch, module, words):
    monkeypatch.setitem(sys.modules, "gradio", module)
    monkeypatch.setattr("os.environ", os.environ.copy())
    code, _, errors = run_script("demo.py", "--checkpoint", tmp_path / "none.pt")
    assert code == 1 and errors.count("\n") == 1
    assert words in errors and "requirements-demo.txt" in errors


@pytest.mark.parametrize(
    "arguments", [["--port", "0"], ["--checkpoint", "a", "--checkpoint", "b", "--checkpoint", "c"]]
)
def test_wrong_usage(run_script, arguments):
    assert run_script("demo.py", *arguments)[0] == 2


def test_what_is_done_with_a_forgotten_picture_gets_a_sentence(monkeypatch):
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "0")
    gradio = pytest.importorskip("gradio")
    from demonstration.page import Visit

    visit = Visit([], None)
    *kept, words = visit.draw_box(None, gradio.EventData(None, {"corners": [0, 0, 50, 50]}))

    assert "forgotten after 15 minutes" in words and kept == [gradio.skip()] * 4
    assert visit.choose_face(None, "the whole picture", 0) == gradio.skip()


def test_a_taken_port_is_said(run_script):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        code, _, errors = run_script("demo.py", "--checkpoint", "a", "--port", port)

    assert code == 1 and errors.count("\n") == 1 and f"port {port} cannot be used" in errors


# -------------------------------------------------------------------------------- in the browser


class Served:
    """demo.py as it is called, with a SepBN network and one without, and no face detector."""

    def __init__(self, folder: Path) -> None:
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.checkpoints = write_networks(folder)

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

        self.address = f"http://127.0.0.1:{self.port}"
        named = [part for path in self.checkpoints for part in ("--checkpoint", path)]
        proxy = "http://127.0.0.1:9"  # leads nowhere
        self.process = subprocess.Popen(
            [sys.executable, ROOT / "demo.py", *named, "--port", str(self.port), "--no-browser"],
            env=os.environ
            | {"TMPDIR": str(self.temporary), "TORCH_HOME": str(folder), "HTTP_PROXY": proxy},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        limit = threading.Timer(4 * PATIENCE, self.process.kill)
        limit.start()
        self.said = ""

        while "the page is at" not in self.said:
            line = self.process.stdout.readline()
            self.said += line
            if not line:
                raise AssertionError(f"demo.py ended: {self.said}")

        limit.cancel()

    def files(self) -> list[Path]:
        return [path for path in self.temporary.rglob("*") if path.is_file()]


def write_networks(folder: Path) -> list[Path]:
    torch.manual_seed(4)
    steered = BaselineSepDyBN(3, 2, 1.0, width=2)
    make_sets_differ(steered)

    with torch.no_grad():
        for name, weights in steered.named_parameters():
            if name.startswith("bn") and "fc" in name:
                weights.normal_(0, 3)

        # landmarks near the middle, each moved by what the network sees
        steered.fc2.weight.mul_(0.02)

    paths = [folder / "sepbn.pt", folder / "bn.pt"]
    torch.save(steered.state_dict(), paths[0])
    torch.save(Baseline("bn", width=2).state_dict(), paths[1])

    return paths


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    pytest.importorskip("gradio", reason="gradio is missing: pip install -r requirements-demo.txt")
    pytest.importorskip("playwright", reason="playwright is missing: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("chromium is missing; on Debian: apt-get install chromium")

    served = Served(tmp_path_factory.mktemp("served"))
    yield served
    served.process.kill()
    served.process.wait()


@pytest.fixture(scope="module")
def chromium(served):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"],
        )
        yield browser
        browser.close()


@pytest.fixture
def page(served, chromium):
    """The page just opened, which afterwards must have asked for nothing elsewhere and made no
    error.
    """
    page = chromium.new_page(viewport={"width": 1280, "height": 1000})
    page.set_default_timeout(1000 * PATIENCE)
    asked, errors = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    page.goto(served.address)
    page.wait_for_selector("[data-example]")
    yield page
    page.close()

    assert [url for url in asked if not url.startswith((served.address, "data:", "blob:"))] == []
    assert errors == []


def eventually(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "did not come about"
        time.sleep(0.1)


def weights(page) -> np.ndarray:
    """(M, G, K) as the charts of the first network show them."""
    bars = page.locator("#panel-1 rect.bar").evaluate_all("bars => bars.map(b => b.dataset.weight)")
    return np.array(bars, float).reshape(-1, 2, 3)


def landmarks(page, panel: int = 1) -> np.ndarray:
    dots = page.locator(f"#panel-{panel} circle.landmark").evaluate_all(
        "dots => dots.map(d => [d.getAttribute('cx'), d.getAttribute('cy')])"
    )
    return np.array(dots, float).reshape(-1, 2)


def upload(page, path: Path, data: bytes) -> None:
    """As a file: a large one takes minutes through Playwright's pipe."""
    path.write_bytes(data)
    page.set_input_files("input[type=file]", path)


def sentence(page) -> str:
    return page.inner_text("#message")


def test_a_face_and_its_attention(served, page, tmp_path):
    upload(page, tmp_path / "mine.jpg", (EXAMPLES / "smile.jpg").read_bytes())
    eventually(lambda: len(landmarks(page)) == len(landmarks(page, 2)) == 98)
    assert "mine.jpg" in sentence(page)
    assert page.locator("#panel-1 svg.attention").count() == 6
    assert page.locator("#panel-2 svg.attention").count() == 0
    assert "no SepBN" in page.inner_text("#panel-2")

    learnt, before = weights(page), landmarks(page)
    np.testing.assert_allclose(learnt.sum(2), 1, atol=2e-4)
    assert page.locator("#panel-1-shift [data-mean]").get_attribute("data-mean") == "0.0000"

    page.locator("#panel-1-temperature input[type=range]").fill("30")
    eventually(lambda: np.abs(weights(page) - learnt).max() > 0.05)
    assert np.abs(weights(page) - 1 / 3).max() < np.abs(learnt - 1 / 3).max()
    assert np.abs(landmarks(page) - before).max() > 0.05
    assert float(page.locator("#panel-1-shift [data-mean]").get_attribute("data-mean")) > 0

    page.get_by_role("button", name="Everything as learnt").first.click()
    eventually(lambda: np.array_equal(weights(page), learnt))
    assert np.array_equal(landmarks(page), before)
    assert served.files() == []


def test_one_set_alone_in_one_module(page):
    page.click("[data-example=hand]")
    eventually(lambda: len(landmarks(page)) == 98)
    learnt = weights(page)
    page.locator("#panel-1 .module").nth(1).locator("input").click()
    page.get_by_role("option", name="only set 2").click()
    eventually(lambda: np.array_equal(weights(page)[1], [[0, 1, 0], [0, 1, 0]]))
    assert np.array_equal(weights(page)[0], learnt[0])

    page.get_by_label("face contour").uncheck()
    eventually(lambda: len(landmarks(page)) == 98 - 33)


def test_pictures_that_are_none(served, page, tmp_path):
    upload(page, tmp_path / "broken.jpg", (EXAMPLES / "smile.jpg").read_bytes()[:3000])
    eventually(lambda: "broken.jpg is damaged or no picture" in sentence(page))
    upload(page, tmp_path / "huge.jpg", bytes(20 * 1024 * 1024 + 1))
    eventually(lambda: "huge.jpg has more than 20 MB" in sentence(page))
    assert page.locator("#message [role=alert]").count() == 1 and len(landmarks(page)) == 0

    upload(page, tmp_path / "good.jpg", (EXAMPLES / "light.jpg").read_bytes())
    eventually(lambda: len(landmarks(page)) == 98)
    assert served.files() == []


def test_a_box_is_drawn_with_the_mouse(page):
    page.click("[data-example=profile]")
    eventually(lambda: len(landmarks(page)) == 98)
    before = landmarks(page)
    picture = page.locator("#picture svg").bounding_box()
    size = cv2.imread(str(EXAMPLES / "profile.jpg")).shape[1]
    scale = picture["width"] / size

    page.mouse.move(picture["x"] + 20.5 * scale, picture["y"] + 30.5 * scale)
    page.mouse.down()
    page.mouse.move(picture["x"] + 60 * scale, picture["y"] + 60 * scale)
    page.mouse.move(picture["x"] + 100.5 * scale, picture["y"] + 130.5 * scale)
    page.mouse.up()
    eventually(lambda: not np.array_equal(landmarks(page), before))

    box = page.locator("#picture rect.chosen")
    edges = [float(box.get_attribute(name)) for name in ("x", "y", "width", "height")]
    np.testing.assert_allclose(edges, [20, 30, 81, 101], atol=1)


def test_downloads(served, page, tmp_path):
    page.click("[data-example=smile]")
    eventually(lambda: len(landmarks(page)) == 98)
    files = {}

    for kind in ("overlay", "JSON", ".pts"):
        with page.expect_download() as waiting:
            page.get_by_role("button", name=f"Save {kind}").first.click()

        files[kind] = tmp_path / waiting.value.suggested_filename
        waiting.value.save_as(files[kind])

    assert [path.name for path in files.values()] == [
        "smile_overlay.jpg",
        "smile.json",
        "smile.pts",
    ]

    points = json.loads(files["JSON"].read_text())["files"][0]["faces"][0]["landmarks"]
    np.testing.assert_allclose(np.add(points, 0.5), landmarks(page), atol=0.006)

    rows = re.findall(r"^([-\d.]+) ([-\d.]+)$", files[".pts"].read_text(), flags=re.MULTILINE)
    np.testing.assert_allclose(np.array(rows, float) - 1, points, atol=1e-3)
    assert cv2.imread(str(files["overlay"])).shape == cv2.imread(str(EXAMPLES / "smile.jpg")).shape
    assert served.files() == []


def test_a_phone_needs_no_sideways_scrolling(served, page):
    page.set_viewport_size({"width": 390, "height": 844})
    page.click("[data-example=sunglasses]")
    eventually(lambda: len(landmarks(page)) == 98)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_end_leaves_no_folder_behind(served):
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(PATIENCE) == 128 + signal.SIGTERM
    assert list(served.temporary.glob("sepbn-demo-*")) == []
