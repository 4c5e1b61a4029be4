"""benchmarks/gpu.sh on the CPU: what it leaves behind, and how it chooses a batch."""

from __future__ import annotations

import csv
import os
import subprocess
import sys

import pytest
from conftest import ROOT

from benchmarks.gpu import COLUMNS, choose
from models.checkpoint import load_model


def test_the_quick_run_leaves_tests_table_and_twins(tmp_path):
    out, temporary = tmp_path / "out", tmp_path / "temporary"
    temporary.mkdir()
    environment = {"OUT": str(out), "TMPDIR": str(temporary), "PYTHON": sys.executable}
    # far more minutes than it needs, so that a busy machine stops nothing
    command = ["bash", ROOT / "benchmarks/gpu.sh", "--quick", "--minutes", "15"]
    subprocess.run(command, env=os.environ | environment, check=True, capture_output=True)

    assert not [*temporary.glob("*/prepared*")]
    assert {path.name for path in out.iterdir()} == {
        *("log.txt", "table.csv", "sepbn.csv", "bn.csv", "sepbn.pt.0", "bn.pt.0")
    }

    log = (out / "log.txt").read_text()
    assert " skipped" in log and "table: done" in log and log.endswith("done\n")

    with (out / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 4  # two batches of the twins' width, and two precisions
    assert {row["norm"] for row in rows} == {"BatchNorm", "SepBN", "none", "released way"}
    assert all(row["over_batchnorm"] == "1.000" for row in rows if row["norm"] == "BatchNorm")
    assert all(float(row["ms"]) > 0 for row in rows)

    twins = [load_model(out / f"{name}.pt.0").config for name in ("sepbn", "bn")]
    assert [config["norm"] for config in twins] == ["sepbn", "bn"]
    for name in ("width", "batch_size", "lr", "epochs", "warmup_epochs", "precision", "seed"):
        assert twins[0][name] == twins[1][name], name


@pytest.mark.parametrize("how", ["graph", "eager"])
def test_the_batch_is_the_smallest_with_four_fifths_of_the_best_throughput(tmp_path, how):
    table = tmp_path / "table.csv"
    steps = {64: 1.0, 128: 1.5, 256: 2.5}  # ms; 64,000, 85,333 and 102,400 faces a second

    with table.open("w") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for width, norm, factor in ((32, "BatchNorm", 0.5), (32, "SepBN", 1), (64, "SepBN", 0.1)):
            for batch, ms in steps.items():
                writer.writerow((how, "bf16", batch, width, norm, factor * ms, "", "", ""))

    chosen, batch, seconds = choose(table, 32, 60_000)
    assert (chosen, batch) == (how, 128)
    assert seconds == pytest.approx(468 * 1.5e-3 + 60_000 * 1.5e-5)
