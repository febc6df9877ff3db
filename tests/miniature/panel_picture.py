"""Makes the picture of the panel in README: python tests/miniature/panel_picture.py URL [FILE].

URL is the address of a server (tests/miniature/serve_tiny.py) that has not run a job yet. After a job, the panel would
show an expected time for the tiny model. FILE is the PNG file, by default pictures/panel.png. This file also contains
the texts of the panel. A test compares these texts with the current panel.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from browser import Tab, find_chromium, launched, open_panel
from PIL import Image, PngImagePlugin

FILE = Path(__file__).resolve().parents[2] / "pictures" / "panel.png"
KEY = "Texts"
NATIVE = 1024
"""Width and height of the base image in pixels. This is the native size of SDXL."""


def shown_panel(page: Any, url: str) -> Tab:
    """Opens the panel in txt2img with a base image of NATIVE x NATIVE pixels, and waits for its line."""
    tab = open_panel(page, url)
    for name in ("width", "height"):
        tab.number(tab.id(name), NATIVE)
    tab.wait_for_line(f"{NATIVE}x{NATIVE} → ")
    # while an event runs, gradio writes hidden texts with the seconds into the components that the event updates
    seconds = f"{tab.panel}_enabled [class*=meta-text]"
    page.wait_for_function("selector => !document.querySelector(selector)", arg=seconds)
    return tab


def texts(tab: Tab) -> list[str]:
    """Returns the panel's lines of text in alphabetical order. Their order on the page depends on gradio's version."""
    lines = tab.page.inner_text(f"{tab.panel}_enabled").splitlines()
    # lines without a letter or number are symbols, such as the arrows of the sections
    return sorted({line.strip() for line in lines if any(map(str.isalnum, line))})


def main() -> None:
    """Saves a screenshot of the panel as a PNG file that also contains the panel's texts."""
    url, file = sys.argv[1], Path(sys.argv[2]) if len(sys.argv) > 2 else FILE
    program = find_chromium()
    if program is None:
        sys.exit("no Chromium was found; on Debian: apt-get install chromium")
    with launched(program) as browser:
        tab = shown_panel(browser.new_page(), url)
        tab.page.mouse.move(0, 0)
        tab.page.locator(f"{tab.panel}_enabled").screenshot(path=str(file))
        written = PngImagePlugin.PngInfo()
        written.add_text(KEY, json.dumps(texts(tab)))
    with Image.open(file) as picture:
        picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=128).save(file, optimize=True, pnginfo=written)


if __name__ == "__main__":
    main()
