"""The panel in txt2img and img2img, the line that tells what a run will be, and the fields that paste fills."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr
from modules import scripts
from modules.ui_components import FormRow, InputAccordion

from lib_demofusion.host.neighbours import refusals as neighbours
from lib_demofusion.host.panel import preset_row, presets
from lib_demofusion.host.panel.line import describe
from lib_demofusion.host.panel.tab import TabValues
from lib_demofusion.settings.fields import (
    NAMES,
    PRESET_FIELDS,
    SPECS,
    Settings,
    preset_values,
)
from lib_demofusion.settings.infotext import from_infotext

SIZES = (("scale", "width", "height"),)
"""The panel's first row; the presets stand below it."""

ROWS = (
    ("stages",),
    ("redraw_base", "save_stages", "return_stages"),
)
"""The fields below the presets, row by row."""

ADVANCED = "Advanced"
ADVANCED_ROWS = (
    ("strength", "stage_steps", "extra_noise"),
    ("anchor", "upscaler", "keep_colours"),
    ("overlap", "feather", "jitter"),
    ("dilated_threshold", "local_threshold"),
    ("window", "stride", "view_batch"),
    ("cosine_scale_1", "cosine_scale_2", "cosine_scale_3"),
    ("sigma",),
)
"""The fields behind "Advanced"."""

TABS = ("txt2img", "img2img")

SETTINGS = "settings_json"
"""The page's hidden copy of all settings, which the host renews when one was changed or a checkpoint was loaded."""

_preset_rows: dict[str, preset_row.PresetRow] = {}
"""Those of the page that is being built, by tab."""

_on_settings: dict[str, Callable[[Any], None]] = {}
"""What connects the live lines of the page that is being built with its settings, by tab."""


class Neighbours:
    """The webui's own components that the live line follows; a script is told of those of its own tab."""

    FIELDS = (
        *("width", "height", "steps", "sampling", "cfg_scale", "batch_size", "batch_count", "override_settings"),
        *("denoising_strength", "hr_checkbox", "hires_steps", "hr_scale", "hr_resize_x", "hr_resize_y"),
        *("scale", "scale_resolution_preview"),
    )
    SIZE_TABS = ("tab_resize_to", "tab_resize_by")
    """Where img2img takes its size from: the fields or the picture."""
    SCRIPTS = "script_list"
    LAST = "gallery"
    """When this one is made the others are there, in whatever order the user has put them."""

    def __init__(self) -> None:
        self.size_tabs: dict[str, Any] = {}
        self._found: dict[str, Any] = {}
        self._then: Callable[[dict[str, Any]], None] | None = None

    def when_complete(self, then: Callable[[dict[str, Any]], None]) -> None:
        """Calls `then` with the tab's components, by their names in TabValues, once all are made.

        It is not called for the panels that the host builds for its API, which stand in no tab.
        """
        self._then = then

    def notice(self, component: Any, elem_id: str | None) -> None:
        """Remembers a component by its id."""
        tab, _, field = (elem_id or "").replace("-", "_").partition("_")
        if elem_id == self.SCRIPTS:
            self._found["script"] = component
        elif tab in TABS and field in self.FIELDS:
            self._found[field] = component
        elif tab in TABS and field in self.SIZE_TABS:
            self.size_tabs[field] = component
        elif tab in TABS and field == self.LAST and self._then is not None:
            then, self._then = self._then, None
            then(self._found)


def build(script: Any, is_img2img: bool) -> list[Any]:
    """Builds the panel and returns its components in the order of the fields of Settings.

    The host calls this once for the page and twice for the API: nothing may be left behind but `infotext_fields`.
    """
    problems = presets.load()
    opening = opening_values()
    components: dict[str, Any] = {}
    with InputAccordion(Settings.enabled, label=SPECS["enabled"].label, elem_id=script.elem_id("enabled")) as enabled:
        components["enabled"] = enabled
        by_picture = gr.State(False)
        line = gr.HTML(value=describe([{**opening, "enabled": True}], TabValues()), elem_id=script.elem_id("line"))
        components.update(_rows(script, SIZES, opening))
        row = preset_row.build(script, lambda: _component(script, "preset", opening["preset"]), problems)
        components["preset"] = row.dropdown
        components.update(_rows(script, ROWS, opening))
        with gr.Accordion(ADVANCED, open=False, elem_id=script.elem_id("advanced")):
            components.update(_rows(script, ADVANCED_ROWS, opening))
    controls = [components[name] for name in NAMES]
    row.controls = [components[name] for name in PRESET_FIELDS]
    _connect_presets(row, is_img2img)
    _let_preset_win(components)
    script.neighbours.when_complete(
        lambda found: _connect_line(line, controls, {**found, "resize_by": by_picture}, script)
    )
    script.infotext_fields = [(components[name], Reader(name)) for name in NAMES]
    # what "send to img2img" below a picture of txt2img copies; there nobody can have set `redraw_base`
    script.paste_field_names = [Reader(name) for name in NAMES if name != "redraw_base"]
    return controls


