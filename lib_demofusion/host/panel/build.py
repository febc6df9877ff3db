"""Builds the panel of a tab, and defines how a pasted infotext fills the panel."""

from __future__ import annotations

import html
import logging
from dataclasses import dataclass
from typing import Any

import gradio as gr
from modules.ui_components import FormRow, InputAccordion

from lib_demofusion.host.common import options, user_presets
from lib_demofusion.host.panel import preset_row
from lib_demofusion.host.panel.line import OFF
from lib_demofusion.host.panel.markup import problem_html, word
from lib_demofusion.host.panel.tab import BY_SELECTION
from lib_demofusion.settings.fields import ENABLED_KEY, NAMES, PRESET_FIELDS, SPECS, Settings
from lib_demofusion.settings.presets import Choices
from lib_demofusion.settings.reading import from_infotext, preset_values
from lib_demofusion.settings.spec import Spec

logger = logging.getLogger("DemoFusion")

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
"""The fields inside "Advanced", above the row that saves presets."""

UNSEEN = ("tile_size", "tile_stride", "jitter", "sigma", "cosine_scale_3", "skip_views")
"""Hidden fields. A preset or a pasted infotext can set them, and so can the API and the X/Y/Z plot."""

PICKED = "picked"
"""The name of the hidden checkbox `preset_row.Choice.picked`. It is not a field of Settings."""

CONTROLS = ("enabled", "preset", *(name for row in (*ROWS, *ADVANCED_ROWS) for name in row), *UNSEEN)
"""All fields of the panel, in the order of Settings.

The last field of Settings, `view_batch`, has no control in the panel. It is on the settings page.
"""


@dataclass(frozen=True)
class Panel:
    """The components of one tab's panel that other modules connect to events."""

    controls: list[Any]
    """The controls, in the order of CONTROLS."""
    line: Any
    row: preset_row.PresetRow
    selected: dict[str, Any]
    """A gr.State for each field in `tab.BY_SELECTION`, with the value that the selected tabs of img2img determine."""
    answered: Any
    """A hidden text box: the values for which the line was computed last (see `page.SIGNED`)."""


def build(script: Any) -> list[Any]:
    """Builds the panel and returns its controls in the order of the fields of Settings.

    The webui creates one script for each tab of a page. This function stores the panel in `script.panel`, where
    `page.py` finds it.

    After the page, the webui calls this function again for its API. If an API request omits positional arguments, the
    webui uses the values of the controls that this second call returns. These values are None. Omitted arguments then
    have the same effect as omitted fields: the fields get the values of the preset.
    """
    known, problems = user_presets.choices_and_problems()
    opening = opening_values(known)
    make = Maker(script, opening, known)
    messages = _messages(problems, known)
    with InputAccordion(Settings.enabled, label=SPECS["enabled"].label, elem_id=script.elem_id("enabled")) as enabled:
        selected = {name: gr.State(False) for name in BY_SELECTION}
        answered = hidden_text()
        line = gr.HTML(value=word(OFF), elem_id=script.elem_id("line"))
        choice = preset_row.build_choice(script, lambda: make.component("preset"))
        components = {"enabled": enabled, "preset": choice.preset, **make.rows(ROWS)}
        with gr.Accordion(ADVANCED, open=bool(messages), elem_id=script.elem_id("advanced")):
            components.update(make.rows(ADVANCED_ROWS))
            saving = preset_row.build_saving(script, messages)
        components.update({name: make.component(name) for name in UNSEEN})
    for name in ("preset", *PRESET_FIELDS):
        # the webui would store the initial values in ui-config.json, and keep them even if a later version of the
        # extension changes the values of a preset
        components[name].do_not_save_to_config = True
    controls = [components[name] for name in CONTROLS]
    row = preset_row.PresetRow(choice, saving, [components[name] for name in PRESET_FIELDS])
    if script.panel is not None:
        for control in controls:
            control.value = None
        return controls
    script.panel = Panel(controls, line, row, selected, answered)
    names = (*CONTROLS, PICKED)
    script.infotext_fields = [(field, Reader(name)) for field, name in zip((*controls, choice.picked), names)]
    # "send to img2img" in txt2img copies these fields. txt2img does not show the control of `img2img_first`
    script.paste_field_names = [Reader(name) for name in names if name != "img2img_first"]
    return controls


