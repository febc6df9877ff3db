"""The panel in txt2img and img2img, the line that tells what a run will be, and the fields that paste fills."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr
from modules import scripts
from modules.ui_components import FormRow, InputAccordion

from lib_demofusion.host import offers, options, preset_file
from lib_demofusion.host.neighbours import refusals as neighbours
from lib_demofusion.host.panel import preset_row
from lib_demofusion.host.panel.line import describe
from lib_demofusion.host.panel.tab import TabValues
from lib_demofusion.settings.fields import NAMES, PRESET_FIELDS, SPECS, Settings
from lib_demofusion.settings.infotext import from_infotext
from lib_demofusion.settings.presets import Offers
from lib_demofusion.settings.reading import preset_values
from lib_demofusion.settings.spec import Spec

ROWS = (
    ("upscaler", "hires_steps", "denoising_strength"),
    ("scale", "width", "height"),
    ("img2img_first",),
)
"""The fields below the presets, row by row."""

ADVANCED = "Advanced"
ADVANCED_ROWS = (
    ("stages", "overlap", "feather"),
    ("extra_noise", "cosine_scale_1", "cosine_scale_2"),
    ("keep_colors", "save_stages", "return_stages"),
)
"""The fields behind "Advanced", above the saving of presets."""

UNSEEN = ("tile_size", "tile_stride", "jitter", "sigma", "cosine_scale_3", "skip_views")
"""The fields that hold what a preset or a pasted text set, and are else for the API and the X/Y/Z plot."""

CONTROLS = ("enabled", "preset", *(name for row in (*ROWS, *ADVANCED_ROWS) for name in row), *UNSEEN)
"""All of these, in the order of the fields of Settings; `view_batch`, the last of those, is on the settings page."""

IMG2IMG_FIRST = (("Upscale the image as it is", False), ("Run img2img first", True))
"""What img2img may begin with."""

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
    known = offers.known()
    opening = opening_values(known)
    make = Maker(script, opening, known)
    with InputAccordion(Settings.enabled, label=SPECS["enabled"].label, elem_id=script.elem_id("enabled")) as enabled:
        by_picture = gr.State(False)
        line = gr.HTML(value=describe([{**opening, "enabled": True}], TabValues()), elem_id=script.elem_id("line"))
        choice = preset_row.build_choice(script, lambda: make.component("preset"))
        components = {"enabled": enabled, "preset": choice.preset, **make.rows(ROWS)}
        with gr.Accordion(ADVANCED, open=False, elem_id=script.elem_id("advanced")):
            components.update(make.rows(ADVANCED_ROWS))
            saving = preset_row.build_saving(script, preset_file.problems(known.upscalers))
        components.update({name: make.component(name) for name in UNSEEN})
    controls = [components[name] for name in CONTROLS]
    row = preset_row.PresetRow(choice, saving, [components[name] for name in PRESET_FIELDS])
    _connect_presets(row, is_img2img)
    for name in ("preset", *PRESET_FIELDS):
        # ui-config.json would go on showing the values of an older version
        components[name].do_not_save_to_config = True
    script.neighbours.when_complete(
        lambda found: _connect_line([line, *choice.marks], controls, {**found, "resize_by": by_picture}, script)
    )
    script.infotext_fields = [(components[name], Reader(name)) for name in CONTROLS]
    # what "send to img2img" below an image of txt2img copies; there nobody can have set `img2img_first`
    script.paste_field_names = [Reader(name) for name in CONTROLS if name != "img2img_first"]
    return controls


def after_component(component: Any, **kwargs: Any) -> None:
    """Makes the live lines follow the settings; the host tells of every component of the page."""
    if kwargs.get("elem_id") == SETTINGS:
        while _on_settings:
            _on_settings.popitem()[1](component)


def opening_values(known: Offers) -> dict[str, Any]:
    """Returns what the controls show at first: the default preset's values, and the defaults of all else."""
    preset = options.default_preset(known)
    return {**{name: getattr(Settings, name) for name in NAMES}, **preset_values(preset, known), "preset": preset}


