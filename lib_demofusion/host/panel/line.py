"""The summary line of the panel: the sizes, the time and the cost of a run, and then notes and warnings."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

import torch
from modules import devices

from lib_demofusion.host.backends import families, host, selected_family
from lib_demofusion.host.common import options, user_presets
from lib_demofusion.host.common.memory import available_bytes
from lib_demofusion.host.images.vae import DEVICE_SHARE, choose_shelf, free_bytes
from lib_demofusion.host.integrations import refusals
from lib_demofusion.host.panel.markup import (
    ABOUT,
    HOURS,
    MINUTES,
    NOT_VALID,
    SECONDS,
    duration,
    error_html,
    problem_html,
    word,
)
from lib_demofusion.host.panel.tab import TabValues, base_image
from lib_demofusion.host.progress import timing
from lib_demofusion.host.progress.webui_state import calls_twice
from lib_demofusion.method.costs import run_costs
from lib_demofusion.method.plan import CELL, NO_STAGE, Plan, make_plan
from lib_demofusion.method.views import Size
from lib_demofusion.settings.errors import SettingsError
from lib_demofusion.settings.fields import Settings, parse_stages
from lib_demofusion.settings.presets import BUILT_IN, TURBO, Choices
from lib_demofusion.settings.reading import needs_more_steps, settings_from_args
from lib_demofusion.tiled_vae.layers import decoder_layers

TIMES_BASE = "times the time of the base image"
HUGE = "a side has more than 16384 pixels: the memory may be too small, and few programs open such an image"
LONG = "the run takes more than an hour"
NO_MEMORY = "the computer's free memory may be too small to hold finished images of this size"
NO_ROOM = "the free memory and the free disk space may be too small to decode an image of this size"
TURBO_CHOSEN = (
    "the number of steps and the CFG scale suggest a few-step model, so the panel switched to Turbo; "
    "to use another preset, click that preset"
)
TURBO_BETTER = (
    "this denoising strength needs more sampling steps; use more steps, a lower denoising strength, or the preset Turbo"
)
NOT_LOADED = "the expected time appears when this checkpoint is loaded and DemoFusion has run with it once"
OFF = "DemoFusion is off. Tick the box in the title of the panel to switch it on."
UNUSED_BY_STAGES = "'Upscale by' has no effect, because the last number in 'Stages' sets the final size:"
UNUSED_BY_SIZE = "'Upscale by' has no effect, because 'Resize width to' or 'Resize height to' is set"
WORDS = (NOT_VALID, NO_STAGE, TIMES_BASE, ABOUT, SECONDS, MINUTES, HOURS, TURBO_CHOSEN)
WARNINGS = (
    OFF,
    UNUSED_BY_STAGES,
    UNUSED_BY_SIZE,
    HUGE,
    LONG,
    NO_MEMORY,
    NO_ROOM,
    TURBO_BETTER,
    NOT_LOADED,
    *families.REFUSALS,
)

LARGEST_SIDE = 16384
"""Approximate maximum side in pixels of an image that browsers can show and WebP can store."""

BYTES_PER_PIXEL = 4 * 3 * 4
"""Bytes of the computer's memory for each pixel of an image in a decoded batch.

