"""Connects the components of a panel with events.

A panel changes after events of its own controls, of the webui's fields in its tab, of the webui's settings, and if a
preset is saved or deleted in the other tab. The summary line is the line below the panel's title. The marks of the
preset are the list of the fields that differ from the preset, and the reset button.
"""

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
from lib_demofusion.host.panel.build import CONTROLS, Panel, hidden_text
from lib_demofusion.host.panel.line import OFF, describe
from lib_demofusion.host.panel.markup import word
from lib_demofusion.host.panel.preset_row import QUIET
from lib_demofusion.host.panel.tab import BY_SELECTION, TabValues

TABS = ("txt2img", "img2img")
"""The tabs, in the order in which the webui builds them."""

GALLERY = "gallery"
"""The element id of a tab's gallery, without `txt2img_` or `img2img_`.

When the webui creates the gallery, all components that TabComponents stores exist, in whatever order the user has set
in the webui's setting "UI item order".
"""

SETTINGS = "settings_json"
"""The element id of a hidden text box with all settings. Its text changes when a setting or the checkpoint changes."""

MODEL_CLASS = "model_selection"
"""The CSS class of Forge's and Forge Neo's dropdown of checkpoints, and of Forge Neo's dropdown of text encoders.

When one of these dropdowns changes, the webui does not update the component SETTINGS.
"""

HOST_SECONDS = 1.0
"""Seconds to wait after a change of a dropdown with MODEL_CLASS.

Another event of the webui stores the chosen value, and the panel must read the value after that.
"""


class TabComponents:
    """The webui's own components of one tab whose values the summary line uses."""

    FIELDS = (
        *("width", "height", "steps", "sampling", "cfg_scale", "batch_size", "batch_count", "override_settings"),
        *("denoising_strength", "hr_checkbox", "hires_steps", "hr_scale", "hr_resize_x", "hr_resize_y"),
        *("scale", "scale_resolution_preview"),
    )
    """The element ids of the components without `txt2img_` or `img2img_`, and with `_` for `-`: fields of TabValues."""
    SCRIPTS = "script_list"
    """The element id of the dropdown "Script". It is the same in both tabs."""

    def __init__(self) -> None:
        self.fields: dict[str, Any] = {}
        """The components by name: the dropdown as "script", and the others by their names in FIELDS."""
        self.tabs: dict[str, Any] = {}
        """The tabs inside img2img by their names in BY_SELECTION."""

    def add(self, component: Any, elem_id: str) -> None:
        """Stores a component of the tab if the summary line needs it."""
        tab, _, name = elem_id.replace("-", "_").partition("_")
        if elem_id == self.SCRIPTS:
            self.fields["script"] = component
        elif tab in TABS and name in self.FIELDS:
            self.fields[name] = component
        elif tab == "img2img" and any(name in values for values in BY_SELECTION.values()):
            self.tabs[name] = component


def component_of_tab(script: Any, component: Any, elem_id: str | None) -> None:
    """Stores a component of the script's tab. If the component is the tab's gallery, connects the panel with events.

    The webui calls this function for every component of the tab. Panels that the webui builds for its API have no
    gallery, and so are not connected.
    """
    if not _is_building():
        return
    script.tab_components.add(component, elem_id or "")
    if elem_id not in {f"{tab}_{GALLERY}" for tab in TABS} or script.panel is None:
        return
    _follow_tab(script)
    # the webui builds txt2img first. At that time, `_scripts_of_page` may still find img2img's script of the page
    # before the last "Reload UI", so the preset rows of both tabs are connected only after img2img has been built
    if script.is_img2img:
        preset_row.connect([other.panel.row for other in _scripts_of_page()])


def component_of_page(component: Any, **kwargs: Any) -> None:
    """Connects the summary lines to the components that change with the settings or the checkpoint.

    The webui calls this function for every component of the page.
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

    The webui also calls the two functions above for components outside a page: when an event updates a component,
    gradio 4 creates a copy with the new properties. Such a copy cannot have events.
    """
    return Context.root_block is not None


def _scripts_of_page() -> list[Any]:
    """Returns DemoFusion's scripts that have a panel, one for each tab. The webui creates new ones for every page."""
    runners = (scripts.scripts_txt2img, scripts.scripts_img2img)
    found = [script for runner in runners if runner is not None for script in runner.alwayson_scripts]
    return [script for script in found if isinstance(getattr(script, "panel", None), Panel)]


def _follow_tab(script: Any) -> None:
    """Lets changes of the panel's controls and of `script.tab_components` update the line and the preset's marks."""
    panel, tab = script.panel, script.tab_components
    outdated, event, inputs = hidden_text(), _event(script), _inputs(script)
    signed, check = SIGNED % (len(inputs), len(inputs)), IF_OUTDATED % len(inputs)
    for component in (*panel.controls, panel.row.choice.picked, *tab.fields.values(), outdated):
        changing = _text_of(component) if isinstance(component, gr.HTML) else component
        changing.change(_updater(script), **event, _js=signed)
    panel.answered.change(None, [panel.answered, *inputs], outdated, _js=check, **QUIET)
    _follow_few_steps(script, _text_of(panel.line))
    # the line is also updated when the page loads: the webui applies ui-config.json after this function has run
    Context.root_block.load(_updater(script), **event)
    # no component has the selected tab as its value, so the events of the tabs store it in `panel.selected`
    for field, values in BY_SELECTION.items():
        for name in values.keys() & tab.tabs.keys():
            select = partial(_on_select, _updater(script), field, values[name])
            tab.tabs[name].select(select, **{**event, "outputs": [panel.selected[field], *event["outputs"]]})