def _connect_presets(row: preset_row.PresetRow, is_img2img: bool) -> None:
    """Connects the rows of both tabs as soon as the second is built, which is img2img's."""
    _preset_rows["img2img" if is_img2img else "txt2img"] = row
    if is_img2img:
        preset_row.connect(list(_preset_rows.values()))
        _preset_rows.clear()


@dataclass(frozen=True)
class Reader:
    """Reads a field's value out of an infotext's parameters.

    A field that the text does not name stood at its default; so pasting sets every control, or switches us off. Being
    equal, the readers of both tabs tell the host which control of one tab is which of the other.
    """

    name: str

    def __call__(self, params: dict[str, Any]) -> Any:
        return from_infotext(self.name, params, offers.known())


@dataclass(frozen=True)
class Maker:
    """Makes the controls of one panel."""

    script: Any
    opening: dict[str, Any]
    """The values to begin with."""
    known: Offers

    def rows(self, rows: tuple[tuple[str, ...], ...]) -> dict[str, Any]:
        """Makes rows of controls; returns these by their fields' names."""
        components = {}
        for row in rows:
            with FormRow():
                components.update({name: self.component(name) for name in row})
        return components

    def component(self, name: str) -> Any:
        """Makes the control of a field."""
        spec = SPECS[name]
        common = {"label": spec.label, "value": self.opening[name], "elem_id": self.script.elem_id(name)}
        common["visible"] = name not in UNSEEN
        if spec.info:
            common["info"] = spec.info
        if name == "preset":
            return gr.Radio(**common, choices=list(spec.choices(self.known)))
        if name == "img2img_first":
            return gr.Radio(**{**common, "visible": self.script.is_img2img}, choices=list(IMG2IMG_FIRST))
        if spec.kind is bool:
            return gr.Checkbox(**common)
        if spec.kind is str:
            return _text(spec, common, [*spec.words, *spec.choices(self.known)])
        if name in ("scale", "width", "height"):
            return gr.Number(**common, step=spec.step, precision=0 if spec.kind is int else None)
        return gr.Slider(**common, minimum=spec.minimum, maximum=spec.maximum, step=spec.step)


def _text(spec: Spec, common: dict[str, Any], proposed: list[str]) -> Any:
    if not proposed:
        return gr.Textbox(**common, max_lines=1)
    return gr.Dropdown(**common, choices=proposed, allow_custom_value=True)


def _connect_line(shown: list[Any], controls: list[Any], found: dict[str, Any], script: Any) -> None:
    """Makes the line, and what tells of a changed preset, follow the panel and the tab's values that they need."""
    is_img2img = script.is_img2img

    def update(*values: Any, **more: Any) -> list[Any]:
        tab = {**dict(zip(found, values[len(controls) :])), "img2img": is_img2img, **more}
        runner = scripts.scripts_img2img if is_img2img else scripts.scripts_txt2img
        title = neighbours.chosen_script(runner, tab.get("script"))
        known, own = offers.known(), dict(zip(CONTROLS, values))
        text = describe([{**own, "enabled": True}], TabValues(**{**tab, "script": title}), known)
        return [gr.update(value=text), *preset_row.marks(own, known)]

    inputs = [*controls, *found.values()]

    def follow(component: Any) -> None:
        component.change(update, inputs, shown, show_progress=False, queue=False)

    for component in inputs:
        # of the chosen tab of img2img's size nothing tells but the tabs
        if component is not found["resize_by"]:
            follow(component)
    for name, tab in script.neighbours.size_tabs.items():
        by = name == "tab_resize_by"
        chosen = [found["resize_by"], *shown]
        tab.select(partial(_on_size_tab, update, by), inputs, chosen, show_progress=False, queue=False)
    _on_settings["img2img" if is_img2img else "txt2img"] = follow


def _on_size_tab(update: Callable[..., list[Any]], by: bool, *values: Any) -> list[Any]:
    """Returns whether the size is the image's from now on, and what the line says."""
    return [by, *update(*values, resize_by=by)]
