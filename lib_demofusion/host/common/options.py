"""The options of DemoFusion on the webui's settings page. These options apply to all jobs."""

from __future__ import annotations

from typing import Any

import gradio as gr
from modules import shared

from lib_demofusion.host.common import user_presets
from lib_demofusion.settings import presets, reading
from lib_demofusion.settings.errors import SettingsError
from lib_demofusion.settings.fields import Settings
from lib_demofusion.settings.presets import Choices
from lib_demofusion.tiled_vae.tiling import AUTOMATIC, MODES

SECTION = ("demofusion", "DemoFusion")

VIEW_BATCH = "demofusion_view_batch"
DECODE = "demofusion_decode_in_parts"
SAVE_STAGES = "demofusion_save_stages"
SHOW_BASE = "demofusion_show_base"
DEFAULT_PRESET = "demofusion_default_preset"
FEW_STEPS = "demofusion_few_steps"

LARGEST_VIEW_BATCH = 64

DEFAULT_GONE = f"{presets.DEFAULT_PRESET} is used, because the default preset in Settings no longer exists:"


def register() -> None:
    """Adds the options to the webui's settings page.

    The webui calls this function every time it builds the page. A repeated call does not change the user's values.
    """
    info = shared.OptionInfo
    limits = {"minimum": 0, "maximum": LARGEST_VIEW_BATCH, "step": 1}
    modes = {"choices": list(MODES)}
    for key, option in {
        VIEW_BATCH: info(0, "View batch size", gr.Slider, limits, section=SECTION).info(
            "how many tiles and dilated views the model evaluates at once; higher = more GPU memory; "
            "0 = automatic, depending on the free GPU memory"
        ),
        DECODE: info(AUTOMATIC, "Decode large images in parts", gr.Radio, modes, section=SECTION).info(
            "decoding in parts is slower, but needs less memory and gives the same result; "
            "automatic = in parts only if the whole image does not fit into memory"
        ),
        SAVE_STAGES: info(False, "Always save the image of every stage", section=SECTION),
        SHOW_BASE: info(True, "Show the base image in the gallery", section=SECTION).info(
            "after the final image, so that you can compare the two images; not in API requests, "
            "and not if you have chosen a script, such as X/Y/Z plot, in the list Script"
        ),
        DEFAULT_PRESET: info(
            presets.DEFAULT_PRESET,
            "Default preset",
            gr.Dropdown,
            lambda: {"choices": list(user_presets.known_choices().preset_names)},
            refresh=lambda: None,
            section=SECTION,
        )
        .info("selected when the page opens, and used for API requests without a preset")
        .needs_reload_ui(),
        FEW_STEPS: info(True, "Use the preset Turbo for few-step models", section=SECTION).info(
            "replaces the default preset, if that is Balanced or Fast, at 10 sampling steps or fewer and a CFG scale "
            "of 2 or less (any CFG scale with Flux.1 and similar models); never replaces a preset that you have "
            "clicked or changed"
        ),
    }.items():
        shared.opts.add_option(key, option)


def check() -> None:
    """Raises SettingsError if the view batch size or the decoding mode has an invalid value.

    The settings page prevents invalid values, but the API and config.json accept any value.
    """
    views, mode = value(VIEW_BATCH, 0), value(DECODE, AUTOMATIC)
    if isinstance(views, bool) or not isinstance(views, (int, float)) or views not in range(LARGEST_VIEW_BATCH + 1):
        raise SettingsError(f"setting {VIEW_BATCH}", views, f"a whole number from 0 to {LARGEST_VIEW_BATCH}")
    if mode not in MODES:
        raise SettingsError(f"setting {DECODE}", mode, "one of " + ", ".join(MODES))


def default_preset(known: Choices) -> str:
    """Returns the default preset from the settings page, or the built-in default if that preset no longer exists."""
    return presets.DEFAULT_PRESET if default_preset_gone(known) is not None else _chosen_preset()


def default_preset_gone(known: Choices) -> str | None:
    """Returns the name of the default preset from the settings page if that preset no longer exists, else None."""
    chosen = _chosen_preset()
    return None if chosen in known.preset_names else str(chosen)


def _chosen_preset() -> Any:
    return value(DEFAULT_PRESET, presets.DEFAULT_PRESET)


def automatic_preset(default: str, steps: int, cfg_scale: float, distilled: bool = False) -> str:
    """Returns the preset for a request that does not name a preset: usually `default`, but Turbo for a few-step model.

    Returns `default` if the option for few-step models is off, or if `default` is not in CHOSEN_FOR_MANY_STEPS.
    `settings.presets.looks_few_step` decides from the other three parameters whether the model is a few-step model.
    """
    if not value(FEW_STEPS, True):
        return default
    return presets.automatic_preset(default, steps, cfg_scale, distilled)


def with_automatic_preset(
    settings: Settings, steps: int, cfg_scale: float, known: Choices, distilled: bool = False
) -> Settings:
    """Returns settings with the values of the automatic preset (see `automatic_preset`).

    Returns `settings` unchanged if the user has changed a value of the preset, or if the option for few-step models is
    off.
    """
    if not value(FEW_STEPS, True):
        return settings
    return reading.with_automatic_preset(settings, steps, cfg_scale, known, distilled)


def value(key: str, default: Any) -> Any:
    """Returns the value of an option.

    Returns `default` if the option is not registered. This can happen if the webui runs only the API.
    """
    return getattr(shared.opts, key, default)
