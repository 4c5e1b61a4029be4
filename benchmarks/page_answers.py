"""How long the page of demo.py takes to answer, as a visitor sees it in headless Chromium.

    python benchmarks/page_answers.py [--checkpoint FILE] [--detector ONNX] [--repeats 20]
        [--picture PNG]

Prints the seconds from the command to the first answered face, and the median and the range of: an
example clicked until its landmarks are shown, and the temperature moved until the landmarks have
moved. Page, browser and network run on this machine.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from benchmarks.paired import middle  # noqa: E402
from utils.files import UserError, reports_user_errors  # noqa: E402

FACE, EXAMPLE = "img[alt=landmarks]", "#source .gallery-item"
SLIDER = "range slider for Temperature"

# Resolves to the ms from the action to another picture of the face on the page.
MEASURE = """([target, value]) => new Promise(done => {
    const before = document.querySelector("img[alt=landmarks]").src, start = performance.now();
    const loaded = event => {
        if (event.target.alt !== "landmarks" || event.target.src === before) return;
        document.removeEventListener("load", loaded, true);
        done(performance.now() - start);
    };
    document.addEventListener("load", loaded, true);
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
    add = parser.add_argument
    add("--checkpoint", type=Path, metavar="FILE", help="as of demo.py")
    add("--detector", type=Path, metavar="ONNX", help="as of demo.py")
    add("--repeats", type=int, default=20, help="(default: %(default)s)")
    add("--picture", type=Path, metavar="PNG", help="keep a picture of the page")
    args = parser.parse_args(argv)

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise UserError("chromium is missing; on Debian: apt-get install chromium")

    command = [sys.executable, "-u", ROOT / "demo.py", "--no-browser"]
    for name in ("checkpoint", "detector"):
        if value := getattr(args, name):
            command += [f"--{name}", str(value)]

    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        address = re.search(r"the page is at (\S+);", process.stdout.readline())
        if address is None:
            raise UserError("demo.py did not start; see above")

        with opened(chromium, address[1]) as page:
            seconds = time.perf_counter() - started
            print(f"first answered face: {seconds:.1f} s after the command")
            if args.picture:
                keep_picture(page, args.picture)

            times = measure(page, args.repeats)
    finally:
        process.terminate()
        process.wait()

    for what, values in times.items():
        print(f"{what}: {middle(values, 0)} ms, n = {len(values)}")

    return 0


@contextmanager
def opened(chromium: str, address: str) -> Iterator[Page]:
    """The page in a browser, with its first answer."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1300, "height": 700})
        page.set_default_timeout(300_000)
        page.goto(address)
        page.wait_for_selector(FACE)
        yield page
        browser.close()


def measure(page: Page, repeats: int) -> dict[str, np.ndarray]:
    """Times in ms; a first answer of each kind is not counted."""
    examples = page.locator(EXAMPLE).element_handles()
    slider = page.get_by_label(SLIDER)

    def series(actions: list[list]) -> np.ndarray:
        turns = [actions[i % len(actions)] for i in range(repeats + 1)]
        return np.array([page.evaluate(MEASURE, action) for action in turns][1:])

    times = {"another face": series([[examples[1], None], [examples[2], None]])}
    if slider.count():
        handle = slider.element_handle()
        times["another temperature"] = series([[handle, "20"], [handle, "5"]])

    return times


def keep_picture(page: Page, path: Path) -> None:
    """The whole page with the fourth example at temperature 3, in six bits a colour."""
    import cv2

    from dataset.pictures import read_image

    page.locator(EXAMPLE).nth(3).click()
    page.get_by_label(SLIDER).fill("3")
    page.get_by_text("The landmarks moved").wait_for()
    page.wait_for_timeout(2000)
    page.screenshot(path=path, full_page=True)
    cv2.imwrite(str(path), read_image(path) | np.uint8(3), [cv2.IMWRITE_PNG_COMPRESSION, 9])


if __name__ == "__main__":
    sys.exit(main())
