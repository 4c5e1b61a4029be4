"""What two networks cost when they are used: folded in torch, and exported in onnxruntime.

    python benchmarks/inference.py --data DIR [--pairs 100] [CHECKPOINT CHECKPOINT]

On one thread, on crops of the prepared folder's test faces, one at a time and 32 together; rows are
the first network's time over the second's. Needs onnx, onnxscript and onnxruntime.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import onnxruntime
import torch
from torch import Tensor

from benchmarks.paired import machine, paired_ratio, take_turns
from dataset.faces import central_crops, load_faces
from models.checkpoint import load_model
from models.folding import fold_normalisation
from prediction.onnx_file import to_onnx
from utils.files import reports_user_errors

CHECKPOINTS = (Path("checkpoints/sepbn16.pt"), Path("checkpoints/bn16.pt"))
LAYOUTS = {"torch": torch.channels_last, "onnxruntime": torch.contiguous_format}


def forward_passes(checkpoint: Path) -> dict[str, Callable[[Tensor], Any]]:
    """Of crops, by what runs them."""
    model = fold_normalisation(load_model(checkpoint).model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    data = to_onnx(model).SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    return {
        "torch": model.to(memory_format=torch.channels_last),
        "onnxruntime": lambda crops: session.run(None, {"crops": crops.numpy()}),
    }


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoints", type=Path, nargs="*", default=CHECKPOINTS)
    parser.add_argument("--data", default="dataset/WFLW256", help="prepared folder")
    parser.add_argument("--pairs", type=int, default=100, help="default: 100; of 32 crops a fifth")
    args = parser.parse_args(argv)
    if len(args.checkpoints) != 2:
        parser.error("two checkpoints are compared")

    torch.set_num_threads(1)
    faces = load_faces(args.data, "test")
    chosen = torch.arange(32) % len(faces)
    crops = central_crops(faces.patches[chosen])
    print(machine())

    with torch.inference_mode():
        networks = [forward_passes(checkpoint) for checkpoint in args.checkpoints]
        for batch, name in itertools.product((1, 32), LAYOUTS):
            x = crops[:batch].contiguous(memory_format=LAYOUTS[name])
            pair = {str(i): partial(network[name], x) for i, network in enumerate(networks)}
            pairs = args.pairs if batch == 1 else args.pairs // 5 + 1
            first, second = take_turns(pair, pairs, warm_up=3).values()
            least = f"least {1000 * first.min():.2f} / {1000 * second.min():.2f} ms"
            print(f"{name}, batch {batch}: {paired_ratio(first, second)}; {least}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
