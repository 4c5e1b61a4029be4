"""The page's server: on this machine only, and with nothing on the page from anywhere else."""

from __future__ import annotations

import os
import sys
import webbrowser

import gradio as gr
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from demonstration.page import CSS
from demonstration.scene import LARGEST_FILE

HOST = "127.0.0.1"
MOST_VISITS = 20  # pages that are open at once, a picture in memory each
# Browsers refuse whatever else the page might ask for. Gradio builds its templates by `eval`.
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    "connect-src 'self'; form-action 'self'; base-uri 'self'; frame-ancestors 'none'"
)


class KeepToItself:
    """Adds the policy to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", POLICY.encode())
                message["headers"] = [*message.get("headers", []), policy]

            await send(message)

        await self.app(scope, receive, send_with_policy if scope["type"] == "http" else send)


def launch(page: gr.Blocks, port: int, *, browser: bool) -> None:
    """Serve the page until the process is stopped."""
    system = ["system-ui", "sans-serif"]
    theme = gr.themes.Default(font=system, font_mono=["ui-monospace", "monospace"])

    _, address, _ = page.launch(
        server_name=HOST,
        server_port=port,
        theme=theme,
        css_paths=CSS,
        share=False,
        quiet=True,
        ssr_mode=False,
        footer_links=[],
        max_file_size=LARGEST_FILE,
        state_session_capacity=MOST_VISITS,
        app_kwargs={"middleware": [Middleware(KeepToItself)]},
        prevent_thread_lock=True,
    )

    print(f"the page is at {address}; Ctrl+C ends it", flush=True)
    if browser and _has_windows():
        webbrowser.open(address)

    page.block_thread()


def _has_windows() -> bool:
    """Without a display, `webbrowser` would put a browser for terminals into this one."""
    display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return bool(display) or sys.platform in ("darwin", "win32")
