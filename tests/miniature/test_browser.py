"""Tests the page of the stand-in for the webui (trial/webui) in a real browser.

The tests click, type, and read texts and images on the page.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from browser import TIMEOUT, Tab, contrast, listening, open_panel, screenshot
from PIL import Image
from reports import Reports

from lib_demofusion.host.panel.page import IF_CHANGED, IF_OUTDATED, SIGNED
from lib_demofusion.settings.presets import PRESETS
from lib_demofusion.settings.reading import preset_values

pytestmark = pytest.mark.browser

HERE = Path(__file__).resolve().parent
SCREENSHOTS = Path(os.environ.get("DEMOFUSION_SCREENSHOTS", HERE.parents[1] / "test-output" / "screenshots"))
TABS = ("txt2img", "img2img")
OPENING = "Fast"
"""The preset that the panel shows when the page is loaded."""

AFTER_FINAL = {"txt2img": [128], "img2img": []}
"""Widths, in pixels, of the images that follow the final image in the gallery.

In txt2img, the base image follows. In img2img, no image follows, because the base image is the uploaded image.
"""

INFOTEXT = """a yellow cross on blue ground
Negative prompt: gray
Steps: 5, Sampler: Euler a, CFG scale: 4.5, Seed: 42, Size: 96x64, DemoFusion: 0.1.0, DemoFusion scale: 3, \
DemoFusion stages: "1,2,3", DemoFusion cosine scale 1: 2.5, DemoFusion jitter: False, DemoFusion return stages: True"""
"""An infotext to paste. It names no preset, so all fields of a preset that it leaves out get the values of Paper."""


@pytest.fixture(params=TABS)
def tab(page: Any, request: pytest.FixtureRequest, tmp_path: Path) -> Tab:
    """Returns txt2img or img2img: each test with this fixture runs in both tabs. In img2img, first uploads an image."""
    tab = Tab(page, request.param)
    if request.param == "img2img":
        picture = tmp_path / "begin.png"
        Image.radial_gradient("L").resize((128, 128)).convert("RGB").save(picture)
        page.set_input_files("#img2img_image input[type=file]", str(picture))
        page.wait_for_selector("#img2img_image img", timeout=TIMEOUT)
    return tab


def open_with_every_stage(tab: Tab) -> None:
    """Opens the panel, and chooses the preset Paper, which has a stage at every integer scale."""
    tab.open_panel()
    tab.choose_preset("Paper")
    tab.wait_for_value("stages", "every")


def test_the_summary_line_is_updated_when_a_value_changes(tab: Tab) -> None:
    assert not tab.enabled
    tab.open_panel()
    assert "128x128 → 256x256" in tab.wait_for_line("256x256")
    tab.number(f"{tab.panel}_scale", 3)
    three = tab.wait_for_line("384x384")
    tab.number(tab.id("width"), 96)
    assert tab.wait_for_line("288x384") != three
    tab.number(tab.id("steps"), 5)
    tab.wait_for_line("times the time of the base image")
    screenshot(tab.page, SCREENSHOTS, f"{tab.name}-panel")


@pytest.mark.parametrize(
    ("text", "copy", "result"), [("b", "a", "b"), ("a", "a", None), (None, "", None), ("", "a", "")], ids=str
)
def test_a_hidden_copy_of_a_text_is_updated_only_if_the_text_changes(
    blank: Any, text: str | None, copy: str, result: str | None
) -> None:
    """If the text and the copy are equal, the promise of IF_CHANGED stays pending, and gradio updates nothing.

    If the promise were resolved, the page of gradio 4 would update itself without end (see `_text_of` in
    host/panel/page.py). In this test, the result for a promise that is still pending after 100 ms is None.
    """
    script = f"values => Promise.race([({IF_CHANGED})(...values), new Promise(end => setTimeout(end, 100, null))])"
    assert blank.evaluate(script, [text, copy]) == result


@pytest.mark.parametrize(("now", "outdated"), [([3, "a"], False), ([3, "b"], True), ([3, None], True)], ids=str)
def test_a_line_is_outdated_if_a_value_has_changed_since_its_update_began(
    blank: Any, now: list[object], outdated: bool
) -> None:
    """Before an update, SIGNED returns the two inputs and their JSON text, and drops the old values of the outputs.

    After the update, IF_OUTDATED compares this JSON text with the values `now` of the inputs.
    """
    *inputs, signature = blank.evaluate(f"values => ({SIGNED % (2, 2)})(...values)", [3, "a", "old answer", "old line"])
    assert inputs == [3, "a"]
    script = f"values => Promise.race([({IF_OUTDATED % 2})(...values), new Promise(end => setTimeout(end, 100, null))])"
    assert (blank.evaluate(script, [f"{signature}\n17", *now, "old text"]) is not None) == outdated


def test_the_summary_line_shows_the_last_of_many_quick_changes(tab: Tab) -> None:
    """gradio 3 drops a change that occurs while an update for an earlier change of the same component runs.

    The test types "1,2,4" key by key. Without IF_OUTDATED, the line kept the error for the unfinished text "1,2," in
    about every third attempt.
    """
    tab.open_panel()
    for last in (4, 3, 6, 3, 4):
        tab.page.locator(tab.text("stages", f"1,2,{last}")).blur()
        tab.wait_for_line(f"sets the final size: {last}" if last != 3 else "→ 384x384")


def test_the_summary_line_names_a_value_that_is_not_valid(tab: Tab) -> None:
    tab.open_panel()
    tab.page.locator(tab.text("stages", "4,2")).blur()
    tab.wait_for_line("Stages: '4,2' is not valid. Use increasing scales")
    screenshot(tab.page, SCREENSHOTS, f"{tab.name}-impossible")


NUMBERS = [
    ("scale", "", "2", None),
    ("scale", "99", "8", "99 → 8 (1 - 8)"),
    ("width", "99999", "16384", "99999 → 16384 (0 - 16384)"),
    ("height", "-8", "0", "-8 → 0 (0 - 16384)"),
    ("width", "300.7", "301", "300.7 → 301 (0 - 16384)"),
    ("hires_steps", "200", "150", "200 → 150 (0 - 150)"),
    ("overlap", "2", "0.9", "2 → 0.9 (0 - 0.9)"),
    ("feather", "", "0.5", None),
]
"""Each entry: the field, the typed text, the number in the box after the correction, and the note below the box.

