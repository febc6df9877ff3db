"""Connects each panel with the fields of its tab, the presets of the other tab, and the webui's settings."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import gradio as gr
from gradio.context import Context
from modules import scripts

from lib_demofusion.host.common import user_presets
from lib_demofusion.host.integrations import refusals
from lib_demofusion.host.panel import preset_row
from lib_demofusion.host.panel.build import CONTROLS, Panel
from lib_demofusion.host.panel.line import OFF, describe
from lib_demofusion.host.panel.markup import word
from lib_demofusion.host.panel.tab import TabValues

TABS = ("txt2img", "img2img")
"""The tabs, in the order in which the webui builds them."""

LAST = "gallery"
"""The last component of a tab. When it is created, all others exist, even if the user has reordered them."""

SETTINGS = "settings_json"
"""The page's hidden copy of all settings. The webui updates it after a change of a setting or of the checkpoint."""


MODEL_CLASS = "model_selection"
"""The CSS class of the dropdowns of checkpoints and text encoders in Forge and Forge Neo.

The hidden copy of the settings does not change when one of these dropdowns does.
"""

HOST_SECONDS = 1.0
"""Seconds to wait after a choice in these dropdowns, because the webui stores the choice in another event."""


class TabComponents:
    """The webui's own components of one tab whose values the summary line uses."""

    FIELDS = (
        *("width", "height", "steps", "sampling", "cfg_scale", "batch_size", "batch_count", "override_settings"),
        *("denoising_strength", "hr_checkbox", "hires_steps", "hr_scale", "hr_resize_x", "hr_resize_y"),
        *("scale", "scale_resolution_preview"),
    )
    SIZE_TABS = ("tab_resize_to", "tab_resize_by")
    """The two sources of img2img's size: the width and height fields, or the uploaded image."""
    SCRIPTS = "script_list"

    def __init__(self) -> None:
        self.fields: dict[str, Any] = {}
        """Components by the names of the fields in TabValues."""
        self.size_tabs: dict[str, Any] = {}

    def take(self, component: Any, elem_id: str) -> None:
        """Stores a component of the tab if the summary line needs it."""
        tab, _, name = elem_id.replace("-", "_").partition("_")
        if elem_id == self.SCRIPTS:
            self.fields["script"] = component
        elif tab in TABS and name in self.FIELDS:
            self.fields[name] = component
        elif tab in TABS and name in self.SIZE_TABS:
            self.size_tabs[name] = component


def component_of_tab(script: Any, component: Any, elem_id: str | None) -> None:
    """Stores a component of the script's tab, and connects the panel after the tab's last component.

    The webui calls this function for every component of the tab. Panels that the webui builds for its API have no tab
    and are not connected.
    """
    if not _is_building():
        return
    script.tab_components.take(component, elem_id or "")
    if elem_id not in {f"{tab}_{LAST}" for tab in TABS} or script.panel is None:
        return
    _follow_tab(script)
    # txt2img is built first. At that time, the script of img2img may still have the panel of the previous page
    if script.is_img2img:
        preset_row.connect([other.panel.row for other in _scripts_of_page()])


def component_of_page(component: Any, **kwargs: Any) -> None:
    """Updates the summary lines after a change of the settings or of the model.

    The webui calls this for every component of the page.
    """
    if not _is_building():
        return
    if kwargs.get("elem_id") == SETTINGS:
        for script in _scripts_of_page():
            _follow(script, component)
    if MODEL_CLASS in (kwargs.get("elem_classes") or ()):
        for script in _scripts_of_page():
            _follow(script, component, HOST_SECONDS)


def _is_building() -> bool:
    """Returns whether the webui is building a page.

    gradio 4 also creates components outside of a page: when an event updates a component, it creates a copy with the
    new properties. Such a copy cannot have events.
    """
    return Context.root_block is not None


def _scripts_of_page() -> list[Any]:
    """Returns the scripts of this extension that have a panel, one for each tab. Every page has its own scripts."""
    runners = (scripts.scripts_txt2img, scripts.scripts_img2img)
    found = [script for runner in runners if runner is not None for script in runner.alwayson_scripts]
    return [script for script in found if isinstance(getattr(script, "panel", None), Panel)]


