"""Open a page that shows landmarks on a picture, and SepBN at work on it: attention weights module
by module, and what becomes of the landmarks when they are changed.

Needs gradio (pip install -r requirements-demo.txt). Works without a network; pictures stay on this
machine, in memory. YuNet is used where its file is found: --detector, else the variable
SEPBN_YUNET, else torch's folder of fetched weights.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from utils.files import UserError, reports_user_errors

if TYPE_CHECKING:
    from dataset.detector import FaceDetector

YUNET = "face_detection_yunet_2023mar.onnx"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    parser.add_argument(
        "--checkpoint",
        type=Path,
        action="append",
        metavar="FILE",
        help="trained network; a second one is shown beside it (default: the released "
        "SepBN network)",
    )
    parser.add_argument("--detector", type=Path, metavar="ONNX", help=f"YuNet: {YUNET}")
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)"
    )
    parser.add_argument(
        "--port", type=int, default=7860, help="of the page on 127.0.0.1 (default: %(default)s)"
    )
    parser.add_argument(
        "--no-browser", action="store_true", help="print the page's address, open no browser"
    )

    return parser


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    if len(args.checkpoint or []) > 2:
        parser.error("--checkpoint: two networks at most")
    if not 1 <= args.port <= 65535:
        parser.error("--port must be from 1 to 65535")

    require_free_port(args.port)

    # Leave by the way out, also while networks are loaded, so that the folder goes.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))

    with tempfile.TemporaryDirectory(prefix="sepbn-demo-") as folder:
        keep_to_this_machine(folder)
        require_gradio()
        serve(args)

    return 0


def require_free_port(port: int) -> None:
    """Refuse a port that another program listens at, before seconds go into loading."""
    with socket.socket() as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind(("127.0.0.1", port))
        except OSError as error:
            raise UserError(
                f"port {port} cannot be used ({error.strerror}); choose another one with --port"
            ) from None


def require_gradio() -> None:
    """Refuse to go on without gradio, or with one that builds pages otherwise."""
    advice = "pip install -r requirements-demo.txt"
    try:
        import gradio
    except ImportError as error:
        raise UserError(f"the page needs gradio ({error}); {advice}") from None

    if int(gradio.__version__.split(".")[0]) < 6:
        raise UserError(f"the page needs gradio 6, here is {gradio.__version__}; {advice}")


def keep_to_this_machine(folder: str) -> None:
    """Settings that Gradio reads when it is imported: nothing is sent or fetched, and what it
    writes lies in a folder that goes with the page.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "0"
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["GRADIO_TEMP_DIR"] = folder
    # Gradio asks its own server whether it is there; a proxy would not know
    others = os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or ""
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = f"127.0.0.1,localhost,{others}".rstrip(",")


def find_detector(named: Path | None) -> FaceDetector | None:
    """YuNet from the named file, or from where it may lie already; None where it does not."""
    import torch

    from dataset.detector import FaceDetector

    if named is None and os.environ.get("SEPBN_YUNET"):
        named = Path(os.environ["SEPBN_YUNET"])
    if named is not None:
        return FaceDetector(named)

    cached = Path(torch.hub.get_dir()) / "checkpoints" / YUNET

    return FaceDetector(cached) if cached.is_file() else None


def serve(args: argparse.Namespace) -> None:
    """Show the page until the process is stopped."""
    import cv2

    from demonstration.page import build_page
    from demonstration.server import launch
    from demonstration.steering import SteeredPredictor
    from models.checkpoint import SHIPPED
    from utils.runtime import keep_freed_memory

    keep_freed_memory()
    # damaged pictures get a sentence on the page
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
    checkpoints = args.checkpoint or [SHIPPED]
    predictors = [SteeredPredictor(path, device=args.device) for path in checkpoints]
    detector = find_detector(args.detector)

    for path, predictor in zip(checkpoints, predictors, strict=True):
        print(f"checkpoint {path}: {predictor.config['arm']}; {predictor.scheme.name}")
    if detector is None:
        print(f"no {YUNET}: faces are the whole picture or a box that is drawn")

    launch(build_page(predictors, detector), args.port, browser=not args.no_browser)


if __name__ == "__main__":
    sys.exit(main())