The note is None if no note appears.
"""


def test_a_number_that_is_not_allowed_is_corrected_in_its_box(page: Any) -> None:
    """If the user empties a box, the last value appears in the box again."""
    tab = Tab(page, "txt2img")
    tab.open_panel()
    for name, typed, value, note in NUMBERS:
        box = page.locator(f"{tab.panel}_{name} input[type=number]")
        box.fill(typed)
        box.blur()
        tab.wait_for_value(name, value)
        notes = page.locator(f"{tab.panel}_{name} .demofusion-corrected")
        assert notes.all_inner_texts() == ([] if note is None else [note]), name
        box.focus()
        assert notes.count() == 0, name


def test_generate_with_an_empty_box_uses_the_last_value(tab: Tab) -> None:
    tab.open_panel()
    tab.number(f"{tab.panel}_scale", 3)
    tab.wait_for_line("384x384")
    box = tab.page.locator(f"{tab.panel}_scale input[type=number]")
    box.fill("")
    # the webui's shortcut for Generate
    box.press("Control+Enter")
    tab.wait_for_value("scale", "3")
    tab.wait_for_line("384x384")


def test_a_final_size_that_is_too_large_for_the_base_image_is_refused(tab: Tab, reported: Reports) -> None:
    """The number is within the limits of its box. The summary line and the refused run report the same problem."""
    reported.expect("width: 2000 is not valid")
    tab.open_panel()
    tab.number(tab.id("steps"), 3)
    tab.number(f"{tab.panel}_width", 2000)
    line = tab.wait_for_line("not valid").strip()
    assert line == "Resize width to: 2000 is not valid. Use 0, or 128 to 1024 for this base image"
    tab.page.click(tab.id("generate"))
    # the message of the run names the field in the form of the API
    assert "width: 2000 is not valid. Use 0, or 128 to 1024 for this base image" in tab.messages().inner_text()
    assert "DemoFusion size" not in tab.infotext()


COLORS = """error => [error, error.querySelector("span"), error.parentElement].map(n => getComputedStyle(n).color)"""
"""JavaScript that returns the text colors of an error, of a part of the error, and of the element around the error."""
BACKGROUND = """error => {
    const color = (node) => getComputedStyle(node).backgroundColor;
    let node = error;
    while (/, 0\\)$|transparent/.test(color(node))) node = node.parentElement;
    return color(node);
}"""
"""JavaScript that returns the color behind an error: that of the nearest element that is not transparent."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_errors_in_the_summary_line_are_red_and_readable(blank: Any, address: str, scheme: str) -> None:
    tab = open_panel(blank, f"{address}?__theme={scheme}")
    page = tab.page
    tab.number(f"{tab.panel}_width", 2000)
    tab.wait_for_line("not valid")
    error, part_of_error, text = page.eval_on_selector(".demofusion-error", COLORS)
    assert error == part_of_error != text
    # the result of color-mix() has the form color(srgb 0.9 0.4 0.4)
    red, green, blue = (float(part) for part in re.findall(r"[\d.]+", error)[:3])
    error = f"rgb({red * 255:.0f}, {green * 255:.0f}, {blue * 255:.0f})" if "srgb" in error else error
    assert red > 1.5 * max(green, blue)
    background = page.eval_on_selector(".demofusion-error", BACKGROUND)
    # WCAG requires a contrast of 4.5 for text
    assert contrast(error, background) >= 4.5


