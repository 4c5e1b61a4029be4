"""What grows with the number of faces: seconds, memory and faces/s of every command.

    python benchmarks/scale.py [--sizes 1250 2500 5000 10000] [--work DIR]

For each size, synthetic faces are made (three quarters to train) and go through every command,
each as a process of its own: making, preparing, the first start of a training (which decodes the
patches), a second start, 100 steps at width 8, test.py, and predict.py on the test pictures. Starts
count from the command to its first saved step, imports included. Memory is the peak of anonymous
resident memory (RssAnon) of the process and its children, read 20 times a second: pages of mapped
patches are the system's cache and not counted. One table in Markdown; Linux only.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.paired import machine
from dataset.annotations import official_list, read_official_list
from evaluation.tables import markdown_table
from utils.files import UserError, reports_user_errors
from utils.progress import note

ROOT = Path(__file__).resolve().parent.parent
LOOK_SECONDS = 0.05
STEPS = 100
WIDTH = 8


def anonymous_memory(process: int) -> int:
    """Bytes of RssAnon of a process and all its descendants; 0 for those that have ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return 0

    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    own = int(found[1]) * 1024 if found else 0

    return own + sum(anonymous_memory(int(child)) for child in children)


def run(
    command: list[str], folder: Path, *, until: Callable[[], bool] = lambda: False
) -> tuple[float, int]:
    """Run a script to its end, or until something is there -> (seconds, peak bytes).

    Raises:
        UserError: the script failed.
    """
    log = folder / "log.txt"
    started, peak = time.monotonic(), 0

    with log.open("w") as output:
        script = [sys.executable, str(ROOT / command[0]), *command[1:]]
        process = subprocess.Popen(script, cwd=folder, stdout=output, stderr=output)

        while process.poll() is None and not until():
            peak = max(peak, anonymous_memory(process.pid))
            time.sleep(LOOK_SECONDS)

    seconds = time.monotonic() - started
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        process.wait()
    elif process.returncode:
        last = log.read_text().strip().splitlines()[-1]
        raise UserError(f"{command[0]} failed: {last}")

    return seconds, peak


def seconds_of_steps(data: Path, folder: Path) -> tuple[float, int]:
    """Seconds of 100 training steps, from the lines of the log, and peak memory of that run."""
    seen: list[tuple[float, int]] = []  # when a step was first read of, and its number

    def enough() -> bool:
        steps = re.findall(r"step ([\d,]+) of", (folder / "log.txt").read_text())
        step = int(steps[-1].replace(",", "")) if steps else 0
        if step and (not seen or seen[-1][1] != step):
            seen.append((time.monotonic(), step))

        return len(seen) > 1 and seen[-1][1] - seen[0][1] >= STEPS

    command = ["trainBaseline.py", "--data", str(data), "--width", str(WIDTH), "--run", "steps"]
    _, memory = run([*command, "--epochs", "1000"], folder, until=enough)
    (first, low), (last, high) = seen[0], seen[-1]

    return (last - first) * STEPS / (high - low), memory


def write_boxes(wflw: Path, target: Path) -> None:
    """The annotated boxes of the test faces, as the table that predict.py reads."""
    faces = read_official_list(official_list(wflw, "test"))
    rows = [",".join(map(str, (face.image, *face.box))) for face in faces]
    target.write_text("\n".join(["file,x0,y0,x1,y1", *rows]) + "\n")


def measure(size: int, work: Path) -> dict[str, str]:
    """All commands on ``size`` new faces in the folder ``work`` -> seconds, faces/s and memory."""
    train, test = size * 3 // 4, size - size * 3 // 4
    wflw, data, folder, boxes = (work / name for name in ("faces", "data", "runs", "boxes.csv"))
    folder.mkdir()
    cells = {}

    def add(name: str, faces: int, cost: tuple[float, int]) -> None:
        seconds, memory = cost
        cells[name] = f"{seconds:.1f} s, {faces / seconds:,.0f}/s, {memory / 1e9:.2f} GB"
        note(f"{size:,} faces, {name}: {cells[name]}")

    counts = ["--train", str(train), "--test", str(test), "--seed", "1"]
    add("render", size, run(["synthetic/createSynthetic.py", "--out", str(wflw), *counts], folder))
    prepare = ["dataset/createWFLW256.py", "--wflw", str(wflw), "--out", str(data)]
    add("prepare", size, run(prepare, folder))

    start = ["trainBaseline.py", "--data", str(data), "--width", str(WIDTH), "--run", "start"]
    start += ["--save-every", "0"]
    saved = folder / "checkpoints" / "start" / "last.pt"
    add("first start", size, run(start, folder, until=saved.exists))
    saved.unlink()
    add("second start", size, run([*start, "--overwrite"], folder, until=saved.exists))
    add(f"{STEPS} steps", 8 * STEPS, seconds_of_steps(data, folder))

    checkpoint = str(folder / "checkpoints" / "steps" / "last.pt")
    add("test.py", test, run(["test.py", checkpoint, "--data", str(data)], folder))
    write_boxes(wflw, boxes)
    pictures = map(str, sorted((wflw / "WFLW_images").glob("test--*")))
    predict = ["predict.py", *pictures, "--boxes", str(boxes), "--checkpoint", checkpoint]
    add("predict.py", test, run(predict, folder))

    return cells


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[1250, 2500, 5000, 10_000])
    parser.add_argument("--work", type=Path, help="where faces are kept meanwhile (default: /tmp)")
    arguments = parser.parse_args(argv)
    if not os.path.exists("/proc/self/status"):
        raise UserError("memory is read from /proc, which this system does not have; use Linux")

    columns = {}
    for size in arguments.sizes:
        work = Path(tempfile.mkdtemp(dir=arguments.work)).resolve()  # scripts run elsewhere
        try:
            columns[f"{size:,} faces"] = measure(size, work)
        finally:
            shutil.rmtree(work)

    names = next(iter(columns.values()))
    rows = [[name, *(cells[name] for cells in columns.values())] for name in names]
    print(markdown_table(["command", *columns], rows))
    print(machine())

    return 0


if __name__ == "__main__":
    sys.exit(main())
