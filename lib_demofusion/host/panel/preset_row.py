"""The row of the panel in which presets are chosen, saved and deleted, in step in both tabs."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.context import Context
from modules import shared
from modules.ui_components import FormRow, ToolButton

from lib_demofusion.host.panel import presets
from lib_demofusion.host.panel.line import error_html, problem_html, word
from lib_demofusion.settings.fields import PRESET_FIELDS, PRESETS, SPECS, changed_fields, preset_names, preset_values
from lib_demofusion.settings.spec import SettingsError

NAME_LABEL = "Preset name"
NAME_INFO = "to save under; empty = the chosen one"
NAME_PLACEHOLDER = "my preset"
SAVE, DELETE = "\U0001f4be", "\U0001f5d1\ufe0f"
SAVE_TIP, DELETE_TIP = "Save the preset", "Delete the chosen preset"
SAVED, DELETED = "Saved:", "Deleted:"
CONFIRM = "Delete this preset?"
CHANGED = "changed:"
WORDS = (NAME_LABEL, NAME_INFO, NAME_PLACEHOLDER, SAVE_TIP, DELETE_TIP, SAVED, DELETED, CONFIRM, CHANGED)


@dataclass
class PresetRow:
    """The row's components in one tab, and the controls that a preset sets."""

    dropdown: Any
    changed: Any
    """Says what no longer has the preset's value."""
    name: Any
    save: Any
    delete: Any
    message: Any
    controls: list[Any]


def build(script: Any, dropdown: Callable[[], Any], problems: list[str]) -> PresetRow:
    """Builds the row, below which the problems of the file of presets stand; the controls are filled in later.

    `dropdown` makes the control of the field `preset`.
    """
    with FormRow(elem_id=script.elem_id("preset_row"), elem_classes="demofusion-presets"):
        chosen = dropdown()
        name = gr.Textbox(
            label=NAME_LABEL,
            info=NAME_INFO,
            placeholder=NAME_PLACEHOLDER,
            max_lines=1,
            elem_id=script.elem_id("preset_name"),
            visible=may_write(),
        )
        save = _button(SAVE, SAVE_TIP, script.elem_id("preset_save"))
        delete = _button(DELETE, DELETE_TIP, script.elem_id("preset_delete"))
    changed = gr.HTML(visible=False, elem_id=script.elem_id("preset_changed"))
    text = "<br>".join(problem_html(html.escape(problem)) for problem in problems)
    message = gr.HTML(value=text, visible=bool(text), elem_id=script.elem_id("preset_message"))
    for component in (name, save, delete):
        # the webui would write them into ui-config.json
        component.do_not_save_to_config = True
    return PresetRow(chosen, changed, name, save, delete, message, [])


def _button(symbol: str, tip: str, elem_id: str) -> Any:
    return ToolButton(value=symbol, tooltip=tip, elem_id=elem_id, visible=may_write())


def may_write() -> bool:
    """Returns whether users of the page may write files; the webui's flags for shared servers say no."""
    flags = ("hide_ui_dir_config", "freeze_settings", "share")
    return not any(getattr(shared.cmd_opts, flag, False) for flag in flags)


def connect(rows: list[PresetRow]) -> None:
    """Connects the rows of all tabs with one another: any of them changes the choices of all."""
    for row in rows:
        for component in (row.dropdown, *row.controls):
            component.change(_changed, [row.dropdown, *row.controls], [row.changed], show_progress=False, queue=False)
        row.dropdown.input(_apply, [row.dropdown], row.controls, show_progress=False, queue=False)
        if may_write():
            _connect_buttons([row, *(other for other in rows if other is not row)])
    dropdowns = [row.dropdown for row in rows]
    # a page that is loaded again would show the choices that it was built with
    Context.root_block.load(
        lambda: [gr.update(choices=list(preset_names())) for _ in dropdowns],
        None,
        dropdowns,
        show_progress=False,
        queue=False,
    )


def _connect_buttons(rows: list[PresetRow]) -> None:
    """Connects save, Enter in the name and delete of the first of the rows, which are those of all tabs."""
    row, dropdowns = rows[0], [row.dropdown for row in rows]

    def save(name: str, chosen: str, *values: Any) -> list[Any]:
        try:
            saved = presets.save((name or "").strip() or chosen or "", dict(zip(PRESET_FIELDS, values)))
        except (presets.PresetError, SettingsError) as error:
            return [*(gr.update() for _ in dropdowns), gr.update(), gr.update(), _shown(_problem(error))]
        names = list(preset_names())
        others = [gr.update(choices=names) for _ in dropdowns[1:]]
        message = _shown(f"{word(SAVED)} {html.escape(saved)}")
        # saved under the name that is chosen already, no control changes
        return [gr.update(choices=names, value=saved), *others, _changed(saved, *values), "", message]

    options = {"show_progress": False, "queue": False}
    outputs = [*dropdowns, row.changed, row.name, row.message]
    for event in (row.save.click, row.name.submit):
        event(save, [row.name, row.dropdown, *row.controls], outputs, **options)
    confirm = f"(...chosen) => demofusionConfirmDelete(chosen, {json.dumps([list(PRESETS), CONFIRM])})"
    controls = [control for one in rows for control in one.controls]
    row.delete.click(_delete, dropdowns, [*dropdowns, *controls, row.message], _js=confirm, **options)


def _delete(*chosen: str) -> list[Any]:
    """Deletes the first of the tabs' presets; where it was chosen, the opening one takes its place."""
    unchanged = [gr.update() for name in chosen for _ in (name, *PRESET_FIELDS)]
    if not chosen[0]:
        # not confirmed
        return [*unchanged, gr.update()]
    try:
        presets.delete(chosen[0])
    except presets.PresetError as error:
        return [*unchanged, _shown(_problem(error))]
    names, opening = list(preset_names()), presets.default()
    left = [name if name in names else opening for name in chosen]
    return [
        *(gr.update(choices=names, value=name) for name in left),
        *(update for before, name in zip(chosen, left) for update in _apply(name if name != before else "")),
        _shown(f"{word(DELETED)} {html.escape(chosen[0])}"),
    ]


def _changed(preset: str, *values: Any) -> Any:
    """Returns what is said of the controls that no longer have the preset's values; nothing where all have."""
    names = changed_fields(preset, dict(zip(PRESET_FIELDS, values)))
    labels = ", ".join(word(SPECS[name].label) for name in names)
    return gr.update(value=f"{word(CHANGED)} {labels}", visible=bool(names))


def _apply(preset: str) -> list[Any]:
    """Returns the controls' values of a preset; nothing changes for one that somebody has deleted meanwhile."""
    if preset not in preset_names():
        return [gr.update() for _ in PRESET_FIELDS]
    values = preset_values(preset)
    return [gr.update(value=values[name]) for name in PRESET_FIELDS]


def _problem(error: presets.PresetError | SettingsError) -> str:
    if isinstance(error, SettingsError):
        return error_html(error)
    detail = [html.escape(error.detail)] if error.detail else []
    return problem_html(word(error.sentence), *detail)


def _shown(text: str) -> Any:
    return gr.update(value=text, visible=True)
