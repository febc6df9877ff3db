"""The live line of the panel: what a run will be, what it takes, and what stands in its way."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from lib_demofusion.host import options
from lib_demofusion.host.neighbours import refusals
from lib_demofusion.host.panel import limits
from lib_demofusion.host.panel.markup import NOT_POSSIBLE, error_html, problem_html, word
from lib_demofusion.host.panel.tab import TabValues, base_picture
from lib_demofusion.host.progress import timing
from lib_demofusion.host.sampling.webui_steps import calls_twice
from lib_demofusion.method.plan import CELL, NO_STAGE, Plan, make_plan
from lib_demofusion.progress.costs import run_costs
from lib_demofusion.settings.few_steps import needs_more_steps
from lib_demofusion.settings.fields import Settings
from lib_demofusion.settings.presets import BUILT_IN, Offers
from lib_demofusion.settings.reading import settings_from_args
from lib_demofusion.settings.spec import SettingsError

TIMES_BASE = "times as long as the base image"
ABOUT = "about"
SECONDS, MINUTES, HOURS = "seconds", "minutes", "hours"
HUGE = "more than 16384 pixels on a side: memory may not suffice, and few programs open such an image"
LONG = "this takes more than an hour"
NO_MEMORY = "the computer's free memory may not suffice for an image of this size"
NO_ROOM = "neither the free memory nor the disk may suffice to decode an image of this size"
TURBO_CHOSEN = "this looks like a few-step model: the values of the preset Turbo are used"
TURBO_BETTER = "so high a denoising strength needs more steps or a higher CFG scale; Turbo is for few-step models"
WORDS = (NOT_POSSIBLE, NO_STAGE, TIMES_BASE, ABOUT, SECONDS, MINUTES, HOURS, TURBO_CHOSEN)
WARNINGS = (HUGE, LONG, NO_MEMORY, NO_ROOM, TURBO_BETTER)

LARGEST_SIDE = 16384
"""About what browsers and WebP still show."""


def describe(args: Sequence[Any], tab: TabValues, known: Offers = BUILT_IN) -> str:
    """Returns the line as HTML, or what is wrong: sizes, time where it is known, cost; below, notes and warnings.

    `args` are those of the script, `tab` is what stands in the tab's own fields, and `known` what may be chosen besides
    what is built in. Never raises on what people type.
    """
    try:
        chosen = settings_from_args(args, offers=known)
        settings = options.suited(chosen, tab.step_count, tab.cfg_scale or 0, known)
        base, passes = base_picture(settings, tab)
        plan = make_plan(settings, base)
    except SettingsError as error:
        return error_html(error)
    two_calls = calls_twice(tab.sampling)
    costs = run_costs(plan, settings, tab.step_count, two_calls, passes)
    cells = costs.base + sum(costs.stages)
    seconds = timing.seconds(cells * tab.images * max(1, int(tab.batch_count or 1)))
    times_base = cells / run_costs(plan, settings, tab.step_count, two_calls).base
    notes = [*map(html.escape, plan.notes), *_few_steps(chosen, settings, tab), *_refusal(tab)]
    if not plan.stages:
        return "<br>".join([word(NO_STAGE), *notes])
    sizes = " → ".join(f"{w}x{h}" for h, w in [(n * CELL for n in plan.base), *(s.pixels for s in plan.stages)])
    time = [] if seconds is None else [duration(seconds)]
    summary = ", ".join([f"<b>{sizes}</b>", *time, f"{times_base:.3g} {word(TIMES_BASE)}"])
    return "<br>".join([summary, *notes, *_warnings(plan, tab, seconds)])


def duration(seconds: float) -> str:
    """Returns a rough time as HTML, in the largest unit of which there are at least two."""
    if seconds >= 2 * 3600:
        number, unit = round(seconds / 1800) / 2, HOURS
    elif seconds >= 2 * 60:
        number, unit = round(seconds / 60), MINUTES
    else:
        number, unit = max(1, round(seconds)) if seconds < 10 else 5 * round(seconds / 5), SECONDS
    return f"{word(ABOUT)} {number:g} {word(unit)}"


def _few_steps(chosen: Settings, settings: Settings, tab: TabValues) -> list[str]:
    """Returns what is said where the tab's values look like those for a few-step model."""
    if settings.preset != chosen.preset:
        return [word(TURBO_CHOSEN)]
    if needs_more_steps(settings, tab.step_count, tab.cfg_scale or 0):
        return [problem_html(word(TURBO_BETTER))]
    return []


def _refusal(tab: TabValues) -> list[str]:
    reason = refusals.reason(refusals.of_page(timing.loaded_model(), tab.script, tab.override_settings or ()))
    return [] if reason is None else [problem_html(word(refusals.REFUSED), word(reason))]


def _warnings(plan: Plan, tab: TabValues, seconds: float | None) -> list[str]:
    """Returns what to think of before a run that is possible, but long or large."""
    checks = {
        HUGE: max(plan.pixels) > LARGEST_SIDE,
        LONG: seconds is not None and seconds > 3600,
        NO_MEMORY: limits.lacks_memory(plan.pixels, tab.images),
        NO_ROOM: limits.lacks_room_to_decode(timing.loaded_model(), plan.stages[-1].size),
    }
    return [problem_html(word(text)) for text, holds in checks.items() if holds]