ONE_STAGE = "128x128 → 384x384"
"""The sizes in the summary line if "Stages" is "1,3", which leaves out the stage at 256x256 pixels."""


def test_text_typed_while_the_server_is_slow_is_in_the_summary_line(tab: Tab) -> None:
    """The server is slow during a job. A text must not be lost if the user types while the page waits for an answer."""
    open_with_every_stage(tab)
    tab.number(f"{tab.panel}_scale", 3)
    tab.wait_for_line("256x256 → 384x384")
    slow = {"offline": False, "latency": 800, "downloadThroughput": -1, "uploadThroughput": -1}
    network = tab.page.context.new_cdp_session(tab.page)
    network.send("Network.emulateNetworkConditions", slow)
    tab.text("stages", "1,3")
    tab.wait_for_line(ONE_STAGE)
    network.detach()


def test_a_typed_value_is_kept_if_the_dropdown_gets_and_loses_the_focus(tab: Tab) -> None:
    """The field "Stages" is a dropdown in which the user can type.

    It gets the focus for a moment if the user presses the Tab key repeatedly to reach another control.
    """
    open_with_every_stage(tab)
    tab.number(f"{tab.panel}_scale", 3)
    field = tab.page.locator(tab.text("stages", "1,3"))
    field.blur()
    tab.wait_for_line(ONE_STAGE)
    field.focus()
    tab.page.wait_for_timeout(300)
    field.blur()
    tab.page.wait_for_timeout(500)
    assert tab.value(f"{tab.panel}_stages") == "1,3"
    tab.wait_for_line(ONE_STAGE)


def test_text_entered_without_a_key_press_is_used(tab: Tab) -> None:
    """A user can paste or drop a text with the mouse, and a password manager or a script can fill in a text."""
    open_with_every_stage(tab)
    tab.number(f"{tab.panel}_scale", 3)
    tab.wait_for_line("256x256 → 384x384")
    field = tab.page.locator(f"{tab.panel}_stages input")
    field.fill("1,3")
    field.blur()
    tab.wait_for_line(ONE_STAGE)
    assert tab.value(f"{tab.panel}_stages") == "1,3"


