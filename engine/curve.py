"""The training curve of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from utils.files import atomic_write


def training_curve(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw loss, test NME and learning rate by epoch.

    Args:
        rows: rows of the run's log; an epoch without a test NME has an empty one.
        path: PNG file to write.
    """
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    loss = figure.add_subplot()
    epochs = [row["epoch"] + 1 for row in rows]
    loss.plot(epochs, [row["loss"] for row in rows], color="black", label="training loss")
    loss.set(xlabel="epoch", ylabel="mean absolute error, crop pixels", yscale="log")
    tested = [(row["epoch"] + 1, row["test_nme_percent"]) for row in rows if row["test_nme_percent"] != ""]
    other = loss.twinx()
    if tested:
        other.plot(*zip(*tested, strict=True), "o--", color="tab:blue", label="test NME")
    other.set_ylabel("test NME, %", color="tab:blue")
    handles = [handle for axes in (loss, other) for handle in axes.get_legend_handles_labels()[0]]
    loss.legend(handles=handles, loc="upper right")
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=120)
