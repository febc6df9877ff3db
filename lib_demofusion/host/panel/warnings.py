"""What stands below the live line: what was chosen by itself, what refuses a run, and what to think of first."""

from __future__ import annotations

import html

from lib_demofusion.host.backends import families, host
from lib_demofusion.host.neighbours import refusals
from lib_demofusion.host.panel import limits
from lib_demofusion.host.panel.markup import problem_html, word
from lib_demofusion.host.panel.tab import TabValues
from lib_demofusion.host.progress import timing
from lib_demofusion.method.plan import Plan
from lib_demofusion.settings.few_steps import needs_more_steps
from lib_demofusion.settings.fields import Settings

HUGE = "more than 16384 pixels on a side: memory may not suffice, and few programs open such an image"
LONG = "this takes more than an hour"
NO_MEMORY = "the computer's free memory may not suffice for an image of this size"
NO_ROOM = "neither the free memory nor the disk may suffice to decode an image of this size"
TURBO_CHOSEN = "this looks like a few-step model: the values of the preset Turbo are used"
TURBO_BETTER = "so high a denoising strength needs more steps or a higher CFG scale; Turbo is for few-step models"
NOT_LOADED = "the time is not known until the checkpoint is loaded"
WARNINGS = (HUGE, LONG, NO_MEMORY, NO_ROOM, TURBO_BETTER, NOT_LOADED, *families.REFUSALS)

LARGEST_SIDE = 16384
"""About what browsers and WebP still show."""


def of_few_steps(chosen: Settings, settings: Settings, tab: TabValues) -> list[str]:
    """Returns the sentence for values of the tab that look like those for a few-step model, or none."""
    if settings.preset != chosen.preset:
        return [word(TURBO_CHOSEN)]
    distilled = host().family(timing.loaded_model()).distilled
    if needs_more_steps(settings, tab.step_count, tab.cfg_scale or 0, distilled):
        return [problem_html(word(TURBO_BETTER))]
    return []


def of_refusal(tab: TabValues) -> list[str]:
    """Returns why the loaded checkpoint, or something else on the tab, makes a run impossible.

    Forge and Forge Neo load the chosen checkpoint only when a job begins; before that it is said that nothing is known.
    """
    now = refusals.of_page(timing.loaded_model(), tab.script, tab.override_settings or ())
    family = host().family(now.model)
    if family.refusal is not None:
        return [problem_html(word(refusals.REFUSED), f"{html.escape(family.name)}:", word(family.refusal))]
    reason = refusals.reason(now)
    pending = [word(NOT_LOADED)] if host().is_pending() else []
    return pending if reason is None else [problem_html(word(refusals.REFUSED), word(reason)), *pending]


def of_size(plan: Plan, tab: TabValues, seconds: float | None) -> list[str]:
    """Returns what to think of before a run that is possible, but long or large."""
    checks = {
        HUGE: max(plan.pixels) > LARGEST_SIDE,
        LONG: seconds is not None and seconds > 3600,
        NO_MEMORY: limits.lacks_memory(plan.pixels, tab.images),
        NO_ROOM: limits.lacks_room_to_decode(timing.loaded_model(), plan.stages[-1].size),
    }
    return [problem_html(word(text)) for text, holds in checks.items() if holds]
