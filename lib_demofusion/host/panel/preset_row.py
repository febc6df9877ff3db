"""The controls for presets. Users choose a preset at the top of the panel, and save and delete presets in "Advanced".

The panels of txt2img and img2img always offer the same presets.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.context import Context
from modules import shared
from modules.ui_components import FormRow, ToolButton

from lib_demofusion.host.backends import selected_family
from lib_demofusion.host.common import options, user_presets
from lib_demofusion.host.panel.markup import error_html, problem_html, word
from lib_demofusion.host.panel.tab import TabValues
from lib_demofusion.settings.errors import SettingsError
from lib_demofusion.settings.fields import PRESET_FIELDS, SPECS
from lib_demofusion.settings.presets import PRESETS, TURBO, Choices
from lib_demofusion.settings.reading import changed_fields, preset_values

NAME_LABEL = "Save as preset"
NAME_INFO = "if you type no name, the chosen preset is replaced, unless it is built in"
NAME_PLACEHOLDER = "name of the preset"
SAVE, DELETE, BACK = "\U0001f4be", "\U0001f5d1\ufe0f", "\u21a9\ufe0f"
SAVE_TIP, DELETE_TIP = "Save the values for quality and speed as a preset", "Delete the chosen preset"
BACK_TIP = "Reset to the preset's values"
SAVED, DELETED = "Saved:", "Deleted:"
CONFIRM = "Delete this preset?"
CHANGED = "changed:"
WORDS = (NAME_LABEL, NAME_INFO, NAME_PLACEHOLDER, SAVE_TIP, DELETE_TIP, BACK_TIP, SAVED, DELETED, CONFIRM, CHANGED)

QUIET = {"show_progress": "hidden", "queue": False}
"""Arguments of an event that shows no progress on the page. In gradio 3, events of the page ignore the value False."""


@dataclass(frozen=True)
class Choice:
    """The components with which the user chooses a preset."""

    preset: Any
    changed: Any
    """HTML with the list of fields that differ from the preset."""
    back: Any
    """The button that sets the controls to the preset's values. It is hidden if no field differs."""
    picked: Any
    """A hidden checkbox. Clicking a preset or `back`, or pasting the infotext of a DemoFusion image, ticks it.

    As long as the checkbox is not ticked, the panel can replace the preset automatically.
    """

    @property
    def marks(self) -> list[Any]:
        """The components that the function `marks` updates. They show that fields differ from the preset."""
        return [self.changed, self.back]


@dataclass(frozen=True)
class Saving:
    """The components with which the user saves and deletes presets."""

    name: Any
    save: Any
    delete: Any
    message: Any


@dataclass(frozen=True)
class PresetRow:
    """All components for presets in one tab, and the controls of the fields that a preset sets."""

    choice: Choice
    saving: Saving
    controls: list[Any]


def build_choice(script: Any, preset: Callable[[], Any]) -> Choice:
    """Builds the row for choosing a preset. `preset` creates the radio buttons of the field `preset`."""
    with FormRow(elem_id=script.elem_id("preset_row"), elem_classes="demofusion-presets"):
        chosen = preset()
        back = _button(BACK, BACK_TIP, script.elem_id("preset_back"), visible=False)
    changed = gr.HTML(visible=False, elem_id=script.elem_id("preset_changed"))
    picked = gr.Checkbox(False, label="", visible=False, elem_id=script.elem_id("preset_picked"))
    picked.do_not_save_to_config = True
    return Choice(chosen, changed, back, picked)


def build_saving(script: Any, messages: list[str]) -> Saving:
    """Builds the row for saving and deleting presets.

    Below the row are `messages`, pieces of HTML about problems with the preset file and with the default preset. Below
    them is an empty component for messages about saving and deleting.
    """
    with FormRow(elem_id=script.elem_id("preset_saving"), elem_classes="demofusion-saving"):
        name = gr.Textbox(
            label=NAME_LABEL,
            info=NAME_INFO,
            placeholder=NAME_PLACEHOLDER,
            max_lines=1,
            elem_id=script.elem_id("preset_name"),
            visible=may_write(),
        )
        save = _button(SAVE, SAVE_TIP, script.elem_id("preset_save"), may_write())
        delete = _button(DELETE, DELETE_TIP, script.elem_id("preset_delete"), may_write())
    text = "<br>".join(messages)
    gr.HTML(value=text, visible=bool(text), elem_id=script.elem_id("preset_problems"))
    message = gr.HTML(visible=False, elem_id=script.elem_id("preset_message"))
    name.do_not_save_to_config = True
    return Saving(name, save, delete, message)


def _button(symbol: str, tip: str, elem_id: str, visible: bool) -> Any:
    button = ToolButton(value=symbol, tooltip=tip, elem_id=elem_id, visible=visible)
    # the webui must not write this button into ui-config.json
    button.do_not_save_to_config = True
    return button


def may_write() -> bool:
    """Returns whether users of the page may save and delete presets. Each of the flags below forbids this."""
    flags = ("hide_ui_dir_config", "freeze_settings", "share")
    return not any(getattr(shared.cmd_opts, flag, False) for flag in flags)


def connect(rows: list[PresetRow]) -> None:
    """Connects the events of the rows. Saving or deleting a preset in one tab updates the choices in both tabs."""
    for row in rows:
        outputs = [*row.controls, row.choice.picked]
        row.choice.preset.input(_apply, [row.choice.preset], outputs, **QUIET)
        row.choice.back.click(_apply, [row.choice.preset], outputs, **QUIET)
        if may_write():
            _connect_buttons([row, *(other for other in rows if other is not row)])
            # the message about saving or deleting disappears when the user next changes one of these components
            for component in (row.choice.preset, *row.controls, row.saving.name):
                component.input(None, None, [row.saving.message], _js="() => ''", **QUIET)
            row.choice.back.click(None, None, [row.saving.message], _js="() => ''", **QUIET)
    chosen = [row.choice.preset for row in rows]
    # the webui builds the page once. When a user reloads the page, it must show the presets that exist now
    Context.root_block.load(
        lambda: [gr.update(choices=list(user_presets.known_choices().preset_names)) for _ in chosen],
        None,
        chosen,
        **QUIET,
    )


