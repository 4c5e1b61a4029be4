"""Evaluate checkpoints on the WFLW test set: accuracy on the full set and six subsets, differences
between models with their uncertainty, cost and speed; with --out also robustness to the face box,
files and figures.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.files import atomic_write, make_folder, reports_user_errors, write_json

if TYPE_CHECKING:
    from dataset.faces import FaceSet
    from evaluation.evaluate import Evaluation

VIEWS = range(1, 15)  # as dataset/views.py has it, which brings torch along


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)

    add, data = parser.add_argument, Path("dataset/WFLW256")
    files = (
        "checkpoint files, own or released form (default: every run and every .pth in checkpoints/)"
    )
    prepared = "folder of the prepared data (default: %(default)s)"
    out = "folder for metrics.json, faces.csv, table.md and figures (default: print only)"
    views = (
        "also the accuracy of the mean of N slightly different crops, up to 14: not the published "
        "protocol, so in a table of its own (default: %(default)s)"
    )

    add("checkpoints", nargs="*", metavar="CHECKPOINT", type=Path, help=files)
    add("--data", type=Path, default=data, help=prepared)
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
    from utils.device import keep_freed_memory, select_device

    keep_freed_memory()
    data, device = arguments.data, select_device(arguments.device)
    run: dict[str, Any] = {"device": device, "batch_size": arguments.batch_size}
    paths = arguments.checkpoints or evaluate.find_checkpoints(Path("checkpoints"))
    faces = load_faces(data, "test")
    models = evaluate.load_models(paths, faces, asked_for=bool(arguments.checkpoints))
    faces = evaluate.on_common_points(models, faces)
    mean_shape = evaluate.mean_shape_summary(data, faces)
    out = make_folder(arguments.out) if arguments.out else None

    protocol, warnings = tables.protocol(data, faces, models)
    print(*protocol, "", sep="\n")
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)

    results = evaluate.evaluate_all(models, faces, **run)
    masks, points = evaluate.subsets(faces), tables.count_points(faces.scheme)
    pairs = evaluate.differences(results, masks) if len(results) > 1 else []
    content: dict[str, Any] = {"protocol": protocol, "warnings": warnings, "points": points}
    content |= {"mean_shape": mean_shape, "differences": pairs}

    summaries = {e.name: e.summary for e in results}
    sections = [tables.accuracy_table(summaries, mean_shape, points)]
    if mean_shape is None:
        sections.append(f"The mean shape's row is left out: {data} has no training list.")
    if pairs:
        sections.append(tables.difference_table(pairs, masks))

    if arguments.views > 1:
        views = arguments.views
        several = {e.name: evaluate.with_views(e.loaded, faces, views, **run) for e in results}
        words = f"Mean of {views} views of each face; not the published protocol:"
        sections.append(f"{words}\n\n{tables.accuracy_table(several, None, points)}")
        content |= {"views": views, "with_views": several}

    sections.append(tables.cost_table(results))
    print(*sections, sep="\n\n")
    if out is not None:
        write_results(out, faces, results, content, sections, **run)

    return 0


def write_results(
    out: Path,
    faces: FaceSet,
    results: list[Evaluation],
    content: dict,
    sections: list[str],
    **run: Any,
) -> None:
    """Measure robustness too, and write metrics.json with ``content``, table.md with ``sections``,
    faces.csv and figures.
    """
    from evaluation import figures, tables
    from evaluation.robustness import ROBUSTNESS_FACES, robustness
    from utils.device import describe_machine

    curves = {result.name: robustness(result.loaded.model, faces, **run) for result in results}
    curve_tables = tables.robustness_tables(curves, min(len(faces), ROBUSTNESS_FACES))
    print("", *curve_tables, sep="\n\n")

    protocol = (f"- {line}\n" for line in content["protocol"] + content["warnings"])
    with atomic_write(out / "table.md", "w") as file:
        file.write("".join(protocol) + "\n" + "\n\n".join(sections + curve_tables) + "\n")

    tables.write_faces(out / "faces.csv", faces, results)
    models = {
        e.name: {
            "path": str(e.loaded.path),
            "config": e.loaded.config,
            "subsets": e.summary,
            **e.cost,
        }
        for e in results
    }
    more = {"machine": describe_machine(run["device"]), "data": faces.meta}
    write_json(out / "metrics.json", content | more | {"models": models, "robustness": curves})

    drawn = figures.write_evaluation(out, faces, results, curves)
    print(f"\nwrote metrics.json, faces.csv, table.md and {len(drawn)} figures to {out}")


if __name__ == "__main__":
    sys.exit(main())
