"""Stores the user's presets in a JSON file in the webui's data directory. Users can edit this file by hand.

Also lists the choices that depend on the installation: the user's presets and the webui's upscalers. Nothing is cached.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from threading import Lock
from typing import Any

from modules import shared

from lib_demofusion.host.common import storage
from lib_demofusion.settings.errors import SettingsError
from lib_demofusion.settings.presets import PRESETS, Choices
from lib_demofusion.settings.reading import CHANGED, parse_preset

FILE = "demofusion-presets.json"
MAX_NAME = 60

BUILT_IN = "You cannot replace or delete a built-in preset"
NO_NAME = "Type a name for the preset"
BAD_NAME = "Use a name of at most 60 printable characters that does not end with (changed)"
NOT_SAVED = "This preset no longer exists"
REPAIR = "Repair or delete the file demofusion-presets.json first"
NOT_WRITTEN = "The change to your presets was not saved"
SENTENCES = (BUILT_IN, NO_NAME, BAD_NAME, NOT_SAVED, REPAIR, NOT_WRITTEN)

_lock = Lock()


class PresetError(Exception):
    """A preset cannot be saved or deleted.

    `sentence` is one of SENTENCES, which have translations. `detail`, such as the name of the preset, has no
    translation.
    """

    def __init__(self, sentence: str, detail: str = ""):
        super().__init__(f"{sentence}: {detail}" if detail else sentence)
        self.sentence = sentence
        self.detail = detail


def read(upscalers: tuple[str, ...]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Returns the user's valid presets by their names, and error messages.

    `upscalers` are the names of the webui's upscalers. A preset with any other upscaler, except the built-in upscalers,
    is invalid. There is one message for each invalid preset. If the file cannot be read, there is one message for the
    file.
    """
    try:
        return _checked(storage.read(FILE), upscalers)
    except storage.StorageError as error:
        return {}, [str(error)]


def _checked(stored: Mapping[str, Any], upscalers: tuple[str, ...]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    good: dict[str, dict[str, Any]] = {}
    problems = []
    for name, values in stored.items():
        try:
            _check_name(name)
            if not isinstance(values, dict):
                raise SettingsError(name, values, "a JSON object of fields")
            good[name] = parse_preset(values, Choices(upscalers=upscalers))
        except (PresetError, SettingsError) as error:
            problems.append(f"{FILE}, {name[:MAX_NAME]!r}: {error}")
    return good, problems


def save(name: str, values: Mapping[str, Any], choices: Choices) -> str:
    """Saves a preset. Returns the name without spaces at its ends.

    Raises PresetError if the name is not allowed or the file cannot be read or written. Raises SettingsError if a value
    is invalid.
    """
    name = name.strip()
    _check_name(name)
    # all fields are stored, so that the preset stays the same if a later version has other defaults
    checked = parse_preset(values, choices)
    with _lock:
        _write({**_stored(), name: checked})
    return name


def delete(name: str) -> None:
    """Deletes a preset.

    Raises PresetError if the preset does not exist or is built in, or if the file cannot be read or written.
    """
    _check_name(name)
    with _lock:
        stored = _stored()
        if name not in stored:
            raise PresetError(NOT_SAVED, name)
        del stored[name]
        _write(stored)


def _check_name(name: str) -> None:
    if not name:
        raise PresetError(NO_NAME)
    if name.casefold() in {built_in.casefold() for built_in in PRESETS}:
        raise PresetError(BUILT_IN, name)
    if len(name) > MAX_NAME or not name.isprintable() or name != name.strip() or name.endswith(CHANGED):
        raise PresetError(BAD_NAME)


def _stored() -> dict[str, Any]:
    """Returns all presets in the file, including invalid presets, so that saving a preset does not delete them.

    Raises PresetError if the file cannot be read.
    """
    try:
        return storage.read(FILE)
    except storage.StorageError as error:
        raise PresetError(REPAIR, str(error)) from error


def _write(stored: dict[str, Any]) -> None:
    try:
        storage.write(FILE, stored)
    except storage.StorageError as error:
        raise PresetError(NOT_WRITTEN, str(error)) from error


def known_choices() -> Choices:
    """Returns the user's presets and the webui's upscalers.

    Call this function whenever the choices are needed, and not while the webui loads its scripts, because the webui
    loads its upscalers later.
    """
    return choices_and_problems()[0]


def choices_and_problems() -> tuple[Choices, list[str]]:
    """Returns the user's presets and the webui's upscalers, and the error messages from `read`."""
    upscalers = choices_of_webui()
    presets, problems = read(upscalers.upscalers)
    return replace(upscalers, presets=presets), problems


def choices_of_webui() -> Choices:
    """Returns the webui's upscalers without the user's presets. Does not read a file."""
    return Choices(upscalers=tuple(upscaler.name for upscaler in shared.sd_upscalers if upscaler.name != "None"))
