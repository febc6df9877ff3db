"""The panel in txt2img and img2img, the line that tells what a run will be, and the fields that paste fills."""

from __future__ import annotations

import html
from typing import Any

import gradio as gr
from modules import sd_samplers
from modules.ui_components import FormRow, InputAccordion

from lib_demofusion.plan import CELL, make_plan
from lib_demofusion.settings import NAMES, PRESETS, SPECS, Settings, SettingsError, from_infotext, settings_from_args
from lib_demofusion.step_gate import model_calls

ROWS = (
    ("scale", "width", "height"),
    ("preset", "stages"),
    ("redraw_base", "save_stages", "return_stages"),
)
"""The panel's fields below its title, row by row."""

ADVANCED_ROWS = (
    ("window", "stride", "view_batch"),
    ("cosine_scale_1", "cosine_scale_2", "cosine_scale_3"),
    ("sigma", "strength", "jitter"),
    ("dilated_threshold", "local_threshold"),
    ("feather", "anchor"),
)
"""The fields behind "Advanced"."""

PRESET_FIELDS = ("stages", *(name for row in ADVANCED_ROWS for name in row if name != "view_batch"))
"""The fields that a preset sets."""


class Neighbours:
    """The webui's own components that the live line follows."""

    FIELDS = ("width", "height", "steps", "sampling")

    def __init__(self) -> None:
        self._found: dict[str, Any] = {}

    def notice(self, component: Any, elem_id: str | None) -> None:
        """Remembers a component of either tab by its id."""
        if elem_id in {f"{tab}_{field}" for tab in ("txt2img", "img2img") for field in self.FIELDS}:
            self._found[elem_id] = component

    def of_tab(self, tab: str) -> list[Any]:
        """Returns width, height, steps and sampler of a tab, or nothing where the tab was built without them."""
        found = [self._found.get(f"{tab}_{field}") for field in self.FIELDS]
        return found if all(component is not None for component in found) else []


def build(script: Any, is_img2img: bool) -> list[Any]:
    """Builds the panel and returns its components in the order of the fields of Settings.

    The host calls this once for the page and twice for the API: nothing may be left behind but `infotext_fields`.
    """
    tab = "img2img" if is_img2img else "txt2img"
    components: dict[str, Any] = {}
    with InputAccordion(Settings.enabled, label=SPECS["enabled"].label, elem_id=script.elem_id("enabled")) as enabled:
        components["enabled"] = enabled
        line = gr.HTML(value=describe((True,), *UNKNOWN_TAB), elem_id=script.elem_id("line"))
        components.update(_rows(script, ROWS, is_img2img))
        with gr.Accordion("Advanced", open=False, elem_id=script.elem_id("advanced")):
            components.update(_rows(script, ADVANCED_ROWS, is_img2img))
    controls = [components[name] for name in NAMES]
    _connect_line(line, controls, script.neighbours.of_tab(tab))
    # not `change`: pasted text sets preset and controls at once, and the controls must stay as pasted
    components["preset"].input(
        apply_preset, [components["preset"]], [components[name] for name in PRESET_FIELDS], show_progress=False
    )
    script.infotext_fields = [(components[name], _reader(name)) for name in NAMES]
    return controls


def apply_preset(preset: str) -> list[Any]:
    """Returns the controls' values of a preset."""
    values = PRESETS.get(preset, {})
    return [gr.update(value=values.get(name, getattr(Settings, name))) for name in PRESET_FIELDS]


def _reader(name: str) -> Any:
    """A field that the text does not name stood at its default; so pasting sets every control, or switches us off."""
    return lambda params: from_infotext(name, params)


def _rows(script: Any, rows: tuple[tuple[str, ...], ...], is_img2img: bool) -> dict[str, Any]:
    components = {}
    for row in rows:
        with FormRow():
            components.update({name: _component(script, name, is_img2img) for name in row})
    return components


def _component(script: Any, name: str, is_img2img: bool) -> Any:
    spec = SPECS[name]
    common = {"label": spec.label, "value": getattr(Settings, name), "elem_id": script.elem_id(name)}
    if spec.info:
        common["info"] = spec.info
    if spec.kind is bool:
        return gr.Checkbox(**common, visible=is_img2img or name != "redraw_base")
    if spec.choices:
        return gr.Dropdown(**common, choices=list(spec.choices))
    if spec.kind is str:
        return gr.Textbox(**common, max_lines=1, placeholder="automatic")
    return gr.Slider(**common, minimum=spec.minimum, maximum=spec.maximum, step=spec.step)


def _connect_line(line: Any, controls: list[Any], neighbours: list[Any]) -> None:
    """Makes the line follow the panel and, where they are known, the tab's width, height and steps."""

    def update(*values: Any) -> Any:
        args, tab = values[: len(controls)], values[len(controls) :] or UNKNOWN_TAB
        return gr.update(value=describe((True, *args[1:]), *tab))

    inputs = [*controls, *neighbours]
    for component in inputs:
        component.change(update, inputs, [line], show_progress=False, queue=False)


UNKNOWN_TAB = (512, 512, 20, None)
"""Width, height, steps and sampler until the tab's own are known."""


def describe(args: tuple[Any, ...], width: float, height: float, steps: float, sampler: str | None) -> str:
    """Returns the live line: stages, final size, model evaluations and cost, or what is wrong with the values."""
    try:
        settings = settings_from_args(args)
        plan = make_plan(settings, (int(height) // CELL, int(width) // CELL))
    except SettingsError as error:
        return f'<span class="demofusion-error">{html.escape(str(error))}</span>'
    if not plan.stages:
        return "no stage: the final size is that of the base picture"
    sizes = " → ".join(f"{w}x{h}" for h, w in [(n * CELL for n in plan.base), *(s.pixels for s in plan.stages)])
    base_calls, calls = (_calls(sampler, int(steps), share) for share in (1.0, settings.strength))
    evaluations = base_calls + calls * sum(stage.evaluations for stage in plan.stages)
    cost = 1 + (plan.cost - 1) * calls / base_calls
    most = "at most " if settings.dilated_threshold or settings.local_threshold else ""
    notes = "".join(f"<br>{html.escape(note)}" for note in plan.notes)
    return f"{sizes}, {most}{evaluations} model evaluations, {cost:.3g} times the base pass{notes}"


def _calls(sampler: str | None, steps: int, share: float) -> int:
    """Returns how often the sampler calls its model for a share of the steps."""
    config = sd_samplers.find_sampler_config(sampler)
    second_order = config is not None and config.options.get("second_order", False)
    return model_calls("", max(1, round(steps * share)), second_order)