def test_a_run_shows_progress_and_the_final_image(tab: Tab) -> None:
    open_with_every_stage(tab)
    tab.number(f"{tab.panel}_scale", 3)
    tab.number(tab.id("steps"), 4)
    tab.wait_for_line("384x384")
    tab.generate()
    assert "%" in tab.wait_for_progress("DemoFusion 1/2")
    tab.page.wait_for_selector(f"{tab.id('progress')} .livePreview", timeout=TIMEOUT)
    tab.wait_for_progress("DemoFusion 2/2")
    screenshot(tab.page, SCREENSHOTS, f"{tab.name}-progress")
    tab.wait_until_done()
    assert tab.image_sizes() == [384, *AFTER_FINAL[tab.name]]
    assert "DemoFusion size: 384 x 384" in tab.infotext()
    screenshot(tab.page, SCREENSHOTS, f"{tab.name}-done")


def test_an_interrupt_returns_the_image_of_the_previous_stage(tab: Tab) -> None:
    open_with_every_stage(tab)
    tab.number(f"{tab.panel}_scale", 3)
    tab.number(tab.id("steps"), 8)
    tab.wait_for_line("384x384")
    tab.generate()
    tab.wait_for_progress("DemoFusion 2/2")
    tab.page.click(tab.id("interrupt"))
    tab.wait_until_done()
    assert tab.image_sizes() == [256, *AFTER_FINAL[tab.name]]
    assert "DemoFusion stopped" in tab.infotext()
    message = tab.messages()
    assert message.inner_text().strip() == "DemoFusion stopped: showing stage 1 of 2 (256x256)"
    image = tab.page.locator(f"{tab.id('gallery')} img").first.bounding_box()
    box = message.bounding_box()
    assert box["y"] + box["height"] <= image["y"]
    screenshot(tab.page, SCREENSHOTS, f"{tab.name}-interrupted")


def test_a_message_disappears_when_the_next_run_begins(tab: Tab) -> None:
    open_with_every_stage(tab)
    tab.number(tab.id("steps"), 10)
    tab.generate()
    tab.wait_for_progress("DemoFusion 1/1")
    tab.page.click(tab.id("interrupt"))
    tab.wait_until_done()
    assert "showing the base image (128x128)" in tab.messages().inner_text()
    tab.generate()
    tab.wait_for_progress("DemoFusion 1/1")
    assert tab.page.locator(".demofusion-messages").count() == 0
    tab.wait_until_done()
    tab.wait_for_infotext("DemoFusion size")
    assert tab.page.locator(".demofusion-messages").count() == 0


def test_a_run_with_a_closed_panel_does_not_use_demofusion(tab: Tab) -> None:
    tab.number(tab.id("steps"), 3)
    tab.page.click(tab.id("generate"))
    assert "DemoFusion" not in tab.wait_for_infotext("Steps: 3")
    assert tab.image_sizes() == [128]


def test_pasting_an_infotext_sets_every_control(tab: Tab) -> None:
    tab.page.fill(f"{tab.id('prompt')} textarea", INFOTEXT)
    tab.page.click(f"#{tab.name}_paste")
    tab.wait_for_line("288x192")
    assert tab.enabled
    expected = {
        tab.id("prompt"): "a yellow cross on blue ground",
        tab.id("neg_prompt"): "gray",
        tab.id("steps"): "5",
        tab.id("width"): "96",
        tab.id("height"): "64",
        tab.id("seed"): "42",
        f"{tab.panel}_scale": "3",
        f"{tab.panel}_stages": "1,2,3",
        f"{tab.panel}_cosine_scale_1": "2.5",
        f"{tab.panel}_cosine_scale_2": "1",
    }
    assert {selector: tab.value(selector) for selector in expected} == expected
    # "Jitter" has no visible control, but differs from the preset, so the list of changed fields contains "Jitter"
    tab.page.locator(f"{tab.panel}_preset_changed.prose").filter(has_text="Jitter").wait_for(timeout=TIMEOUT)
    tab.open_panel()
    boxes = {"return_stages": True, "save_stages": False}
    ticked = {name: tab.page.locator(f"{tab.panel}_{name} input").is_checked() for name in boxes}
    assert ticked == boxes
    screenshot(tab.page, SCREENSHOTS, f"{tab.name}-pasted")


