"""Starts Chromium for the browser tests, and operates the page's controls as a person does."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SECONDS = 60_000
"""The time limit of every action, in milliseconds."""
WINDOW = (1280, 1000)


def find_chromium() -> str | None:
    """Returns the browser's executable."""
    return next(filter(None, map(shutil.which, NAMES)), None)


STOP = """panel => {
    const focused = document.activeElement, style = getComputedStyle(focused);
    if (!focused.closest(panel)) return null;
    const block = focused.closest("[id^=script_]"), box = focused.getBoundingClientRect();
    const opaque = (node) => {
        const colour = getComputedStyle(node).backgroundColor;
        return !node.parentElement || !/, 0\\)$|transparent/.test(colour) ? colour : opaque(node.parentElement);
    };
    return {
        block: block.id.split("_demofusion_hires_")[1], top: block.getBoundingClientRect().top + scrollY,
        left: block.getBoundingClientRect().left, seen: box.width > 0 && box.height > 0,
        width: style.outlineStyle === "solid" ? parseFloat(style.outlineWidth) : 0, colour: style.outlineColor,
        ground: opaque(focused.parentElement),
    };
}"""
"""The focused element, if it is in the panel, and the area around it that shows the focus."""


STILL = """document.addEventListener("DOMContentLoaded", () => {
    const style = document.createElement("style");
    style.textContent = "* { animation: none !important; }";
    document.head.append(style);
});"""
"""Turns off the animations of a page."""

LAYOUT = Path(__file__).with_name("layout.js").read_text(encoding="utf-8")