The webui has four copies of the batch in memory at once, each with three channels of 4 bytes (modules/processing.py,
process_images_inner).
"""


def describe(args: Sequence[Any], tab: TabValues, known: Choices = BUILT_IN) -> str:
    """Returns the summary line as HTML: the sizes, the estimated time (if known), the cost, and notes and warnings.

    The cost is the time of the run, divided by the time of one txt2img pass with the tab's steps at the size of the
    base image. If no stage can run, the line contains the reason instead. `args` are the script's arguments. `known`
    contains the user's presets and the webui's upscalers.
    """
    try:
        settings = settings_from_args(args, choices=known)
        base, passes = base_image(settings, tab)
        plan = make_plan(settings, base, selected_family().unit_cells)
    except SettingsError as error:
        return error_html(error)
    pending = pending_checkpoint()
    if refused := refusal(tab):
        return "<br>".join([*refused, *pending])
    two_calls = calls_twice(tab.sampling)
    costs = run_costs(plan, settings, tab.step_count, two_calls, passes)
    cells = costs.base + sum(costs.stages)
    seconds = timing.seconds(cells * tab.images * max(1, int(tab.batch_count or 1)))
    times_base = cells / run_costs(plan, settings, tab.step_count, two_calls).base
    notes = [*plan_notes(plan, settings), *few_steps_note(settings, tab), *pending]
    if not plan.stages:
        return "<br>".join([word(NO_STAGE), *notes])
    sizes = " → ".join(f"{w}x{h}" for h, w in [(n * CELL for n in plan.base), *(s.pixels for s in plan.stages)])
    time = [] if seconds is None else [duration(seconds)]
    summary = ", ".join([f"<b>{sizes}</b>", *time, f"{times_base:.3g} {word(TIMES_BASE)}"])
    return "<br>".join([summary, *notes, *size_warnings(plan, tab, seconds)])


def few_steps_note(settings: Settings, tab: TabValues) -> list[str]:
    """Returns a note that the panel has chosen Turbo, or a warning that the denoising strength needs more steps.

    Returns an empty list if neither applies, and always if the steps and the CFG scale are not typical of a few-step
    model.
    """
    request = tab.step_count, tab.cfg_scale or 0, selected_family().distilled
    default = options.default_preset(user_presets.known_choices())
    switched = options.automatic_preset(default, *request) == TURBO != default and not tab.preset_picked
    if settings.preset == TURBO and switched:
        return [word(TURBO_CHOSEN)]
    if needs_more_steps(settings, *request):
        return [problem_html(word(TURBO_BETTER))]
    return []


def plan_notes(plan: Plan, settings: Settings) -> list[str]:
    """Returns the plan's notes as HTML, and adds a note if "Upscale by" has no effect.

    If "Stages" ends at another scale than "Upscale by", the plan already contains such a note, unless "Upscale by" has
    its default value.
    """
    notes, scales = [html.escape(note) for note in plan.notes], parse_stages(settings.stages)
    if settings.width or settings.height:
        notes.append(word(UNUSED_BY_SIZE))
    elif scales and settings.scale == Settings.scale != scales[-1]:
        notes.append(f"{word(UNUSED_BY_STAGES)} {scales[-1]:g}")
    return notes


def refusal(tab: TabValues) -> list[str]:
    """Returns a message (HTML) if DemoFusion cannot run with the checkpoint or the tab's values, else an empty list."""
    now = refusals.of_page(timing.loaded_model(), tab.script, tab.override_settings or ())
    family = selected_family()
    if family.refusal is not None:
        return [problem_html(word(refusals.REFUSED), f"{html.escape(family.name)}:", word(family.refusal))]
    reason = refusals.reason(now)
    return [] if reason is None else [problem_html(word(refusals.REFUSED), word(reason))]


def pending_checkpoint() -> list[str]:
    """Returns a note if the chosen checkpoint is not loaded yet. Forge and Forge Neo load it when a job begins."""
    return [word(NOT_LOADED)] if host().is_pending() else []


def size_warnings(plan: Plan, tab: TabValues, seconds: float | None) -> list[str]:
    """Returns warnings about a long run, and about an image that may be too large for memory, disk or other programs.

    `seconds` is the expected time of the run, or None if it is unknown.
    """
    checks = {
        HUGE: max(plan.pixels) > LARGEST_SIDE,
        LONG: seconds is not None and seconds > 3600,
        NO_MEMORY: lacks_memory(plan.pixels, tab.images),
        NO_ROOM: lacks_room_to_decode(timing.loaded_model(), plan.stages[-1].size),
    }
    return [problem_html(word(text)) for text, holds in checks.items() if holds]


def lacks_memory(pixels: Size, batch: int) -> bool:
    """Returns whether a batch of images of size `pixels` (height, width) needs more than the computer's free memory."""
    return batch * BYTES_PER_PIXEL * math.prod(pixels) > available_bytes()


def lacks_room_to_decode(model: Any, size: Size) -> bool:
    """Returns whether the device, the computer's memory and the disk are all too small to decode a latent of `size`.

    `size` is in cells. Returns False if no model is loaded, or if its decoder cannot run in parts.
    """
    first_stage = getattr(model, "first_stage_model", None)
    try:
        layers = decoder_layers(getattr(first_stage, "decoder", None))
    except (AttributeError, ValueError):
        return False
    room = int(free_bytes(devices.device) * DEVICE_SHARE)
    try:
        choose_shelf(layers, size, torch.empty(0, dtype=devices.dtype_vae), room)
    except MemoryError:
        return True
    return False
