"""Tests the page of a real webui in a real browser, for features that the API does not have."""

from __future__ import annotations

import io
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from miniature.browser import TIMEOUT, Tab, find_chromium, launched
from PIL import Image, PngImagePlugin
from webui.conftest import TITLE, Result, Webui
from webui.test_generate import difference

from lib_demofusion.settings.fields import SPECS

pytestmark = [pytest.mark.webui, pytest.mark.browser]

SMALL: dict[str, Any] = {"width": 64, "height": 64, "steps": 2}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Starts a browser."""
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium was found")
    pytest.importorskip("playwright.sync_api")
    with launched(program) as browser:
        yield browser


@pytest.fixture
def page(chromium: Any, webui: Webui) -> Iterator[Any]:
    """Opens the page of the webui."""
    page = chromium.new_page(viewport={"width": 1400, "height": 1200})
    load(page, webui)
    yield page
    page.close()


def load(page: Any, webui: Webui) -> None:
    """Loads the page of the webui, and waits for the button Generate."""
    answer = page.goto(webui.url, wait_until="domcontentloaded")
    if answer.status == 404:
        pytest.skip("the webui runs without its page")
    page.wait_for_selector("#txt2img_generate", timeout=2 * TIMEOUT)


def small(tab: Tab) -> None:
    """Enters a small size, two steps and a fixed seed."""
    for name, value in {**SMALL, "seed": 1}.items():
        tab.number(tab.id(name), value)


def gallery(webui: Webui, tab: Tab) -> list[Image.Image]:
    """Downloads the images that the gallery shows."""
    tab.wait_until_done()
    images = f"{tab.id('gallery')} img"
    tab.page.wait_for_selector(images, timeout=TIMEOUT, state="attached")
    sources = tab.page.eval_on_selector_all(images, "all => all.map(i => i.src)")
    files = [urllib.request.urlopen(source).read() for source in dict.fromkeys(sources)]
    return [Image.open(io.BytesIO(file)) for file in files]


def test_controls_have_the_labels_and_explanations_of_their_fields(webui: Webui) -> None:
    """Reads gradio's configuration of the page, because the API's list of scripts does not contain the explanations."""
    with urllib.request.urlopen(webui.url) as answer:
        _, _, config = answer.read().decode().partition("window.gradio_config = ")
    components = json.JSONDecoder().raw_decode(config)[0]["components"]
    shown = {c["props"].get("elem_id"): c["props"] for c in components}
    for tab in ("txt2img", "img2img"):
        # the last field, view_batch, is not in the panel but on the settings page
        for name, spec in list(SPECS.items())[:-1]:
            props = shown[f"script_{tab}_demofusion_hires_{name}" + ("-checkbox" if name == "enabled" else "")]
            assert name == "enabled" or props["label"] == spec.label
            assert name == "enabled" or (props.get("info") or "") == spec.info


def test_png_info_sends_values_that_reproduce_the_image(webui: Webui, page: Any, tmp_path: Path) -> None:
    fields = {"enabled": True, "scale": 1.5, "stages": "1,1.5", "jitter": False, "cosine_scale_1": 2.5}
    made = saved(webui, tmp_path / "made.png", fields)
    on_pnginfo(page, tmp_path / "made.png")
    page.click("#tab_pnginfo #txt2img_tab")
    tab = Tab(page, "txt2img")
    page.wait_for_function(
        "s => document.querySelector(s).checked", arg=f"{tab.panel}_enabled-checkbox input", timeout=TIMEOUT
    )
    tab.generate()
    again, base = gallery(webui, tab)
    assert base.size == (64, 64)
    assert difference(again.convert("RGB"), made.images[0]) == 0


def saved(webui: Webui, path: Path, settings: Any) -> Result:
    """Generates a small image with the name of the file as prompt, and saves the image with its infotext."""
    made = webui.generate(settings, **SMALL, prompt=path.stem)
    text = PngImagePlugin.PngInfo()
    text.add_text("parameters", made.infotexts[0])
    made.images[0].save(path, pnginfo=text)
    return made


def on_pnginfo(page: Any, picture: Path) -> None:
    """Opens an image in PNG Info and waits for its infotext, which begins with the prompt."""
    page.locator("#tabs > .tab-nav button").filter(has_text="PNG Info").click()
    page.set_input_files("#pnginfo_image input[type=file]", str(picture))
    # the page shows the infotext of the previous image until the webui has answered
    own = re.compile(rf"\b{picture.stem}\b.*Steps: 2", re.DOTALL)
    page.locator("#html_pnginfo, #tab_pnginfo .gradio-html").filter(has_text=own).first.wait_for()


def state(tab: Tab, *names: str) -> tuple[Any, ...]:
    """Returns whether the box in the panel's title is ticked, and the values of the controls in `names`."""
    return tab.enabled, *(tab.value(f"{tab.panel}_{name}") for name in names)


def wait_for_switch(tab: Tab, on: bool) -> None:
    """Waits until the box in the panel's title is ticked (if `on` is True) or not ticked (if `on` is False)."""
    script = "([box, on]) => document.querySelector(box).checked === on"
    tab.page.wait_for_function(script, arg=[f"{tab.panel}_enabled-checkbox input", on], timeout=TIMEOUT)