@contextmanager
def launched(program: str) -> Iterator[Any]:
    """Starts a browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, headless=True, args=FLAGS)
        yield browser
        browser.close()


class Tab:
    """One tab of the page."""

    def __init__(self, page: Any, name: str):
        self.page = page
        self.name = name
        self.panel = f"#script_{name}_demofusion_hires"
        page.locator(".tab-nav button").filter(has_text=name).first.click()
        page.wait_for_selector(f"{self.panel}_enabled-visible-checkbox", timeout=SECONDS)

    def id(self, name: str) -> str:
        """Returns a selector of the webui's own control."""
        return f"#{self.name}_{name}"

    def number(self, selector: str, value: float) -> None:
        """Types a number."""
        box = self.page.locator(f"{selector} input[type=number]").first
        box.fill(f"{value:g}")
        box.blur()

    def value(self, selector: str) -> str:
        """Returns the value that a control shows."""
        return self.page.locator(f"{selector} input, {selector} textarea").first.input_value()

    @property
    def progress(self) -> Any:
        """The progress bar during a run.

        In a webui it is above the gallery. The stand-in has a separate element for it.
        """
        return self.page.locator(f"#{self.name}_results .progressDiv, {self.id('progress')} .progressDiv")

    @property
    def enabled(self) -> bool:
        """Whether the panel's checkbox is ticked, as Python sees it."""
        return self.page.locator(f"{self.panel}_enabled-checkbox input").is_checked()

    def open_panel(self) -> None:
        """Opens the panel, which enables it, and the section "Advanced"."""
        if not self.enabled:
            self.page.click(f"{self.panel}_enabled > .label-wrap")
        self.page.wait_for_function(
            "selector => document.querySelector(selector).checked", arg=f"{self.panel}_enabled-checkbox input"
        )
        advanced = f"{self.panel}_advanced > .label-wrap"
        if "open" not in (self.page.get_attribute(advanced, "class") or "").split():
            self.page.click(advanced)
        self.page.locator(f"{self.panel}_preset_name").wait_for(timeout=SECONDS)

    def stops(self) -> list[dict[str, Any]]:
        """Presses Tab through the panel from its checkbox.

        Returns the focused elements and how each shows the focus.
        """
        self.page.focus(f"{self.panel}_enabled-visible-checkbox")
        found: list[dict[str, Any]] = []
        while True:
            self.page.keyboard.press("Tab")
            stop = self.page.evaluate(STOP, f"{self.panel}_enabled")
            if stop is None:
                return found
            found.append(stop)

    def layout_problems(self, width: int, height: int = 1000) -> list[str]:
        """Lists the panel's controls that are cut off or covered in a window of this size."""
        self.page.set_viewport_size({"width": width, "height": height})
        # wait until the page has finished its new layout
        self.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return [f"{width}: {problem}" for problem in self.page.evaluate(LAYOUT, self.panel)]

    def text(self, name: str, text: str) -> str:
        """Types into a control of the panel, key by key as a person does. Returns its selector."""
        selector = f"{self.panel}_{name} textarea, {self.panel}_{name} input"
        self.page.click(selector, timeout=SECONDS)
        self.page.keyboard.press("Control+A")
        self.page.keyboard.type(text, delay=20)
        return selector

    def presets(self) -> list[str]:
        """Returns the available presets."""
        return [text.strip() for text in self.page.locator(f"{self.panel}_preset label").all_inner_texts()]

    def choose_preset(self, name: str) -> None:
        """Chooses a preset."""
        label = self.page.locator(f"{self.panel}_preset label").filter(
            has_text=re.compile(f"^\\s*{re.escape(name)}\\s*$")
        )
        label.first.click(timeout=SECONDS)

    def wait_for_preset(self, name: str) -> None:
        """Waits until a preset is selected."""
        chosen = self.page.locator(f"{self.panel}_preset label.selected")
        chosen.filter(has_text=re.compile(f"^\\s*{re.escape(name)}\\s*$")).wait_for(timeout=SECONDS)

    def wait_for_value(self, name: str, value: str) -> None:
        """Waits until a control of the panel shows a value."""
        selector = f"{self.panel}_{name} input, {self.panel}_{name} textarea"
        script = "([selector, value]) => document.querySelector(selector).value === value"
        self.page.wait_for_function(script, arg=[selector, value], timeout=SECONDS)

    def wait_for_message(self, text: str) -> None:
        """Waits until a message is below the presets."""
        message = self.page.locator(f"{self.panel}_preset_message.prose")
        message.filter(has_text=re.compile(re.escape(text))).wait_for(timeout=SECONDS)

    def wait_for_line(self, text: str) -> str:
        """Waits until the live line contains a text. Returns the line."""
        # gradio 3 gives the class to the text too, gradio 4 only to its container
        line = self.page.locator(f"{self.panel}_line.prose, {self.panel}_line .prose")
        line.filter(has_text=re.compile(re.escape(text))).wait_for(timeout=SECONDS)
        return line.inner_text()

    def wait_for_progress(self, text: str) -> str:
        """Waits until the progress bar contains a text. Returns the bar's whole text."""
        self.progress.filter(has_text=re.compile(re.escape(text))).wait_for(timeout=SECONDS)
        return self.progress.inner_text()

    def wait_until_done(self) -> None:
        """Waits until a run has begun and ended."""
        self.progress.wait_for(state="detached", timeout=SECONDS)

    def generate(self) -> None:
        """Starts a run and waits until it shows."""
        self.page.click(self.id("generate"))
        # wait for "attached", because above an empty gallery of the webui the bar has no height
        self.progress.wait_for(state="attached", timeout=SECONDS)

    def image_sizes(self) -> list[int]:
        """Returns the widths of the images in the gallery."""
        images = f"{self.id('gallery')} .thumbnails img"
        self.page.wait_for_selector(images, timeout=SECONDS, state="attached")
        script = "all => Promise.all(all.map(async i => { await i.decode(); return i.naturalWidth; }))"
        return self.page.eval_on_selector_all(images, script)

    def wait_for_infotext(self, text: str) -> str:
        """Waits until the text under the images contains a part. Returns the whole text."""
        info = self.page.locator(f"#html_info_{self.name}.prose")
        info.filter(has_text=re.compile(re.escape(text))).wait_for(timeout=SECONDS)
        return info.inner_text()

    def messages(self) -> Any:
        """The messages about the last run above its image."""
        messages = self.page.locator(".demofusion-messages")
        messages.wait_for(timeout=SECONDS)
        return messages

    def infotext(self) -> str:
        """The text under the images."""
        return self.page.inner_text(f"#html_info_{self.name}.prose")


def screenshot(page: Any, folder: Path, name: str) -> None:
    """Saves a screenshot of the whole page."""
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=str(folder / f"{name}.png"), full_page=True)


def contrast(one: str, other: str) -> float:
    """Returns the contrast of two colours as defined by the WCAG, from 1 to 21.

    Colours have the form `rgb(1, 2, 3)`.
    """

    def luminance(colour: str) -> float:
        parts = [int(n) / 255 for n in re.findall(r"\d+", colour)[:3]]
        linear = (n / 12.92 if n <= 0.04045 else ((n + 0.055) / 1.055) ** 2.4 for n in parts)
        return sum(weight * n for weight, n in zip((0.2126, 0.7152, 0.0722), linear))

    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


@contextmanager
def listening(page: Any, event: str, react: Callable[[Any], None]) -> Iterator[None]:
    """Calls a function for every event of a kind during the block."""
    page.on(event, react)
    try:
        yield
    finally:
        page.remove_listener(event, react)


def show(page: Any, url: str, size: tuple[int, int] = WINDOW) -> None:
    """Loads the webui's page in a window of the given size (width, height)."""
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.goto(url, wait_until="domcontentloaded")
    page.wait_for_selector("#txt2img_generate", timeout=SECONDS)


def open_panel(page: Any, url: str, size: tuple[int, int] = WINDOW, name: str = "txt2img") -> Tab:
    """Loads the webui's page and opens the panel of a tab."""
    show(page, url, size)
    tab = Tab(page, name)
    tab.open_panel()
    return tab
