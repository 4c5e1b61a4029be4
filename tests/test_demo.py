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

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, make_sets_differ

from models import Baseline, BaselineSepDyBN
from prediction.predictor import LandmarkPredictor

PATIENCE = 60  # s; busy machines take their time
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
EXAMPLES = ROOT / "docs" / "examples"


def test_without_gradio_there_is_one_line(run_script, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "demonstration.page", raising=False)
    monkeypatch.setattr("os.environ", os.environ.copy())
    code, _, errors = run_script("demo.py")
    assert code == 1 and errors.count("\n") == 1
    assert "gradio" in errors and "requirements-demo.txt" in errors


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
        nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
        self.process = subprocess.Popen(
            [sys.executable, ROOT / "demo.py", *named, "--port", str(self.port), "--no-browser"],
            env=os.environ | nowhere | {"TMPDIR": str(self.temporary), "TORCH_HOME": str(folder)},
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


def write_networks(folder: Path) -> list[Path]:
    torch.manual_seed(4)
    steered = BaselineSepDyBN(3, 2, 1.0, width=2)
    make_sets_differ(steered)

    with torch.no_grad():  # landmarks near the middle, each moved by what the network sees
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
    """The page just opened, with its first answer; afterwards it must have asked for nothing
    elsewhere and made no error.
    """
    page = chromium.new_page(viewport={"width": 1300, "height": 1000})
    page.set_default_timeout(1000 * PATIENCE)
    asked, errors = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    page.goto(served.address)
    page.wait_for_selector("text=not moved")  # of the network with SepBN
    page.locator("img[alt=landmarks]").nth(1).wait_for()
    yield page
    page.close()

    assert [url for url in asked if not url.startswith((served.address, "data:", "blob:"))] == []
    assert errors == []


def eventually(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "did not come about"
        time.sleep(0.05)


def weights(page) -> np.ndarray:
    """(M, G, K) as the thick bars of the first network show them."""
    parts = page.locator(".attention").first.locator("dd > div:first-child > span")
    shown = parts.evaluate_all("parts => parts.map(part => part.style.flexGrow)")
    return np.array(shown, float).reshape(-1, 2, 3)


def shown_faces(page) -> list[str]:
    faces = page.locator("img[alt=landmarks]")
    return faces.evaluate_all("faces => faces.map(face => face.src)")


def temperature(page):
    return page.get_by_label("range slider for Temperature τ")


def saved(page, folder: Path) -> dict:
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Save landmarks").first.click()

    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)

    return json.loads(path.read_text())


def replace_picture(page, path: Path) -> None:
    page.get_by_role("button", name="Remove Image").click()
    page.wait_for_selector("text=Choose a face")
    page.set_input_files("input[type=file]", path)


def test_it_opens_with_an_answer_that_the_weights_change(served, page, tmp_path):
    trained = weights(page)
    assert trained.shape == (6, 2, 3)
    np.testing.assert_allclose(trained.sum(2), 1, atol=2e-4)
    assert len(shown_faces(page)) == 2  # the network without SepBN beside it
    assert page.get_by_text("τ of training: 1.").count() == 1

    box = [int(edge) for edge in page.get_by_label("Face box").input_value().split(", ")]
    image = cv2.imread(str(EXAMPLES / "beard.jpg"))
    expected = LandmarkPredictor(served.checkpoints[0], device="cpu")(image, [box])[0]
    content = saved(page, tmp_path)
    spread = f"they spread by {np.mean(content['spread']):.2f} pixels"
    assert page.get_by_text(spread).count() == 1
    np.testing.assert_allclose(content["landmarks"], expected, atol=1e-3)
    np.testing.assert_allclose(list(content["attention"].values()), trained, atol=1e-4)

    before = shown_faces(page)
    temperature(page).fill("30")
    eventually(lambda: np.abs(weights(page) - trained).max() > 0.05)
    assert np.abs(weights(page) - 1 / 3).max() < np.abs(trained - 1 / 3).max()

    moved = page.get_by_text(re.compile(r"The landmarks moved by (\S+) pixels")).first
    shift = np.linalg.norm(np.subtract(saved(page, tmp_path)["landmarks"], expected), axis=1)
    assert f"moved by {shift.mean():.2f} pixels" in moved.inner_text()
    after = shown_faces(page)
    assert after[0] != before[0] and after[1] == before[1]


def test_one_set_alone_in_one_module(page):
    trained = weights(page)
    for name in ("bn1", "bn3", "bn4", "bn5", "bn6"):
        page.get_by_label(name, exact=True).uncheck()

    page.get_by_label("only set 2").check()
    eventually(lambda: np.array_equal(weights(page)[1], [[0, 1, 0], [0, 1, 0]]))
    assert np.array_equal(weights(page)[0], trained[0])


def test_a_picture_of_ones_own_and_a_box_of_two_clicks(served, page, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes((EXAMPLES / "beard.jpg").read_bytes()[:3000])
    replace_picture(page, broken)
    page.wait_for_selector("text=image broken.jpg is damaged")

    mine = tmp_path / "mine.jpg"
    shutil.copy(EXAMPLES / "hat.jpg", mine)
    replace_picture(page, mine)
    page.wait_for_selector("text=mine.jpg: no face found, so the whole picture is taken")
    height, width = cv2.imread(str(mine)).shape[:2]
    eventually(lambda: len(shown_faces(page)) == 2)
    assert saved(page, tmp_path)["face"] == [[0, 0, width - 1, height - 1], 0]

    picture = page.locator("#picture img").bounding_box()
    x, y, scale = picture["x"], picture["y"], picture["width"] / width
    page.mouse.click(x + 160 * scale, y + 150 * scale)
    page.wait_for_selector("text=Now click the opposite corner")
    page.mouse.click(x + 40 * scale, y + 30 * scale)
    page.wait_for_selector("text=the face is where the box says")
    eventually(lambda: np.allclose(saved(page, tmp_path)["face"][0], [40, 30, 160, 150], atol=2))

    page.get_by_label("Face box").fill("40, 30, 40")
    page.get_by_label("Face box").press("Enter")
    page.wait_for_selector("text=a box is left, top, right, bottom")


def test_where_there_is_no_network_yunet_cannot_be_fetched(page):
    page.get_by_role("button", name="Fetch YuNet").click()
    page.wait_for_selector("text=cannot be fetched from")
    assert page.get_by_role("button", name="Fetch YuNet").is_visible()


def test_a_phone_shows_landmarks_before_controls_and_keys_are_enough(page):
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    face = page.locator("img[alt=landmarks]").first.bounding_box()
    assert face["y"] < 600
    for control in (temperature(page), page.get_by_label("Face box")):
        assert face["y"] < control.bounding_box()["y"]

    before = shown_faces(page)
    for key in ("Tab", "Tab", "Enter"):  # the second example
        page.keyboard.press(key)
    page.wait_for_selector("text=glasses.jpg: the face is where the box says")
    eventually(lambda: set(shown_faces(page)).isdisjoint(before))


def test_a_taken_port_is_said(served, run_script, monkeypatch):
    monkeypatch.setattr("os.environ", os.environ.copy())
    code, _, errors = run_script("demo.py", "--port", served.port)
    assert code == 1 and errors.count("\n") == 1 and f"port {served.port} is taken" in errors


def test_the_end_leaves_no_folder_behind(served):
    assert list(served.temporary.glob("sepbn-demo-*"))
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(PATIENCE) == 128 + signal.SIGTERM
    assert list(served.temporary.glob("sepbn-demo-*")) == []