@pytest.mark.parametrize("button", ["img2img_tab", "inpaint_tab"])
def test_png_info_sends_to_img2img(webui: Webui, page: Any, tmp_path: Path, button: str) -> None:
    """An infotext without DemoFusion switches the panel off, and does not change the values of the panel's controls."""
    fields = {"enabled": True, "scale": 1.5, "stages": "1,1.5", "cosine_scale_1": 2.5}
    for name, settings in (("with", fields), ("without", None)):
        saved(webui, tmp_path / f"{name}.png", settings)
    on_pnginfo(page, tmp_path / "with.png")
    page.click(f"#tab_pnginfo #{button}")
    tab = Tab(page, "img2img")
    wait_for_switch(tab, True)
    tab.wait_for_value("stages", "1,1.5")
    assert state(tab, "scale", "cosine_scale_1") == (True, "1.5", "2.5")
    on_pnginfo(page, tmp_path / "without.png")
    page.click(f"#tab_pnginfo #{button}")
    tab = Tab(page, "img2img")
    wait_for_switch(tab, False)
    assert state(tab, "scale", "stages", "cosine_scale_1") == (False, "1.5", "1,1.5", "2.5")


@pytest.mark.parametrize("button", ["send_to_img2img", "send_to_inpaint", "send_to_extras"])
def test_the_buttons_below_an_image_send_the_panel_to_img2img(webui: Webui, page: Any, button: str) -> None:
    """The button copies the current values of the txt2img panel, not the values in the infotext of the image.

    The webui copies its own fields in the same way. The button for Extras does not change the img2img panel. No button
    changes the txt2img panel.
    """
    untouched = state(Tab(page, "img2img"), "stages")
    tab = Tab(page, "txt2img")
    small(tab)
    tab.open_panel()
    tab.number(f"{tab.panel}_scale", 1.5)
    tab.text("stages", "1,1.5")
    tab.generate()
    assert gallery(webui, tab)[0].size == (96, 96)
    page.click(f"#txt2img_{button}")
    page.wait_for_selector("#tab_extras" if button == "send_to_extras" else "#tab_img2img", timeout=TIMEOUT)
    sent = Tab(page, "img2img")
    if button == "send_to_extras":
        assert state(sent, "stages") == untouched
    else:
        wait_for_switch(sent, True)
        sent.wait_for_value("stages", "1,1.5")
        assert state(sent, "scale") == (True, "1.5")
    assert state(Tab(page, "txt2img"), "scale", "stages") == (True, "1.5", "1,1.5")


def test_the_summary_line_is_updated_after_a_checkpoint_script_or_setting_is_changed(webui: Webui, page: Any) -> None:
    """At first, the line shows a time, because a job with the first checkpoint has been measured.

    Then the test selects another checkpoint, which has no measured time, so the line changes. With the script Prompt
    matrix, the line shows a cost. After the setting Tiling is switched on, the line shows that DemoFusion does not work
    with it.
    """
    other = next(m["title"] for m in webui.call("sd-models") if "sdxl" in m["title"])
    before = webui.call("options")["sd_model_checkpoint"]
    webui.generate({"enabled": True}, **{**SMALL, "steps": 6})
    tab = Tab(page, "txt2img")
    tab.open_panel()
    tab.number(tab.id("steps"), 60)
    first = tab.wait_for_line("about")
    try:
        page.click("#setting_sd_model_checkpoint input")
        page.locator("#setting_sd_model_checkpoint ul li").filter(has_text=other.split()[0]).first.click()
        page.wait_for_function(
            "([line, text]) => document.querySelector(line).innerText !== text",
            arg=[f"{tab.panel}_line.prose", first],
            timeout=TIMEOUT,
        )
        assert webui.call("options")["sd_model_checkpoint"].split()[0] == other.split()[0]
        script = tab.page.locator("#txt2img_script_container #script_list input")
        script.click()
        tab.page.locator("#txt2img_script_container #script_list ul li").filter(has_text="Prompt matrix").click()
        tab.wait_for_line("times the time of the base image")
        tab.page.locator("#tabs > .tab-nav button").filter(has_text="Settings").click()
        page.fill("#settings_search input, #settings_search textarea", "Tiling")
        page.locator("#setting_tiling input").check()
        page.click("#settings_submit")
        Tab(page, "txt2img").wait_for_line("does not work with")
    finally:
        webui.call("options", {"sd_model_checkpoint": before, "tiling": False})


def test_the_summary_line_is_updated_after_hires_fix_is_changed(webui: Webui, page: Any) -> None:
    """The result of hires fix is the base image of the stages."""
    tab = Tab(page, "txt2img")
    small(tab)
    tab.open_panel()
    tab.wait_for_line("64x64 → 128x128")
    page.click("#txt2img_hr > .label-wrap")
    tab.wait_for_line("128x128 → 256x256")
    tab.number("#txt2img_hr_scale", 1.5)
    tab.wait_for_line("96x96 → 192x192")
    tab.number("#txt2img_hr_resize_x", 80)
    tab.wait_for_line("80x80 → 160x160")
    page.click("#txt2img_hr > .label-wrap")
    tab.wait_for_line("64x64 → 128x128")


