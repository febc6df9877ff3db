"""Tests the page of a real webui with saved defaults, and with two copies of the extension."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from miniature.browser import TIMEOUT, Tab, screenshot
from PIL import Image
from webui.conftest import TITLE, Webui, started
from webui.test_page import chromium, gallery, load, small, wait_for_restart  # noqa: F401 (a fixture)

pytestmark = [pytest.mark.webui, pytest.mark.browser]

TABS = ("txt2img", "img2img")
SECOND = "a-second-copy"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the webui's data directory, which contains its log and its ui-config.json."""
    return tmp_path_factory.mktemp("saved")


@pytest.fixture(scope="module")
def own(request: pytest.FixtureRequest, data: Path) -> Iterator[Webui]:
    """Starts a separate webui, because these tests change the webui's ui-config.json.

    In this webui, a second copy of the extension is installed.
    """
    folder, checkpoints = (request.config.getoption(name) for name in ("--webui", "--checkpoints"))
    if not folder:
        pytest.skip("this test starts its own webui, which needs --webui DIR")
    with started(Path(folder), data, checkpoints=checkpoints, second_copy=SECOND) as server:
        yield server


@pytest.fixture
def page(chromium: Any, own: Webui) -> Iterator[Any]:  # noqa: F811
    """Opens the page of the separate webui."""
    page = chromium.new_page(viewport={"width": 1400, "height": 1200})
    load(page, own)
    yield page
    page.close()


def test_two_copies_are_reported_and_one_is_active(own: Webui, page: Any, data: Path) -> None:
    (line,) = [text for text in (data / "log.txt").read_text().splitlines() if "installed twice" in text]
    for name in (SECOND, "sd-webui-demofusion-hires"):
        assert str(data / "extensions" / name) in line
    made = own.generate({"enabled": True, "preset": "Fast"}, width=64, height=64, steps=2)
    assert made.sizes == [(128, 128)]
    assert "DemoFusion size: 128 x 128" in made.infotexts[0]
    names = [entry["name"] for entry in own.call("script-info")]
    assert names.count(TITLE.lower()) == 2
    for name in TABS:
        tab = Tab(page, name)
        assert page.locator(f"{tab.panel}_enabled").count() == 1
        tab.open_panel()
        tab.choose_preset("Fast")
        tab.wait_for_value("stages", "fewest")
        tab.wait_for_line("512x512 → 1024x1024")


def apply_defaults(page: Any, webui: Webui) -> None:
    """Saves all values on the page as defaults, presses "Reload UI", and loads the new page."""
    page.locator("#tabs > .tab-nav button").filter(has_text="Settings").click()
    page.locator("#settings button").filter(has_text="Defaults").last.click()
    page.click("#ui_defaults_apply")
    page.locator("#settings_tab_defaults, #tab_settings").filter(has_text="Wrote").first.wait_for(timeout=TIMEOUT)
    page.click("#settings_restart_gradio")
    # otherwise the page would reload itself while the test loads it below
    page.wait_for_timeout(1000)
    page.goto("about:blank")
    wait_for_restart(webui)
    load(page, webui)


def change_everything(tab: Tab) -> None:
    """Enables the panel, and changes every control of the panel for which the webui saves a default."""
    tab.open_panel()
    for name, value in (("scale", 1.25), ("width", 96), ("height", 96)):
        tab.number(f"{tab.panel}_{name}", value)
    for name in ("save_stages", "return_stages"):
        tab.page.locator(f"{tab.panel}_{name} input").check()
    if tab.name == "img2img":
        tab.page.locator(f"{tab.panel}_img2img_first label").filter(has_text="Run img2img first").click()


def run(tab: Tab, webui: Webui, width: int) -> str:
    """Generates images, asserts that the largest image has this width, and returns the text below the images."""
    if tab.name == "img2img":
        tab.page.set_input_files("#img2img_image input[type=file]", str(UPLOAD))
        tab.page.wait_for_selector("#img2img_image img", timeout=TIMEOUT)
    tab.open_panel()
    tab.generate()
    assert max(picture.width for picture in gallery(webui, tab)) == width
    return tab.infotext()


UPLOAD = Path(__file__).resolve().parents[2] / "test-output" / "upload.png"


def test_saved_defaults_are_valid_when_the_page_is_built_again(own: Webui, page: Any) -> None:
    UPLOAD.parent.mkdir(parents=True, exist_ok=True)
    Image.radial_gradient("L").resize((64, 64)).convert("RGB").save(UPLOAD)
    for name in TABS:
        # only the webui's own fields are changed, and no field of the panel
        small(Tab(page, name))
    apply_defaults(page, own)
    for name in TABS:
        tab = Tab(page, name)
        assert not tab.enabled
        assert "DemoFusion error" not in run(tab, own, 128)
        change_everything(tab)
    apply_defaults(page, own)
    for name in TABS:
        tab = Tab(page, name)
        # nothing was changed on this page: the panel is enabled because of the saved defaults, and the summary line
        # shows the saved values
        assert tab.enabled
        assert "64x64 → 96x96" in tab.wait_for_line("64x64")
        screenshot(page, UPLOAD.parent / "screenshots", f"webui-saved-{name}")
        text = run(tab, own, 96)
        assert "DemoFusion error" not in text
        assert ("DemoFusion img2img first: True" in text) == (name == "img2img")
