"""Open a page that shows landmarks on a picture, and SepBN at work on it: attention weights module
by module, and what becomes of the landmarks when they are changed. Pictures stay on this machine,
and are deleted after 15 minutes.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path

from utils.files import UserError, reports_user_errors


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    networks = "trained network; name two to see both (default: our SepBN network)"
    add("--checkpoint", type=Path, action="append", metavar="FILE", help=networks)
    add("--detector", type=Path, metavar="ONNX", help="YuNet (default: what the page fetched)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    add("--port", type=int, help="on 127.0.0.1 (default: the first free one from 7860)")
    add("--no-browser", action="store_true", help="print the page's address, open no browser")
    args = parser.parse_args(argv)

    # leave by the way out, so that the folder goes
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))

    with tempfile.TemporaryDirectory(prefix="sepbn-demo-") as folder:
        # for Gradio: its files go with the page, nothing is sent, no proxy is asked for the page
        os.environ.update(GRADIO_TEMP_DIR=folder, GRADIO_ANALYTICS_ENABLED="0", HF_HUB_OFFLINE="1")
        direct = os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")
        os.environ["no_proxy"] = f"127.0.0.1,localhost,{direct}"
        serve(args)

    return 0


def serve(args: argparse.Namespace) -> None:
    """Show the page until the process is stopped."""
    try:
        from demonstration.page import build_page
    except ImportError as error:
        raise UserError(f"{error}; pip install -r requirements-demo.txt") from None

    from dataset.detector import YUNET, FaceDetector
    from demonstration.steering import SteeredPredictor
    from models.checkpoint import SHIPPED

    networks = args.checkpoint or [SHIPPED]
    predictors = [SteeredPredictor(network, device=args.device) for network in networks]
    yunet = args.detector or YUNET.cached
    detector = FaceDetector(yunet) if args.detector or yunet.is_file() else None
    page = build_page(predictors, detector)

    try:
        _, address, _ = page.launch(
            server_name="127.0.0.1",
            server_port=args.port,
            inbrowser=not args.no_browser,
            prevent_thread_lock=True,
            quiet=True,
            footer_links=[],
            css_paths=Path(__file__).parent / "demonstration" / "page.css",
        )
    except OSError:
        raise UserError(f"port {args.port} is taken; choose another one with --port") from None

    print(f"the page is at {address}; Ctrl+C ends it", flush=True)
    page.block_thread()


if __name__ == "__main__":
    sys.exit(main())
