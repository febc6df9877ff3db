"""Tests the events that connect the panel with the rest of the page."""

from __future__ import annotations

from typing import Any

import gradio as gr
import launch
import pytest
from in_process import Webui
from modules import scripts, shared

from lib_demofusion.host.panel.page import component_of_page, component_of_tab


def by_id(webui: Webui, elem_id: str) -> Any:
    """Returns the component of the page that has this id."""
    return next(block for block in webui.page.blocks.values() if getattr(block, "elem_id", None) == elem_id)


def own_scripts() -> list[Any]:
    """Returns DemoFusion's scripts for txt2img and img2img. The scripts belong to the page that was built last."""
    runners = (scripts.scripts_txt2img, scripts.scripts_img2img)
    return [next(one for one in runner.alwayson_scripts if one.title() == "DemoFusion Hires") for runner in runners]


def test_a_changed_setting_updates_the_summary_lines_of_both_tabs(
    webui: Webui, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = by_id(webui, "settings_json")._id
    on_change = [d for d in webui.page.dependencies if settings in d["targets"]]
    lines = {by_id(webui, f"script_{tab}_demofusion_hires_line")._id for tab in ("txt2img", "img2img")}
    assert lines < {output for dependency in on_change for output in dependency["outputs"]}
    monkeypatch.setattr(shared.opts, "tiling", True)
    for dependency in on_change:
        # the first value enables the panel
        values = [True, *(getattr(webui.page.blocks[i], "value", None) for i in dependency["inputs"][1:])]
        function = webui.page.fns[webui.page.dependencies.index(dependency)].fn
        assert "Tiling" in function(*values)[0]["value"]


def test_forges_dropdown_of_checkpoints_updates_the_summary_lines_of_both_tabs(webui: Webui) -> None:
    """In Forge and Forge Neo, selecting a checkpoint does not change the component `settings_json`."""
    # not `webui.page`: the scripts belong to the page that was built last, possibly by another test file
    lines = {script.panel.line._id for script in own_scripts()}
    assert len(lines) == 2
    with gr.Blocks() as blocks:
        chosen = {name: gr.Dropdown() for name in ("model_selection", "another")}
        for name, dropdown in chosen.items():
            component_of_page(dropdown, elem_classes=[name])
    followed = {
        name: {output for d in blocks.dependencies if dropdown._id in d["targets"] for output in d["outputs"]}
        for name, dropdown in chosen.items()
    }
    assert lines <= followed["model_selection"]
    assert followed["another"] == set()


@pytest.mark.parametrize("elem_id", ["txt2img_gallery", "txt2img_width"])
def test_copies_of_components_outside_of_a_page_are_ignored(webui: Webui, elem_id: str) -> None:
    """When an event updates a component, gradio 4 creates a copy of the component with the same id and classes."""
    script, _ = own_scripts()
    before = dict(script.tab_components.fields)
    copy = gr.Dropdown()
    component_of_page(copy, elem_classes=["model_selection"])
    component_of_page(copy, elem_id="settings_json")
    component_of_tab(script, copy, elem_id)
    assert script.tab_components.fields == before


def test_the_summary_line_is_updated_when_the_page_is_loaded(webui: Webui) -> None:
    """The update is necessary, because the webui applies ui-config.json after it has built the components."""
    blocks = webui.page.blocks
    panel = "script_txt2img_demofusion_hires"
    own = {"width": 128, "height": 128, f"{panel}_scale": 1.5, f"{panel}_enabled-checkbox": True}
    line = by_id(webui, "script_txt2img_demofusion_hires_line")._id
    (load,) = (d for d in webui.page.dependencies if d["trigger"] == "load" and line in d["outputs"])
    values = []
    for block in (blocks[i] for i in load["inputs"]):
        name = (block.elem_id or "").removeprefix("txt2img_")
        values.append(own.get(name, getattr(block, "value", None)))
    function = webui.page.fns[webui.page.dependencies.index(load)].fn
    shown = dict(zip(load["outputs"], function(*values)))
    assert "128x128 → 192x192" in shown[line]["value"]


def test_no_update_of_the_panel_shows_progress(webui: Webui) -> None:
    """While an event runs, gradio otherwise covers the controls that the event updates, and shows the seconds."""
    own = {block._id for block in webui.page.blocks.values() if "demofusion_hires_" in str(block.elem_id)}
    updates = [d for d in webui.page.dependencies if own.intersection(d["outputs"])]
    assert {d["trigger"] for d in updates} >= {"change", "click", "input", "load"}
    assert {d["show_progress"] for d in updates} == {"hidden"}


def test_only_events_of_finished_components_have_javascript(webui: Webui) -> None:
    """In Forge and Forge Neo, other events raise TypeError for the argument `_js` (gradio_extensions.py).

    `settings_json` is not finished, because the webui calls the script while it creates this component.
    """
    line = by_id(webui, "script_img2img_demofusion_hires_line")._id
    updates = [d for d in webui.page.dependencies if line in d["outputs"]]
    assert {d["trigger"] for d in updates} >= {"change", "load"}
    assert {d["trigger"] for d in updates if d["js"]} == {"change"}
    settings = by_id(webui, "settings_json")._id
    assert [bool(d["js"]) for d in updates if settings in d["targets"]] == [False]


def test_send_to_img2img_copies_each_field_to_the_same_field() -> None:
    """The webui copies the value of each field in `paste_field_names` to the other tab's field with the same name."""
    ours = own_scripts()
    names = ours[0].paste_field_names
    sent, received = (
        [field.elem_id.partition("_demofusion_hires_")[2] for field, name in script.infotext_fields if name in names]
        for script in ours
    )
    assert sent == received
    assert "enabled-checkbox" in sent
    assert "scale" in sent
    assert "img2img_first" not in sent


def test_a_page_that_is_built_again_shares_no_components_or_events_with_the_first_page(webui: Webui) -> None:
    """Each "Reload UI" builds a new page."""
    again = launch.build()
    for page in (webui.page, again):
        own = set(page.blocks)
        ids = {dependency["targets"][0] for dependency in page.dependencies if dependency["targets"]}
        assert ids <= own
        presets = [block._id for block in page.blocks.values() if str(block.elem_id).endswith("_hires_preset")]
        assert len(presets) == 2
        for preset in presets:
            chosen = [d for d in page.dependencies if preset in d["targets"] and d["trigger"] == "input"]
            assert len([d for d in chosen if d["backend_fn"]]) == 1
    assert not set(webui.page.blocks) & set(again.blocks)


def test_controls_that_are_built_for_the_api_have_no_events_on_the_page(webui: Webui) -> None:
    """For the API, the webui builds the controls of all scripts once more, and reads the default values."""
    before = len(webui.page.dependencies)
    for script in own_scripts():
        with gr.Blocks() as blocks:
            script.ui(script.is_img2img)
        assert {d["trigger"] for d in blocks.dependencies} <= {"change"}
        assert not any(d["outputs"] for d in blocks.dependencies if d["backend_fn"])
    assert len(webui.page.dependencies) == before
