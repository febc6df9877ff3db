"""Starts Chromium for the browser tests. The class `Tab` clicks and types in the controls of the page like a user."""

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
TIMEOUT = 60_000
"""The time limit for waiting, in milliseconds."""
WINDOW = (1280, 1000)
"""The default width and height of the window in pixels."""


def find_chromium() -> str | None:
    """Returns the path of Chromium or Chrome, or None if neither is installed."""
    return next(filter(None, map(shutil.which, NAMES)), None)


STOP = """panel => {
    const focused = document.activeElement, style = getComputedStyle(focused);
    if (!focused.closest(panel)) return null;
    const block = focused.closest("[id^=script_]"), box = focused.getBoundingClientRect();
    const opaque = (node) => {
        const color = getComputedStyle(node).backgroundColor;
        return !node.parentElement || !/, 0\\)$|transparent/.test(color) ? color : opaque(node.parentElement);
    };
    return {
        block: block.id.split("_demofusion_hires_")[1], top: block.getBoundingClientRect().top + scrollY,
        left: block.getBoundingClientRect().left, visible: box.width > 0 && box.height > 0,
        width: style.outlineStyle === "solid" ? parseFloat(style.outlineWidth) : 0, color: style.outlineColor,
        background: opaque(focused.parentElement),
    };
}"""
"""JavaScript that describes the element that has the focus, or returns null if this element is outside the panel.

The result contains the name of the gradio component, the position of the component, whether the element has a size, the
width and color of the element's outline, and the background color behind the element.
"""


NO_ANIMATIONS = """document.addEventListener("DOMContentLoaded", () => {
    const style = document.createElement("style");
    style.textContent = "* { animation: none !important; }";
    document.head.append(style);
});"""
"""JavaScript that turns off the animations of a page."""

LAYOUT = Path(__file__).with_name("layout.js").read_text(encoding="utf-8")
"""JavaScript that lists problems with the layout of the panel, such as controls that are cut off or overlap."""