def test_pasting_an_infotext_without_demofusion_disables_the_panel(tab: Tab) -> None:
    """The other fields of the panel keep their values."""
    tab.open_panel()
    tab.choose_preset("Fast")
    tab.wait_for_value("stages", "fewest")
    tab.number(f"{tab.panel}_scale", 3)
    tab.wait_for_line("128x128 → 384x384")
    tab.page.fill(f"{tab.id('prompt')} textarea", INFOTEXT.partition(", DemoFusion")[0])
    tab.page.click(f"#{tab.name}_paste")
    tab.page.wait_for_function(
        "selector => !document.querySelector(selector).checked",
        arg=f"{tab.panel}_enabled-checkbox input",
        timeout=TIMEOUT,
    )
    tab.page.wait_for_function(
        "selector => !document.querySelector(selector).classList.contains('open')",
        arg=f"{tab.panel}_enabled > .label-wrap",
        timeout=TIMEOUT,
    )
    tab.open_panel()
    tab.wait_for_preset("Fast")
    assert (tab.value(f"{tab.panel}_scale"), tab.value(f"{tab.panel}_stages")) == ("3", "fewest")


def few_steps(tab: Tab, steps: int = 6) -> None:
    """Enters `steps` sampling steps, and a CFG scale that is typical of few-step models."""
    tab.number(tab.id("steps"), steps)
    tab.number(tab.id("cfg_scale"), 1.5)


def test_the_panel_switches_to_turbo_for_few_steps_and_back_for_many_steps(tab: Tab) -> None:
    tab.open_panel()
    few_steps(tab)
    tab.wait_for_preset("Turbo")
    tab.wait_for_value("denoising_strength", f"{PRESETS['Turbo']['denoising_strength']:g}")
    tab.wait_for_line("switched to Turbo")
    assert not tab.page.locator(f"{tab.panel}_preset_changed.prose").is_visible()
    screenshot(tab.page, SCREENSHOTS, f"{tab.name}-turbo")
    tab.generate()
    assert "DemoFusion preset: Turbo," in tab.wait_for_infotext("DemoFusion size")
    few_steps(tab, 30)
    tab.wait_for_preset(OPENING)
    tab.wait_for_value("denoising_strength", f"{PRESETS[OPENING]['denoising_strength']:g}")


@pytest.mark.parametrize("preset", ["Balanced", OPENING])
def test_a_clicked_preset_is_not_replaced_by_turbo(tab: Tab, preset: str) -> None:
    tab.open_panel()
    # OPENING is already selected, but a click on a selected preset also prevents the switch to Turbo
    tab.choose_preset(preset)
    tab.wait_for_value("denoising_strength", f"{PRESETS[preset]['denoising_strength']:g}")
    few_steps(tab)
    few_steps(tab, 7)
    tab.number(f"{tab.panel}_scale", 3)
    tab.wait_for_line("128x128 → 384x384")
    tab.page.wait_for_timeout(1000)
    tab.wait_for_preset(preset)
    tab.generate()
    assert f"DemoFusion preset: {preset}," in tab.wait_for_infotext("DemoFusion size")