def _connect_buttons(rows: list[PresetRow]) -> None:
    """Connects the buttons of `rows[0]`, and the Enter key in the name field of this row.

    `rows` contains the rows of both tabs, because saving or deleting a preset updates both.
    """
    row, chosen = rows[0], [row.choice.preset for row in rows]
    saving = row.saving
    outputs = [*chosen, *row.choice.marks, saving.name, saving.message]
    for event in (saving.save.click, saving.name.submit):
        event(_save, [saving.name, row.choice.preset, *row.controls], outputs, **QUIET)
    confirm = f"(...chosen) => demofusionConfirmDelete(chosen, {json.dumps([list(PRESETS), CONFIRM])})"
    controls = [control for one in rows for control in one.controls]
    saving.delete.click(_delete, chosen, [*chosen, *controls, saving.message], _js=confirm, **QUIET)


def _save(name: str, chosen: str, *values: Any) -> list[Any]:
    """Saves the values of a tab's controls as the preset `name`, or if `name` is empty, as the preset `chosen`.

    Returns updates of: the choices in this tab, the choices in the other tab, the marks, the name, and the message.
    """
    own = dict(zip(PRESET_FIELDS, values))
    try:
        saved = user_presets.save((name or "").strip() or chosen or "", own, user_presets.known_choices())
    except (user_presets.PresetError, SettingsError) as error:
        return [*(gr.update() for _ in range(5)), _shown(_problem(error))]
    known = user_presets.known_choices()
    names = list(known.preset_names)
    message = _shown(f"{word(SAVED)} {html.escape(saved)}")
    # if the user replaces the chosen preset, no event of a control updates the marks, so this function does
    marked = marks({**own, "preset": saved}, known)
    return [gr.update(choices=names, value=saved), gr.update(choices=names), *marked, "", message]


def _delete(*chosen: str) -> list[Any]:
    """Deletes the preset `chosen[0]`. `chosen` are the chosen presets of both tabs, this tab first.

    Every tab in which the deleted preset was chosen gets the default preset. Returns updates of the choices in both
    tabs, of the controls in both tabs, and of the message.
    """
    unchanged = [gr.update() for name in chosen for _ in (name, *PRESET_FIELDS)]
    if not chosen[0]:
        # the page sends an empty name if the user has not confirmed the deletion
        return [*unchanged, gr.update()]
    try:
        user_presets.delete(chosen[0])
    except user_presets.PresetError as error:
        return [*unchanged, _shown(_problem(error))]
    known = user_presets.known_choices()
    names, opening = list(known.preset_names), options.default_preset(known)
    left = [name if name in names else opening for name in chosen]
    return [
        *(gr.update(choices=names, value=name) for name in left),
        *(update for before, name in zip(chosen, left) for update in _values(name if name != before else "", known)),
        _shown(f"{word(DELETED)} {html.escape(chosen[0])}"),
    ]


def marks(values: Mapping[str, Any], known: Choices) -> list[Any]:
    """Returns updates of the list of fields that differ from the preset, and of the reset button.

    `values` are the panel's values by field. If no field differs, both components are hidden.
    """
    names = changed_fields(str(values["preset"]), values, known)
    labels = ", ".join(word(SPECS[name].label) for name in names)
    changed = bool(names)
    return [gr.update(value=f"{word(CHANGED)} {labels}", visible=changed), gr.update(visible=changed)]


def _apply(preset: str) -> list[Any]:
    """Returns updates that set the controls to the values of the clicked preset, and True for `Choice.picked`."""
    return [*_values(preset, user_presets.known_choices()), True]


def automatic_preset(values: Mapping[str, Any], tab: TabValues) -> list[Any]:
    """Returns updates of the preset and of the controls that it sets.

    `options.automatic_preset` chooses the preset: Turbo if the tab's steps and CFG scale are typical of a few-step
    model, else the default preset. Nothing changes if the user has picked a preset (see `Choice.picked`) or changed one
    of its values. `values` are the panel's values by field.
    """
    known = user_presets.known_choices()
    shown, default = str(values["preset"]), options.default_preset(known)
    wanted = options.automatic_preset(default, tab.step_count, tab.cfg_scale or 0, selected_family().distilled)
    own = shown not in (default, TURBO) or changed_fields(shown, values, known)
    if tab.preset_picked or shown == wanted or own:
        return [gr.update() for _ in ("preset", *PRESET_FIELDS)]
    return [gr.update(value=wanted), *_values(wanted, known)]


def _values(preset: str, known: Choices) -> list[Any]:
    """Returns updates that set the controls to a preset's values, or change nothing if the preset does not exist."""
    if preset not in known.preset_names:
        return [gr.update() for _ in PRESET_FIELDS]
    values = preset_values(preset, known)
    return [gr.update(value=values[name]) for name in PRESET_FIELDS]


def _problem(error: user_presets.PresetError | SettingsError) -> str:
    if isinstance(error, SettingsError):
        return error_html(error)
    if not error.detail:
        return problem_html(word(error.sentence))
    return problem_html(f"{word(error.sentence)}:", html.escape(error.detail))


def _shown(text: str) -> Any:
    return gr.update(value=text, visible=True)