def hidden_text() -> gr.Textbox:
    """Creates a hidden text box, which the webui does not write into ui-config.json."""
    text = gr.Textbox(visible=False)
    text.do_not_save_to_config = True
    return text


def opening_values(known: Choices) -> dict[str, Any]:
    """Returns the initial values of the controls: the values of the default preset, and defaults for other fields."""
    preset = options.default_preset(known)
    return {**{name: getattr(Settings, name) for name in NAMES}, **preset_values(preset, known), "preset": preset}


def _messages(problems: list[str], known: Choices) -> list[str]:
    """Returns `problems` of the preset file, and any problem with the default preset, as HTML. Also logs them."""
    messages = [problem_html(html.escape(problem)) for problem in problems]
    gone = options.default_preset_gone(known)
    if gone is not None:
        problems = [*problems, f"{options.DEFAULT_GONE} {gone}"]
        messages.append(problem_html(word(options.DEFAULT_GONE), html.escape(gone)))
    for problem in problems:
        logger.warning("%s", problem)
    return messages


@dataclass(frozen=True)
class Reader:
    """Reads the value of one control from a parsed infotext.

    If the image was created with DemoFusion, every reader returns a value: the infotext omits fields with default
    values, so a reader returns the default if its field is missing. For other images, the reader of `enabled` returns
    False. The other readers return None, and the webui then does not change their controls.

    Readers with the same name are equal. The webui compares readers to find the control of the other tab.
    """

    name: str
    """The name of the control: a field of Settings, or PICKED."""

    def __call__(self, params: dict[str, Any]) -> Any:
        if self.name != "enabled" and ENABLED_KEY not in params:
            return None
        if self.name == PICKED:
            return True
        # the preset file is only read for the field "preset", because only its values depend on the file
        known = user_presets.known_choices() if self.name == "preset" else user_presets.choices_of_webui()
        return SPECS[self.name].choice(from_infotext(self.name, params, known))


@dataclass(frozen=True)
class Maker:
    """Creates the controls of one panel."""

    script: Any
    opening: dict[str, Any]
    """The initial values by field name."""
    known: Choices

    def rows(self, rows: tuple[tuple[str, ...], ...]) -> dict[str, Any]:
        """Creates rows of controls and returns the controls by field name."""
        components = {}
        for row in rows:
            with FormRow(elem_classes="demofusion-row"):
                components.update({name: self.component(name) for name in row})
        return components

    def component(self, name: str) -> Any:
        """Creates the control of a field."""
        spec = SPECS[name]
        value = spec.choice(self.opening[name])
        common = {"label": spec.label, "value": value, "elem_id": self.script.elem_id(name)}
        common["visible"] = name not in UNSEEN
        if spec.info:
            common["info"] = spec.info
        if name == "preset":
            return gr.Radio(**common, choices=list(spec.choices(self.known)))
        if name == "img2img_first":
            # the choices are texts: when the user saves the values of the page as defaults, the webui would use a bool
            # as the index of a choice
            return gr.Radio(**{**common, "visible": self.script.is_img2img}, choices=list(spec.words))
        if spec.kind is bool:
            return gr.Checkbox(**common)
        if spec.kind is str:
            return _text(spec, common, [*spec.words, *spec.choices(self.known)])
        return gr.Slider(**common, minimum=spec.minimum, maximum=spec.maximum, step=spec.step)


def _text(spec: Spec, common: dict[str, Any], proposed: list[str]) -> Any:
    if not proposed:
        return gr.Textbox(**common, max_lines=1)
    return gr.Dropdown(**common, choices=proposed, allow_custom_value=True)