@contextmanager
def launched(program: str) -> Iterator[Any]:
    """Returns a context in which a browser runs. The browser is closed at the end of the context."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, headless=True, args=FLAGS)
        yield browser
        browser.close()


class Tab:
    """The tab txt2img or img2img of the webui's page, and the panel in this tab."""

    def __init__(self, page: Any, name: str):
        self.page = page
        self.name = name
        self.panel = f"#script_{name}_demofusion_hires"
        page.locator(".tab-nav button").filter(has_text=name).first.click()
        page.wait_for_selector(f"{self.panel}_enabled-visible-checkbox", timeout=TIMEOUT)

    def id(self, name: str) -> str:
        """Returns the selector of one of the webui's own controls in this tab."""
        return f"#{self.name}_{name}"

    def number(self, selector: str, value: float) -> None:
        """Enters a number into a control."""
        box = self.page.locator(f"{selector} input[type=number]").first
        box.fill(f"{value:g}")
        box.blur()

    def value(self, selector: str) -> str:
        """Returns the value that a control shows."""
        return self.page.locator(f"{selector} input, {selector} textarea").first.input_value()

    @property
    def progress(self) -> Any:
        """The locator of the progress bar, which exists only during a run.

        In a webui, the bar is above the gallery. In the stand-in, the bar is in the element `txt2img_progress` or
        `img2img_progress`.
        """
        return self.page.locator(f"#{self.name}_results .progressDiv, {self.id('progress')} .progressDiv")

    @property
    def enabled(self) -> bool:
        """Whether DemoFusion is enabled. This property reads the hidden checkbox whose value the page sends."""
        return self.page.locator(f"{self.panel}_enabled-checkbox input").is_checked()

    def open_panel(self) -> None:
        """Opens the panel and its section "Advanced". Opening the panel also enables DemoFusion."""
        if not self.enabled:
            self.page.click(f"{self.panel}_enabled > .label-wrap")
        self.page.wait_for_function(
            "selector => document.querySelector(selector).checked", arg=f"{self.panel}_enabled-checkbox input"
        )
        advanced = f"{self.panel}_advanced > .label-wrap"
        if "open" not in (self.page.get_attribute(advanced, "class") or "").split():
            self.page.click(advanced)
        self.page.locator(f"{self.panel}_preset_name").wait_for(timeout=TIMEOUT)

    def stops(self) -> list[dict[str, Any]]:
        """Starts at the checkbox in the title of the panel, and presses the Tab key until the focus leaves the panel.

        Returns the result of STOP for every element that gets the focus.
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
        """Returns the problems that LAYOUT finds in a window of this size in pixels."""
        self.page.set_viewport_size({"width": width, "height": height})
        # wait until the page has finished its new layout
        self.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return [f"{width}: {problem}" for problem in self.page.evaluate(LAYOUT, self.panel)]

    def text(self, name: str, text: str) -> str:
        """Replaces the text in a control of the panel by typing key by key. Returns the control's selector."""
        selector = f"{self.panel}_{name} textarea, {self.panel}_{name} input"
        self.page.click(selector, timeout=TIMEOUT)
        self.page.keyboard.press("Control+A")
        self.page.keyboard.type(text, delay=20)
        return selector

    def presets(self) -> list[str]:
        """Returns the names of the presets that the panel shows."""
        return [text.strip() for text in self.page.locator(f"{self.panel}_preset label").all_inner_texts()]

    def choose_preset(self, name: str) -> None:
        """Clicks the preset `name`."""
        label = self.page.locator(f"{self.panel}_preset label").filter(
            has_text=re.compile(f"^\\s*{re.escape(name)}\\s*$")
        )
        label.first.click(timeout=TIMEOUT)

    def wait_for_preset(self, name: str) -> None:
        """Waits until the preset `name` is selected."""
        chosen = self.page.locator(f"{self.panel}_preset label.selected")
        chosen.filter(has_text=re.compile(f"^\\s*{re.escape(name)}\\s*$")).wait_for(timeout=TIMEOUT)

    def wait_for_value(self, name: str, value: str) -> None:
        """Waits until a control of the panel shows the value `value`."""
        selector = f"{self.panel}_{name} input, {self.panel}_{name} textarea"
        script = "([selector, value]) => document.querySelector(selector).value === value"
        self.page.wait_for_function(script, arg=[selector, value], timeout=TIMEOUT)

    def wait_for_message(self, text: str) -> None:
        """Waits until the message about saving or deleting a preset contains `text`."""
        message = self.page.locator(f"{self.panel}_preset_message.prose")
        message.filter(has_text=re.compile(re.escape(text))).wait_for(timeout=TIMEOUT)

    def wait_for_line(self, text: str) -> str:
        """Waits until the panel's summary line contains `text`. Returns the whole line."""
        # gradio 3 gives the class `prose` to the component itself, and gradio 4 to an element inside the component
        line = self.page.locator(f"{self.panel}_line.prose, {self.panel}_line .prose")
        line.filter(has_text=re.compile(re.escape(text))).wait_for(timeout=TIMEOUT)
        return line.inner_text()

    def wait_for_progress(self, text: str) -> str:
        """Waits until the text of the progress bar contains `text`. Returns the whole text of the bar."""
        self.progress.filter(has_text=re.compile(re.escape(text))).wait_for(timeout=TIMEOUT)
        return self.progress.inner_text()

    def wait_until_done(self) -> None:
        """Waits until the run ends and its progress bar disappears."""
        self.progress.wait_for(state="detached", timeout=TIMEOUT)

    def generate(self) -> None:
        """Clicks Generate, and waits until the progress bar appears."""
        self.page.click(self.id("generate"))
        # "attached" and not "visible", because above an empty gallery of the webui the bar has no height
        self.progress.wait_for(state="attached", timeout=TIMEOUT)

    def image_sizes(self) -> list[int]:
        """Returns the widths of the images in the gallery, in pixels."""
        images = f"{self.id('gallery')} .thumbnails img"
        self.page.wait_for_selector(images, timeout=TIMEOUT, state="attached")
        script = "all => Promise.all(all.map(async i => { await i.decode(); return i.naturalWidth; }))"
        return self.page.eval_on_selector_all(images, script)

    def wait_for_infotext(self, text: str) -> str:
        """Waits until the infotext below the images contains `text`. Returns the whole infotext."""
        info = self.page.locator(f"#html_info_{self.name}.prose")
        info.filter(has_text=re.compile(re.escape(text))).wait_for(timeout=TIMEOUT)
        return info.inner_text()

    def messages(self) -> Any:
        """Returns the locator of the element above the gallery that shows the messages about the last run.

        Waits until the element exists.
        """
        messages = self.page.locator(".demofusion-messages")
        messages.wait_for(timeout=TIMEOUT)
        return messages

    def infotext(self) -> str:
        """Returns the infotext below the images."""
        return self.page.inner_text(f"#html_info_{self.name}.prose")


def screenshot(page: Any, folder: Path, name: str) -> None:
    """Saves a screenshot of the whole page."""
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=str(folder / f"{name}.png"), full_page=True)


def contrast(one: str, other: str) -> float:
    """Returns the contrast ratio of two colors as defined by the WCAG, from 1 to 21.

    Colors have the form `rgb(1, 2, 3)`.
    """

    def luminance(color: str) -> float:
        parts = [int(n) / 255 for n in re.findall(r"\d+", color)[:3]]
        linear = (n / 12.92 if n <= 0.04045 else ((n + 0.055) / 1.055) ** 2.4 for n in parts)
        return sum(weight * n for weight, n in zip((0.2126, 0.7152, 0.0722), linear))

    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


@contextmanager
def listening(page: Any, event: str, react: Callable[[Any], None]) -> Iterator[None]:
    """Returns a context in which `react` is called for every event of the page with the name `event`."""
    page.on(event, react)
    try:
        yield
    finally:
        page.remove_listener(event, react)


def show(page: Any, url: str, size: tuple[int, int] = WINDOW) -> None:
    """Loads the webui's page in a window of the given size (width, height)."""
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.goto(url, wait_until="domcontentloaded")
    page.wait_for_selector("#txt2img_generate", timeout=TIMEOUT)


def open_panel(page: Any, url: str, size: tuple[int, int] = WINDOW, name: str = "txt2img") -> Tab:
    """Loads the webui's page, and opens the panel of the tab `name`."""
    show(page, url, size)
    tab = Tab(page, name)
    tab.open_panel()
    return tab