def _follow_tab(script: Any) -> None:
    """Updates the summary line and the list of changed fields after every change in the panel and the tab."""
    panel, tab = script.panel, script.tab_components
    # gradio 3 drops an event that occurs while it waits for an answer, so a new text of the line causes another update
    text_of_line = _text_of(panel.line)
    for component in (*panel.controls, panel.row.choice.picked, *tab.fields.values(), text_of_line):
        _follow(script, _text_of(component) if isinstance(component, gr.HTML) else component)
    _follow_few_steps(script, text_of_line)
    # the webui applies the user's own defaults only after it has built the line
    Context.root_block.load(_updater(script), _inputs(script), _shown(panel), show_progress=False, queue=False)
    # only the two tabs report which source of img2img's size is selected
    for name, size_tab in tab.size_tabs.items():
        chosen = partial(_on_size_tab, _updater(script), name == "tab_resize_by")
        size_tab.select(chosen, _inputs(script), [panel.by_picture, *_shown(panel)], show_progress=False, queue=False)


def _follow_few_steps(script: Any, text_of_line: Any) -> None:
    """Updates the preset after a change of the tab's steps or CFG scale, until the user chooses a preset.

    A new text of the line triggers this too, because gradio 3 drops an event that occurs while it waits for an answer.
    """
    row = script.panel.row
    outputs, fields = [row.choice.preset, *row.controls], script.tab_components.fields
    suit, quiet = _chooser_of_preset(script), {"show_progress": False, "queue": False}
    for component in filter(None, (fields.get("steps"), fields.get("cfg_scale"), text_of_line)):
        component.change(suit, _inputs(script), outputs, **quiet)
    Context.root_block.load(suit, _inputs(script), outputs, **quiet)


IF_CHANGED = '(text, copy) => (text || "") === (copy || "") ? new Promise(() => {}) : text || ""'
"""JavaScript that returns the text, or never resolves if the copy is equal, so that the page changes nothing."""


def _text_of(shown: gr.HTML) -> gr.Textbox:
    """Creates a hidden copy of an HTML component that reports a change only if the text changes.

    gradio 4 draws the page after every update, and then reports a change of every HTML component. If these reports
    caused updates, the updates would repeat forever, and the browser would use a whole core.
    """
    text = gr.Textbox(visible=False)
    # otherwise the webui would write it into ui-config.json
    text.do_not_save_to_config = True
    shown.change(None, [shown, text], [text], _js=IF_CHANGED, show_progress=False, queue=False)
    return text


def _follow(script: Any, component: Any, delay: float = 0.0) -> None:
    update = _updater(script)

    def update_later(*values: Any) -> list[Any]:
        time.sleep(delay)
        return update(*values)

    component.change(update_later, _inputs(script), _shown(script.panel), show_progress=False, queue=False)


def _inputs(script: Any) -> list[Any]:
    panel = script.panel
    return [*panel.controls, *script.tab_components.fields.values(), panel.by_picture, panel.row.choice.picked]


def _shown(panel: Panel) -> list[Any]:
    return [panel.line, *panel.row.choice.marks]


def _updater(script: Any) -> Callable[..., list[Any]]:
    """Returns a function that receives the values of `_inputs` and returns updates of the line and the marks."""

    def update(*values: Any, **more: Any) -> list[Any]:
        own, tab = _values_of(script, values, more)
        known = user_presets.known_choices()
        text = describe([own], tab, known) if own["enabled"] else word(OFF)
        return [gr.update(value=text), *preset_row.marks(own, known)]

    return update


def _chooser_of_preset(script: Any) -> Callable[..., list[Any]]:
    """Returns a function that receives the values of `_inputs` and returns updates of the preset and its controls."""

    def choose(*values: Any) -> list[Any]:
        return preset_row.automatic_preset(*_values_of(script, values, {}))

    return choose


def _values_of(script: Any, values: Sequence[Any], more: Mapping[str, Any]) -> tuple[dict[str, Any], TabValues]:
    """Splits the values of `_inputs` into the panel's (by field) and the tab's. `more` replaces some of the tab's."""
    fields = (*script.tab_components.fields, "resize_by", "preset_picked")
    tab = {**dict(zip(fields, values[len(CONTROLS) :])), "img2img": script.is_img2img, **more}
    runner = scripts.scripts_img2img if script.is_img2img else scripts.scripts_txt2img
    tab["script"] = refusals.chosen_script(runner, tab.get("script"))
    return dict(zip(CONTROLS, values)), TabValues(**tab)


def _on_size_tab(update: Callable[..., list[Any]], by: bool, *values: Any) -> list[Any]:
    """Returns `by` (whether the uploaded image sets the size) and the updates of the line."""
    return [by, *update(*values, resize_by=by)]