def test_the_summary_line_is_updated_after_resize_by_is_changed(webui: Webui, page: Any, tmp_path: Path) -> None:
    tab = Tab(page, "img2img")
    small(tab)
    tab.open_panel()
    tab.wait_for_line("64x64 → 128x128")
    Image.new("RGB", (96, 64)).save(tmp_path / "wide.png")
    page.set_input_files("#img2img_image input[type=file]", str(tmp_path / "wide.png"))
    page.locator("#img2img_tabs_resize > .tab-nav button").filter(has_text="Resize by").click()
    tab.wait_for_line("96x64 → 192x128")
    tab.number("#img2img_scale", 1.5)
    tab.wait_for_line("144x96 → 288x192")
    page.locator("#img2img_tabs_resize > .tab-nav button").filter(has_text="Resize to").click()
    tab.wait_for_line("64x64 → 128x128")


def test_the_upscale_button_makes_the_base_image_of_the_stages(webui: Webui, page: Any) -> None:
    """The button runs the webui's hires pass on the selected image, and the result of this pass is the base image."""
    tab = Tab(page, "txt2img")
    small(tab)
    tab.generate()
    assert [picture.size for picture in gallery(webui, tab)] == [(64, 64)]
    tab.open_panel()
    # the image is already selected; a click would open it in full size over the page
    page.click("#txt2img_upscale")
    tab.wait_for_infotext("DemoFusion size: 256 x 256")
    assert "DemoFusion error" not in tab.infotext()
    assert (256, 256) in [picture.size for picture in gallery(webui, tab)]


def test_a_batch_from_a_folder_enlarges_every_image(webui: Webui, page: Any, tmp_path: Path) -> None:
    """The webui uses one processing object for all images of the folder, so a job must not leave values in it."""
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    gradient = Image.radial_gradient("L").convert("RGB")
    for name, size in (("first", (64, 64)), ("second", (72, 64))):
        gradient.resize(size).save(tmp_path / "in" / f"{name}.png")
    tab = Tab(page, "img2img")
    page.locator("#mode_img2img > .tab-nav button").filter(has_text="Batch").click()
    page.locator("#mode_img2img button").filter(has_text="From directory").click()
    page.fill("#img2img_batch_input_dir textarea", str(tmp_path / "in"))
    page.fill("#img2img_batch_output_dir textarea", str(tmp_path / "out"))
    small(tab)
    tab.open_panel()
    before = webui.call("options")["samples_save"]
    webui.call("options", {"samples_save": True})
    try:
        tab.generate()
        gallery(webui, tab)
    finally:
        webui.call("options", {"samples_save": before})
    made = sorted((tmp_path / "out").rglob("*.png"))
    # the webui decides whether a number precedes the name
    assert [path.stem.rpartition("-")[2] for path in made] == ["first", "second"]
    for path in made:
        with Image.open(path) as picture:
            assert picture.size == (128, 128)
            assert "DemoFusion size: 128 x 128" in picture.info["parameters"]
            assert "DemoFusion error" not in picture.info["parameters"]


def test_reload_ui_registers_everything_once(webui: Webui, page: Any) -> None:
    before = webui.generate({"enabled": True}, **SMALL)
    axes = registered(webui)
    for _ in range(2):
        page.locator("#tabs > .tab-nav button").filter(has_text="Settings").click()
        page.click("#settings_restart_gradio")
        # otherwise the page would reload itself while the test loads it below
        page.wait_for_timeout(1000)
        page.goto("about:blank")
        wait_for_restart(webui)
        load(page, webui)
        assert registered(webui) == axes
    assert webui.generate({"enabled": True}, **SMALL).digests == before.digests
    assert page.locator("#script_txt2img_demofusion_hires_enabled").count() == 1
    assert page.locator("#setting_demofusion_view_batch").count() == 1


def registered(webui: Webui) -> list[str]:
    """Asserts that each tab has the script once. Returns the extension's axes in the X/Y/Z plot."""
    scripts = webui.call("script-info")
    assert [entry["is_img2img"] for entry in scripts if entry["name"] == TITLE.lower()] == [False, True]
    plot = next(entry for entry in scripts if entry["name"] == "x/y/z plot")
    ours = [label for label in plot["args"][0]["choices"] if label.startswith("[DemoFusion] ")]
    assert len(set(ours)) == len(ours) == len(SPECS)
    return ours


def wait_for_restart(webui: Webui) -> None:
    """Waits until the webui has stopped and then answers again."""
    deadline, gone = time.monotonic() + float(os.environ.get("DEMOFUSION_TEST_SECONDS", "300")), False
    while time.monotonic() < deadline:
        try:
            webui.call("options")
            if gone:
                return
        except (urllib.error.URLError, ConnectionError):
            gone = True
        time.sleep(0.2)
    pytest.fail("the webui did not restart in time")
