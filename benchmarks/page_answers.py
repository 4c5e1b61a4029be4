"""How long the page of demo.py takes to answer, as a visitor sees it in headless Chromium.

    python benchmarks/page_answers.py [--checkpoint FILE] [--detector ONNX] [--repeats 20]

Prints the median and the range of: a drawn face clicked until its landmarks are shown, and the
temperature moved until the landmarks have moved. Page, browser and network run on this machine.
"""

from __future__ import annotations

import argparse
import shutil
import socket
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from utils.files import UserError, reports_user_errors  # noqa: E402

# Resolves to the ms from the action to another first landmark in the page.
MEASURE = """([selector, value]) => new Promise(done => {
    const panel = document.querySelector("#panel-1");
    const place = () => {
        const dot = panel.querySelector("circle.landmark");
        return dot ? dot.getAttribute("cx") + " " + dot.getAttribute("cy") : "";
    };
    const before = place(), target = document.querySelector(selector);
    const start = performance.now();
    const observer = new MutationObserver(() => {
        if (place() && place() !== before) {
            observer.disconnect();
            done(performance.now() - start);
        }
    });
    observer.observe(panel, {childList: true, subtree: true, attributes: true});
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

        times = measure(chromium, f"http://127.0.0.1:{port}", args.repeats)
    finally:
        process.terminate()
        process.wait()

    for what, values in times.items():
        low, middle, high = min(values), statistics.median(values), max(values)
        print(f"{what}: median {middle:.0f} ms of {len(values)} ({low:.0f} to {high:.0f})")

    return 0


def measure(chromium: str, address: str, repeats: int) -> dict[str, list[float]]:
    """Times in ms; a first answer of each kind is not counted."""
    from playwright.sync_api import sync_playwright

    faces = [f'[data-example="{name}"]' for name in ("smile", "light")]
    slider = "#panel-1-temperature input[type=range]"

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(300_000)
        page.goto(address)
        page.wait_for_selector(faces[0])

        def series(actions: list[list]) -> list[float]:
            return [page.evaluate(MEASURE, actions[i % len(actions)]) for i in range(repeats + 1)][
                1:
            ]

        times = {"another face": series([[face, None] for face in faces])}
        if page.locator(slider).count():
            times["another temperature"] = series([[slider, "0.1"], [slider, "20"]])

        browser.close()

    return times


if __name__ == "__main__":
    sys.exit(main())
