"""Stand-in: loads the model and the extension, and serves the page."""

import logging
import os
import re
import sys
import webbrowser
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
HOST = "127.0.0.1"
NATIVE = 128
"""Width and height of the images on which the bundled model was trained, in pixels."""

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
for folder in (ROOT, HERE):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def prepare(data_path: Path, model: Any) -> None:
    """Loads the extension's scripts and makes all jobs use the model.

    `model` is the path of a checkpoint, or a model that is loaded already. Jobs write their files into `data_path`.
    """
    from modules import paths_internal

    paths_internal.data_path = str(data_path)
    from modules import script_callbacks, scripts, sd_models

    if isinstance(model, Path):
        sd_models.load_model(model)
    else:
        sd_models.use_model(model, "random")
    if not scripts.scripts_data:
        scripts.load_scripts(ROOT)
        script_callbacks.call("ui_settings")


def build() -> Any:
    """Builds the page, with the extension's scripts and styles after those of the stand-in."""
    from modules import ui

    files = (HERE / "page.js", *sorted((ROOT / "javascript").glob("*.js")), HERE / "page.css", ROOT / "style.css")
    *scripts, style, own_style = (file.read_text(encoding="utf-8") for file in files)
    return ui.build(scripts, style + own_style, NATIVE)


REMOTE = re.compile(rb"<(script|link)\b[^>]*https://[^>]*>(?:\s*</script>)?")
"""Matches the HTML elements with which gradio's page loads scripts and fonts from other hosts."""


def keep_at_home() -> None:
    """Changes gradio's page so that it loads nothing from other hosts, and therefore works without a network."""
    from gradio.routes import templates

    make = templates.TemplateResponse

    def local(*args: Any, **kwargs: Any) -> Any:
        response = make(*args, **kwargs)
        response.body = REMOTE.sub(b"", response.body)
        response.init_headers()
        return response

    templates.TemplateResponse = local


def serve(port: int, browser: bool) -> None:
    """Serves the page until Ctrl+C, on the first free port from `port` on. Opens a browser if `browser` is set."""
    from trial.bootstrap import free_port

    logging.getLogger("httpx").setLevel(logging.WARNING)
    keep_at_home()
    page = build()
    page.queue(concurrency_count=2)
    chosen = free_port(port)
    _, url, _ = page.launch(server_name=HOST, server_port=chosen, prevent_thread_lock=True, quiet=True, show_api=False)
    taken = f" (port {port} is in use)" if chosen != port else ""
    print(f"\nThe page is at {url}{taken}. Ctrl+C stops it.", flush=True)
    if browser and not webbrowser.open(url):
        print("No browser could be started. Open this address in a browser.", flush=True)
    try:
        page.block_thread()
    except KeyboardInterrupt:
        page.close()
