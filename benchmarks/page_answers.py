"""How long the page of demo.py takes to answer, as a visitor sees it in headless Chromium.

    python benchmarks/page_answers.py [--checkpoint FILE] [--detector ONNX] [--repeats 20]

Prints the seconds from the command to the first answered face, and the median and the range of: an
example clicked until its landmarks are shown, and the temperature moved until the landmarks have
moved. Page, browser and network run on this machine.
"""

from __future__ import annotations

import argparse
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from benchmarks.paired import middle  # noqa: E402
from utils.files import UserError, reports_user_errors  # noqa: E402

FACE = "img[alt=landmarks]"

# Resolves to the ms from the action to another picture of the face on the page.
MEASURE = """([target, value]) => new Promise(done => {
    const face = document.querySelector("img[alt=landmarks]"), before = face.src;
    const start = performance.now();
    face.addEventListener("load", () => {
        if (face.src !== before) done(performance.now() - start);
    });
    if (value === null) {
        target.click();
    } else {
        target.value = value;
        target.dispatchEvent(new Event("input", {bubbles: true}));
    }
})"""


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="as of demo.py")
    parser.add_argument("--detector", type=Path, metavar="ONNX", help="as of demo.py")
    parser.add_argument("--repeats", type=int, default=20, help="(default: %(default)s)")
    args = parser.parse_args(argv)

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise UserError("chromium is missing; on Debian: apt-get install chromium")

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    options = ["--port", str(port), "--no-browser"]
    for name in ("checkpoint", "detector"):
        if value := getattr(args, name):
            options += [f"--{name}", str(value)]

    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-u", ROOT / "demo.py", *options], stdout=subprocess.PIPE, text=True
    )
    try:
        for line in process.stdout:
            print(line, end="", flush=True)
            if "the page is at" in line:
                break
        else:
            raise UserError("demo.py did not start; see above")

        times = measure(chromium, f"http://127.0.0.1:{port}", args.repeats, started)
    finally:
        process.terminate()
        process.wait()

    for what, values in times.items():
        print(f"{what}: {middle(values, 0)} ms, n = {len(values)}")

    return 0


def measure(chromium: str, address: str, repeats: int, started: float) -> dict[str, np.ndarray]:
    """Times in ms; a first answer of each kind is not counted."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(300_000)
        page.goto(address)
        page.wait_for_selector(FACE)
        print(f"first answered face: {time.perf_counter() - started:.1f} s after the command")

        examples = page.locator("#source .gallery-item").element_handles()
        slider = page.get_by_label("range slider for Temperature")

        def series(actions: list[list]) -> np.ndarray:
            turns = [actions[i % len(actions)] for i in range(repeats + 1)]
            return np.array([page.evaluate(MEASURE, action) for action in turns][1:])

        times = {"another face": series([[examples[0], None], [examples[1], None]])}
        if slider.count():
            handle = slider.element_handle()
            times["another temperature"] = series([[handle, "0.1"], [handle, "20"]])

        browser.close()

    return times


if __name__ == "__main__":
    sys.exit(main())