def _follow_few_steps(script: Any, text_of_line: Any) -> None:
    """Calls `preset_row.automatic_preset` when the tab's steps or CFG scale change, and when the page loads.

    Also calls it when the text of the line changes: gradio 3 drops a change of a component that occurs while the update
    for an earlier change of this component runs.
    """
    row = script.panel.row
    outputs, fields = [row.choice.preset, *row.controls], script.tab_components.fields
    choose = _chooser_of_preset(script)
    for component in filter(None, (fields.get("steps"), fields.get("cfg_scale"), text_of_line)):
        component.change(choose, _inputs(script), outputs, **QUIET)
    Context.root_block.load(choose, _inputs(script), outputs, **QUIET)


IF_CHANGED = '(text, copy) => (text || "") === (copy || "") ? new Promise(() => {}) : text || ""'
"""JavaScript with a component's text and a copy of this text as arguments. Returns the text if the two differ.

If they are equal, returns a promise that never resolves. gradio then updates nothing, so the copy reports no change.
"""


def _text_of(shown: gr.HTML) -> gr.Textbox:
    """Creates a hidden text box with the text of an HTML component. Its event `change` occurs only if the text changes.

    In gradio 4, the event `change` of every HTML component occurs after every update of the page. If these events
    caused updates, the updates would repeat forever, and the browser would use a whole core.
    """
    text = hidden_text()
    shown.change(None, [shown, text], [text], _js=IF_CHANGED, **QUIET)
    return text


def _follow(script: Any, component: Any, delay: float = 0.0) -> None:
    """Lets a change of a component of the page update the line and the marks of the preset after `delay` seconds."""
    update = _updater(script)

    def update_later(*values: Any) -> list[Any]:
        time.sleep(delay)
        return update(*values)

    component.change(update_later, **_event(script))


SIGNED = "(...values) => [...values.slice(0, %d), JSON.stringify(values.slice(0, %d))]"
"""JavaScript with the values of `_inputs`, whose number replaces both %d. Returns these values and their JSON text.

An update returns the JSON text together with the new line. The page can then check whether the values have changed
while the update ran (see IF_OUTDATED).
"""

IF_OUTDATED = """(answered, ...values) =>
    (answered || "").split("\\n")[0] === JSON.stringify(values.slice(0, %d))
        ? new Promise(() => {}) : String(performance.now())"""
"""JavaScript with the values of `Panel.answered` and of `_inputs`. The number of `_inputs` replaces %d.

gradio 3 drops a change of a component that occurs while an update for an earlier change of this component runs. If the
line was computed from old values, this code returns a new text for the hidden text box `outdated`, whose change causes
another update. If the line is up to date, it returns a promise that never resolves, so gradio updates nothing.
"""


def _event(script: Any) -> dict[str, Any]:
    """Returns the arguments of an event whose function is `_updater` or returns the same updates.

    The last input is `Panel.answered`. With SIGNED as the argument `_js`, the JSON text of `_inputs` replaces it.
    Forge's family accepts `_js` neither for events of the page and of tabs nor for a component that is just being
    created. These events pass the last answer unchanged. If the values have changed since that answer, IF_OUTDATED
    causes one more update.
    """
    inputs, outputs = ([*components, script.panel.answered] for components in (_inputs(script), _shown(script.panel)))
    return {"inputs": inputs, "outputs": outputs, **QUIET}


def _inputs(script: Any) -> list[Any]:
    panel = script.panel
    fields = script.tab_components.fields.values()
    return [*panel.controls, *fields, *panel.selected.values(), panel.row.choice.picked]


def _shown(panel: Panel) -> list[Any]:
    """Returns the components of the summary line and of the marks of the preset."""
    return [panel.line, *panel.row.choice.marks]


def _updater(script: Any) -> Callable[..., list[Any]]:
    """Returns a function that takes the values of the inputs of `_event`, and returns updates of the outputs."""

    def update(*values: Any, **more: Any) -> list[Any]:
        *inputs, signature = values
        own, tab = _values_of(script, inputs, more)
        known = user_presets.known_choices()
        text = describe([own], tab, known) if own["enabled"] else word(OFF)
        # the second line makes every answer a change, even if the values are the same as in the last answer
        answered = f"{signature}\n{time.perf_counter_ns()}"
        return [gr.update(value=text), *preset_row.marks(own, known), gr.update(value=answered)]

    return update


def _chooser_of_preset(script: Any) -> Callable[..., list[Any]]:
    """Returns a function that takes the values of `_inputs`, and returns updates of the preset and its controls."""

    def choose(*values: Any) -> list[Any]:
        return preset_row.automatic_preset(*_values_of(script, values, {}))

    return choose


def _values_of(script: Any, values: Sequence[Any], more: Mapping[str, Any]) -> tuple[dict[str, Any], TabValues]:
    """Splits the values of `_inputs` into the values of the panel, by field, and the values of the tab.

    `more` are values of TabValues that replace those in `values`.
    """
    fields = (*script.tab_components.fields, *script.panel.selected, "preset_picked")
    tab = {**dict(zip(fields, values[len(CONTROLS) :])), "img2img": script.is_img2img, **more}
    runner = scripts.scripts_img2img if script.is_img2img else scripts.scripts_txt2img
    tab["script"] = refusals.chosen_script(runner, tab.get("script"))
    return dict(zip(CONTROLS, values)), TabValues(**tab)


def _on_select(update: Callable[..., list[Any]], field: str, value: bool, *values: Any) -> list[Any]:
    """Returns the new value of `Panel.selected[field]`, and the updates that `update` returns.

    `value` is the value that the selected tab has in BY_SELECTION.
    """
    return [value, *update(*values, **{field: value})]