def after_component(component: Any, **kwargs: Any) -> None:
    """Makes the live lines follow the settings; the host tells of every component of the page."""
    if kwargs.get("elem_id") == SETTINGS:
        while _on_settings:
            _on_settings.popitem()[1](component)


def opening_values() -> dict[str, Any]:
    """Returns what the controls show at first: the default preset's values, and the defaults of all else."""
    preset = presets.default()
    return {**{name: getattr(Settings, name) for name in NAMES}, **preset_values(preset), "preset": preset}


def _connect_presets(row: preset_row.PresetRow, is_img2img: bool) -> None:
    """Connects the rows of both tabs as soon as the second is built, which is img2img's."""
    _preset_rows["img2img" if is_img2img else "txt2img"] = row
    if is_img2img:
        preset_row.connect(list(_preset_rows.values()))
        _preset_rows.clear()


def _let_preset_win(components: dict[str, Any]) -> None:
    """Keeps what a preset sets out of ui-config.json, which would go on showing the values of an older version."""
    for name in ("preset", *PRESET_FIELDS):
        components[name].do_not_save_to_config = True


@dataclass(frozen=True)
class Reader:
    """Reads a field's value out of an infotext's parameters.

    A field that the text does not name stood at its default; so pasting sets every control, or switches us off. Being
    equal, the readers of both tabs tell the host which control of one tab is which of the other.
    """

    name: str

    def __call__(self, params: dict[str, Any]) -> Any:
        return from_infotext(self.name, params)


def _rows(script: Any, rows: tuple[tuple[str, ...], ...], opening: dict[str, Any]) -> dict[str, Any]:
    components = {}
    for row in rows:
        with FormRow():
            components.update({name: _component(script, name, opening[name]) for name in row})
    return components


def _component(script: Any, name: str, value: Any) -> Any:
    spec = SPECS[name]
    common = {"label": spec.label, "value": value, "elem_id": script.elem_id(name)}
    if spec.info:
        common["info"] = spec.info
    if spec.kind is bool:
        return gr.Checkbox(**common, visible=script.is_img2img or name != "redraw_base")
    if spec.choices:
        return gr.Dropdown(**common, choices=list(spec.choices))
    if spec.kind is str:
        return gr.Textbox(**common, max_lines=1, placeholder="automatic")
    return gr.Slider(**common, minimum=spec.minimum, maximum=spec.maximum, step=spec.step)


def _connect_line(line: Any, controls: list[Any], found: dict[str, Any], script: Any) -> None:
    """Makes the line follow the panel and what the tab has of the values that it needs."""
    is_img2img = script.is_img2img

    def update(*values: Any, **known: Any) -> Any:
        tab = {**dict(zip(found, values[len(controls) :])), "img2img": is_img2img, **known}
        runner = scripts.scripts_img2img if is_img2img else scripts.scripts_txt2img
        title = neighbours.chosen_script(runner, tab.get("script"))
        return gr.update(value=describe((True, *values[1 : len(controls)]), TabValues(**{**tab, "script": title})))

    inputs = [*controls, *found.values()]

    def follow(component: Any) -> None:
        component.change(update, inputs, [line], show_progress=False, queue=False)

    for component in inputs:
        # of the chosen tab of img2img's size nothing tells but the tabs
        if component is not found["resize_by"]:
            follow(component)
    for name, tab in script.neighbours.size_tabs.items():
        by = name == "tab_resize_by"
        chosen = [found["resize_by"], line]
        tab.select(partial(_on_size_tab, update, by), inputs, chosen, show_progress=False, queue=False)
    _on_settings["img2img" if is_img2img else "txt2img"] = follow


def _on_size_tab(update: Callable[..., Any], by: bool, *values: Any) -> tuple[bool, Any]:
    """Returns whether the size is the picture's from now on, and what the line says."""
    return by, update(*values, resize_by=by)