def test_a_pasted_preset_is_not_replaced_by_turbo(tab: Tab) -> None:
    text = INFOTEXT.partition(", DemoFusion stages")[0].replace("CFG scale: 4.5", "CFG scale: 1.5")
    fast = (
        "DemoFusion preset: Fast, DemoFusion upscaler: Lanczos, DemoFusion hires steps: 12, DemoFusion stages: fewest"
    )
    tab.page.fill(f"{tab.id('prompt')} textarea", f"{text}, {fast}")
    tab.page.click(f"#{tab.name}_paste")
    tab.wait_for_preset("Fast")
    tab.wait_for_line("96x64 → 288x192")
    tab.page.wait_for_timeout(1000)
    tab.wait_for_preset("Fast")
    tab.wait_for_value("hires_steps", "12")


def test_unticking_the_checkbox_disables_demofusion_but_does_not_close_the_panel(tab: Tab) -> None:
    tab.open_panel()
    tab.page.click(f"{tab.panel}_enabled-visible-checkbox")
    tab.page.wait_for_timeout(500)
    assert not tab.enabled
    assert "open" in (tab.page.get_attribute(f"{tab.panel}_enabled > .label-wrap", "class") or "").split()


def test_a_preset_saved_in_one_tab_can_be_used_and_deleted_in_the_other(tab: Tab) -> None:
    tab.open_panel()
    tab.text("stages", "1,2")
    tab.page.press(tab.text("preset_name", f"From {tab.name}"), "Enter")
    tab.wait_for_message(f"Saved: From {tab.name}")
    tab.wait_for_preset(f"From {tab.name}")
    tab.wait_for_value("preset_name", "")
    screenshot(tab.page, SCREENSHOTS, f"{tab.name}-preset")

    other = Tab(tab.page, next(name for name in TABS if name != tab.name))
    other.open_panel()
    other.choose_preset(f"From {tab.name}")
    other.wait_for_value("stages", "1,2")
    with listening(tab.page, "dialog", lambda dialog: dialog.accept()):
        other.page.click(f"{other.panel}_preset_delete")
        other.wait_for_message(f"Deleted: From {tab.name}")
    other.wait_for_preset(OPENING)
    other.wait_for_value("stages", preset_values(OPENING)["stages"])
    again = Tab(tab.page, tab.name)
    again.wait_for_preset(OPENING)
    again.wait_for_value("stages", preset_values(OPENING)["stages"])
    assert again.presets() == list(PRESETS)


def test_a_message_about_presets_disappears_at_the_next_action_of_the_user(tab: Tab) -> None:
    tab.open_panel()
    tab.page.click(f"{tab.panel}_preset_delete")
    tab.wait_for_message("replace or delete a built-in preset")
    message = tab.page.locator(f"{tab.panel}_preset_message.prose")
    for act in (lambda: tab.choose_preset("Balanced"), lambda: tab.text("preset_name", "A")):
        act()
        message.wait_for(state="hidden", timeout=TIMEOUT)
        tab.page.click(f"{tab.panel}_preset_delete")
        tab.wait_for_message("replace or delete a built-in preset")


def test_the_summary_line_explains_why_the_field_upscale_by_has_no_effect(tab: Tab) -> None:
    tab.open_panel()
    tab.page.locator(tab.text("stages", "1,2,4")).blur()
    tab.wait_for_line("'Upscale by' has no effect, because the last number in 'Stages' sets the final size: 4")
    tab.number(f"{tab.panel}_width", 512)
    tab.wait_for_line("because 'Resize width to' or 'Resize height to' is set")


