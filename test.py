"""Evaluate checkpoints on the WFLW test set: accuracy on the full set and six subsets, differences
between models with their uncertainty, cost and speed; with --out also robustness to the face box,
files and figures.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from utils.files import atomic_write, make_folder, reports_user_errors, write_json

if TYPE_CHECKING:
    from dataset.faces import FaceSet
    from evaluation.evaluate import Evaluation
    from models.checkpoint import LoadedModel

VIEWS = range(1, 15)  # as dataset/views.py has it, which brings torch along


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)

    add, data = parser.add_argument, Path("dataset/WFLW256")
    files = (
        "checkpoint files, own or released form (default: every run and every .pth in checkpoints/)"
    )
    out = "folder for metrics.json, faces.csv, table.md and figures (default: print only)"
    views = (
        "also the accuracy of the mean of N slightly different crops, up to 14: not the published "
        "protocol, so in a table of its own (default: %(default)s)"
    )

    add("checkpoints", nargs="*", metavar="CHECKPOINT", type=Path, help=files)
    add(
        "--data", type=Path, default=data, help="folder of the prepared data (default: %(default)s)"
    )
    add("--out", type=Path, metavar="DIR", help=out)
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    add("--batch-size", type=int, default=64, help="faces per forward pass (default: %(default)s)")
    add("--views", type=int, default=1, metavar="N", choices=VIEWS, help=views)
    arguments = parser.parse_args(argv)
    if arguments.batch_size < 1:
        parser.error("--batch-size must be at least 1")

    return arguments


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)

    from dataset.faces import load_faces
    from evaluation import evaluate, tables
    from evaluation.robustness import ROBUSTNESS_FACES, robustness
    from utils.device import describe_machine, keep_freed_memory, select_device

    keep_freed_memory()
    run = {"device": select_device(arguments.device), "batch_size": arguments.batch_size}
    paths = arguments.checkpoints or evaluate.find_checkpoints(Path("checkpoints"))
    faces = load_faces(arguments.data, "test")
    models = evaluate.load_models(paths, faces, asked_for=bool(arguments.checkpoints))
    models, faces = evaluate.on_common_points(models, faces)
    mean_shape = evaluate.mean_shape_summary(arguments.data, faces)
    out = make_folder(arguments.out) if arguments.out else None

    content = tell_protocol(arguments.data, faces, models)
    results = evaluate.evaluate_all(models, faces, **run)
    sections = tables_of_accuracy(arguments.data, faces, results, mean_shape, content=content)

    if arguments.views > 1:
        several = [evaluate.with_views(e, faces, arguments.views, **run) for e in results]
        sections.append(tables.views_table(several, arguments.views, content["points"]))
        content["views"] = arguments.views
        content["with_views"] = {e.name: e.summary for e in several}

    sections.append(tables.cost_table(results))
    print(*sections, sep="\n\n")
    if out is None:
        return 0

    curves = {result.name: robustness(result.loaded.model, faces, **run) for result in results}
    curve_tables = tables.robustness_tables(curves, min(len(faces), ROBUSTNESS_FACES))
    print("", *curve_tables, sep="\n\n")

    content |= {"machine": describe_machine(run["device"]), "models": describe_models(results)}
    content |= {"data": faces.meta, "robustness": curves}
    write_results(out, faces, results, content, sections + curve_tables)

    return 0


def tables_of_accuracy(
    data: Path,
    faces: FaceSet,
    results: list[Evaluation],
    mean_shape: dict[str, dict[str, float]] | None,
    *,
    content: dict,
) -> list[str]:
    """Errors of the models and their differences, which go to ``content`` too."""
    from evaluation import evaluate, tables

    masks, points = evaluate.subsets(faces), tables.count_points(faces.scheme)
    pairs = evaluate.differences(results, masks) if len(results) > 1 else []
    content |= {"points": points, "mean_shape": mean_shape, "differences": pairs}

    sections = [tables.accuracy_table(results, mean_shape, points)]
    if mean_shape is None:
        sections.append(f"The mean shape's row is left out: {data} has no training list.")
    if pairs:
        sections.append(tables.difference_table(pairs, masks))

    return sections


def tell_protocol(data: Path, faces: FaceSet, models: dict[str, LoadedModel]) -> dict:
    """Print how the numbers to come are made, and on stderr what makes them incomparable; returns
    both, as metrics.json says them.
    """
    from evaluation import tables

    protocol, warnings = tables.protocol(data, faces, models)
    print(*protocol, "", sep="\n")
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)

    return {"protocol": protocol, "warnings": warnings}


def describe_models(results: list[Evaluation]) -> dict[str, dict]:
    """What metrics.json says of every model."""
    return {
        result.name: {
            "path": str(result.loaded.path),
            "config": result.loaded.config,
            "subsets": result.summary,
            **result.cost,
        }
        for result in results
    }


def write_results(
    out: Path, faces: FaceSet, results: list[Evaluation], content: dict, sections: list[str]
) -> None:
    """Write metrics.json with ``content``, table.md with ``sections``, faces.csv and figures."""
    from evaluation import tables
    from evaluation.figures import write_evaluation

    with atomic_write(out / "table.md", "w") as file:
        file.write("\n".join(f"- {line}" for line in content["protocol"] + content["warnings"]))
        file.write("\n\n" + "\n\n".join(sections) + "\n")

    tables.write_faces(out / "faces.csv", faces, results)
    write_json(out / "metrics.json", content)
    figures = write_evaluation(out, faces, results, content["robustness"])
    print(f"\nwrote metrics.json, faces.csv, table.md and {len(figures)} figures to {out}")


if __name__ == "__main__":
    sys.exit(main())
