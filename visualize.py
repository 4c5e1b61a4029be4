"""Draw what a model has learnt: mapping parameters and attention weights of its SepBN modules,
landmarks on faces.

A checkpoint without SepBN has no mapping sets to show: it gets the faces only.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from utils.files import make_folder, reports_user_errors


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add, data, out = parser.add_argument, Path("dataset/WFLW256"), Path("results")
    network = "checkpoint file, own or released form (default: our SepBN network)"
    prepared = "folder of the prepared data (default: %(default)s)"

    add("checkpoint", metavar="CHECKPOINT", type=Path, nargs="?", help=network)
    add("--data", type=Path, default=data, help=prepared)
    add("--out", type=Path, default=out, metavar="DIR", help="for PNGs (default: %(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")

    return parser.parse_args(argv)


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)

    from dataset.faces import load_faces
    from evaluation import attention, figures
    from evaluation.evaluate import errors_of, predict_shown, require_same_points, spread
    from models.checkpoint import SHIPPED, load_model
    from utils.device import keep_freed_memory, select_device

    keep_freed_memory()
    device = select_device(arguments.device)
    loaded = load_model(arguments.checkpoint or SHIPPED)
    faces = load_faces(arguments.data, "test")
    require_same_points(loaded, faces)
    out = make_folder(arguments.out)
    print(f"{loaded.name}: {loaded.config['arm']}")

    drawn = {}
    shown = spread(len(faces), 12)

    if attention.sepbn_modules(loaded.model):
        prediction, weights = attention.attention_weights(loaded.model, faces, device=device)
        drawn["mapping_parameters"] = figures.mapping_parameters(loaded.model)
        drawn["attention_faces"] = figures.attention_gallery(faces, weights, shown)
        drawn["attention_by_subset"] = figures.attention_by_subset(weights, faces.attributes)
        drawn["set_usage"] = figures.set_usage(loaded.model, weights)
    else:
        prediction = predict_shown(loaded.model, faces, device=device)
        print("no SepBN modules in this checkpoint: drawing its landmarks on faces only")

    errors = errors_of(prediction, faces)
    rows = [("", shown[start : start + 4]) for start in range(0, len(shown), 4)]
    title = f"{loaded.name}: faces evenly spaced over the test set (dashed: what the network sees)"
    drawn["faces"] = figures.face_gallery(faces, prediction, errors, rows=rows, title=title)
    for name, figure in drawn.items():
        print(f"wrote {figures.save(figure, out / f'{name}.png')}")

    return 0


if __name__ == "__main__":
    sys.exit(main())
