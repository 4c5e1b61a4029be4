"""Make a finished run's network into a small file that may be given away.

    python research/pack.py checkpoints/RUN --out checkpoints/sepbn16.pt --data DIR

Convolution kernels and matrices become floating point 16, vectors stay as they are. Of the
settings only those that describe the network and its training are kept: no path, no command, no
machine. With --data, the NME on each prepared folder's test faces is measured before and after,
and a file that changes it by more than 0.02 points is not written.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from dataset.faces import load_faces
from evaluation.evaluate import face_errors, require_same_points
from models.checkpoint import FORMAT, LoadedModel, load_model, read, save
from utils.files import UserError, atomic_write, reports_user_errors

KEPT = (
    *("norm", "num_landmarks", "scheme", "scheme_definition", "width", "sets", "groups"),
    *("attention_grid", "temperature", "resample", "box_scale", "released_geometry"),
    *("mean_shape_init", "photometric", "epochs", "warmup_epochs", "batch_size", "lr", "momentum"),
    *("weight_decay", "seed", "precision", "faces", "fingerprint"),
)
LEFT_OUT = (
    *("run", "data", "init", "command", "commit", "machine", "arm", "device", "device_type"),
    *("processes", "compile", "no_graph", "limit", "eval_every", "save_every", "keep_every"),
    *("tensorboard",),
)
LARGEST_CHANGE = 0.02  # points of NME
LARGEST_FILE = 12_000_000  # bytes


def pack(content: dict[str, Any], run: str) -> dict[str, Any]:
    """The content of a checkpoint, half as large and without anything about where it was made.

    Args:
        content: of a finished run's ``final.pt``.
        run: the name it goes by from now on.
    """
    state = {
        name: tensor.half() if tensor.is_floating_point() and tensor.dim() > 1 else tensor
        for name, tensor in content["model"].items()
    }

    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"{name} holds values that floating point 16 has no room for")

    settings = content["config"]
    if unknown := sorted(set(settings) - {*KEPT, *LEFT_OUT}):
        raise UserError(
            f"nothing is known of its settings {', '.join(unknown)}: add them to KEPT or LEFT_OUT "
            "in research/pack.py"
        )

    config = {name: settings[name] for name in KEPT if name in settings}

    return {"model": state, "config": config | {"run": run}, "format": FORMAT}


def compare(before: LoadedModel, after: LoadedModel, folders: list[Path]) -> bool:
    """Print the NME of both on the test faces of every folder; whether they are near enough."""
    near = True

    for folder in folders:
        faces = load_faces(folder, "test")
        require_same_points(before, faces)
        errors = [face_errors(network.model, faces, device="cpu") for network in (before, after)]
        old, new = (100 * error.mean() for error in errors)
        near &= bool(abs(new - old) <= LARGEST_CHANGE)
        print(f"{folder}: n = {len(faces)}, NME {old:.4f} % before, {new:.4f} % after")

    return near


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Make a finished run's network into a small file that may be given away."
    )
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="folder of a finished run, or its final.pt")
    add("--out", type=Path, required=True, metavar="FILE", help="the file to write")
    data = "prepared folder whose test faces show what it costs; may be repeated"
    add("--data", type=Path, action="append", default=[], metavar="DIR", help=data)

    return parser.parse_args(argv)


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    source = args.run / "final.pt" if args.run.is_dir() else args.run
    before = load_model(source)
    content = read(source)

    if before.config["format_name"] != "own" or "training" in content:
        raise UserError(f"{source}: not the final.pt of a finished run")
    if args.out.exists() and args.out.samefile(source):
        raise UserError(f"--out {args.out} is the run's own checkpoint; choose another name")

    with tempfile.TemporaryDirectory() as folder:
        packed = Path(folder) / args.out.name
        save(packed, pack(content, args.out.stem))
        data = packed.read_bytes()
        near = compare(before, load_model(packed), args.data)

    if not near:
        raise UserError(f"{args.out} not written: its NME differs by more than {LARGEST_CHANGE}")
    if len(data) > LARGEST_FILE:
        raise UserError(
            f"{args.out} not written: {len(data) / 1e6:.1f} MB, more than {LARGEST_FILE / 1e6:.0f}"
        )

    with atomic_write(args.out) as file:
        file.write(data)

    print(f"{args.out}: {before.config['arm']}")
    print(f"{len(data) / 1e6:.1f} MB, sha256 {hashlib.sha256(data).hexdigest()}")

    return 0


if __name__ == "__main__":
    sys.exit(main())
