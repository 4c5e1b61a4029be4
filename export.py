"""Write a checkpoint's network as an ONNX file, checked against torch before it is written.

Input `crops` (N, 3, 128, 128), output `landmarks` (N, 2P) in pixels of the 128 crop, any N; how to
cut, scale and read them stands in the file's metadata. Needs the packages onnx, onnxscript and
onnxruntime.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from utils.files import reports_user_errors

OLDEST_OPSET = 18  # as prediction/onnx_file.py has it, which brings torch along


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add, network = parser.add_argument, "final.pt of a run, or a released .pth"
    opset = (
        "version of ONNX's operators, from 18 on; newer ones need newer readers (default: "
        "%(default)s)"
    )
    add("checkpoint", type=Path, metavar="CHECKPOINT", help=network)
    add("--onnx", type=Path, required=True, metavar="FILE", help="the file to write")
    add("--opset", type=int, default=OLDEST_OPSET, metavar="N", help=opset)
    args = parser.parse_args(argv)
    if not OLDEST_OPSET <= args.opset < 100:
        parser.error(f"--opset must be at least {OLDEST_OPSET}, and less than 100")

    from prediction.onnx_file import write_onnx

    write_onnx(args.checkpoint, args.onnx, args.opset)

    return 0


if __name__ == "__main__":
    sys.exit(main())