def test_the_panel_ticks_its_checkbox_until_the_user_clicks_the_checkbox(tab: Tab) -> None:
    """Before the user clicks the checkbox, opening the panel ticks it, and closing the panel unticks it.

    The checkboxes of the webui's own accordions behave in the same way.
    """
    header, box = f"{tab.panel}_enabled > .label-wrap", f"{tab.panel}_enabled-visible-checkbox"
    tab.page.click(f"{header} .icon")
    tab.wait_for_line("256x256")
    assert tab.enabled
    tab.page.click(f"{header} .icon")
    tab.page.wait_for_selector(f"{header}:not(.open)", timeout=TIMEOUT)
    tab.page.wait_for_timeout(300)
    assert not tab.enabled
    # if the user ticks the checkbox of a closed panel, DemoFusion runs too
    tab.page.click(box)
    tab.number(tab.id("steps"), 3)
    tab.generate()
    tab.wait_for_infotext("DemoFusion size: 256 x 256")
    tab.page.click(f"{header} .icon")
    tab.wait_for_line("256x256")
    tab.page.click(box)
    assert tab.wait_for_line("DemoFusion is off").startswith("DemoFusion is off. Tick the box")
    for _ in range(2):
        tab.page.click(f"{header} .icon")
        tab.page.wait_for_timeout(300)
        assert not tab.enabled


def test_the_panel_lists_the_fields_that_differ_from_the_preset(tab: Tab) -> None:
    tab.open_panel()
    changed = tab.page.locator(f"{tab.panel}_preset_changed.prose")
    assert not changed.is_visible()
    tab.page.locator(tab.text("stages", "1,2")).blur()
    changed.filter(has_text="changed: Stages").wait_for(timeout=TIMEOUT)
    screenshot(tab.page, SCREENSHOTS, f"{tab.name}-changed")
    tab.page.click(f"{tab.panel}_preset_back")
    tab.wait_for_value("stages", "fewest")
    changed.wait_for(state="hidden", timeout=TIMEOUT)
    tab.choose_preset("Paper")
    tab.wait_for_value("stages", "every")
    # the controls get their values one after another, so some controls differ from the new preset for a moment
    changed.wait_for(state="hidden", timeout=TIMEOUT)


def test_a_saved_preset_exists_after_the_page_is_reloaded(page: Any) -> None:
    tab = Tab(page, "txt2img")
    tab.open_panel()
    tab.text("preset_name", "Kept")
    page.click(f"{tab.panel}_preset_save")
    tab.wait_for_message("Saved: Kept")
    page.reload(wait_until="domcontentloaded")
    page.wait_for_selector("#txt2img_generate", timeout=TIMEOUT)
    again = Tab(page, "txt2img")
    again.open_panel()
    page.wait_for_timeout(1000)
    again.choose_preset("Kept")
    with listening(page, "dialog", lambda dialog: dialog.dismiss()):
        page.click(f"{again.panel}_preset_delete")
        page.wait_for_timeout(1000)
    again.wait_for_preset("Kept")


def test_a_built_in_preset_can_be_neither_replaced_nor_deleted(tab: Tab) -> None:
    tab.open_panel()
    page = tab.page
    page.click(f"{tab.panel}_preset_delete")
    tab.wait_for_message("replace or delete a built-in preset")
    page.press(tab.text("preset_name", "paper"), "Enter")
    tab.wait_for_message("replace or delete a built-in preset")
    assert "Paper" in tab.presets()


def test_after_a_run_the_summary_line_estimates_the_time_of_the_next_run(tab: Tab) -> None:
    tab.open_panel()
    # with the preset Paper, the number of steps in a stage depends on the sampling steps
    tab.choose_preset("Paper")
    tab.number(tab.id("steps"), 8)
    tab.wait_for_line("256x256")
    tab.generate()
    tab.wait_until_done()
    tab.number(tab.id("steps"), 40)
    assert "seconds" in tab.wait_for_line("about")
    tab.number(tab.id("batch_count"), 16)
    tab.wait_for_line("minutes")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_panel_fits_into_a_narrow_window(blank: Any, address: str, scheme: str) -> None:
    tab = open_panel(blank, f"{address}?__theme={scheme}", (400, 900))
    page = tab.page
    page.wait_for_timeout(500)
    script = "id => [...document.querySelectorAll(`[id^=${id}]`)].map(e => e.getBoundingClientRect().right)"
    assert max(page.evaluate(script, tab.panel.removeprefix("#"))) <= 400
    screenshot(page, SCREENSHOTS, f"narrow-{scheme}")
