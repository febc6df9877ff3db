"""The live line of the panel: what a run will be, what it takes, and what stands in its way.

The webui translates a text node where it knows the whole of it: every constant piece is therefore a node of its own.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from lib_demofusion.host.neighbours import refusals as neighbours
from lib_demofusion.host.panel import limits
from lib_demofusion.host.panel.tab import TabValues, base_picture
from lib_demofusion.host.progress import timing
from lib_demofusion.host.progress.bar import calls_twice
from lib_demofusion.method.plan import CELL, NO_STAGE, Plan, make_plan
from lib_demofusion.progress.costs import run_costs
from lib_demofusion.settings.fields import SPECS
from lib_demofusion.settings.presets import BUILT_IN, Offers
from lib_demofusion.settings.reading import settings_from_args
from lib_demofusion.settings.spec import SettingsError

NOT_POSSIBLE = "is not possible; allowed:"
TIMES_BASE = "times as long as the base image"
ABOUT = "about"
SECONDS, MINUTES, HOURS = "seconds", "minutes", "hours"
HUGE = "more than 16384 pixels on a side: memory may not suffice, and few programs open such an image"
LONG = "this takes more than an hour"
NO_MEMORY = "the computer's free memory may not suffice for an image of this size"
NO_ROOM = "neither the free memory nor the disk may suffice to decode an image of this size"
WORDS = (NOT_POSSIBLE, NO_STAGE, TIMES_BASE, ABOUT, SECONDS, MINUTES, HOURS)
WARNINGS = (HUGE, LONG, NO_MEMORY, NO_ROOM)

LARGEST_SIDE = 16384
"""About what browsers and WebP still show."""


def describe(args: Sequence[Any], tab: TabValues, known: Offers = BUILT_IN) -> str:
    """Returns the line as HTML, or what is wrong: sizes, time where it is known, cost; below, notes and warnings.

    `args` are those of the script, `tab` is what stands in the tab's own fields, and `known` what may be chosen besides
    what is built in. Never raises on what people type.
    """
    try:
        settings = settings_from_args(args, offers=known)
        base, passes = base_picture(settings, tab)
        plan = make_plan(settings, base)
    except SettingsError as error:
        return error_html(error)
    two_calls = calls_twice(tab.sampling)
    costs = run_costs(plan, settings, tab.step_count, two_calls, passes)
    cells = costs.base + sum(costs.stages)
    seconds = timing.seconds(cells * tab.images * max(1, int(tab.batch_count or 1)))
    times_base = cells / run_costs(plan, settings, tab.step_count, two_calls).base
    notes = [*map(html.escape, plan.notes), *_refusal(tab)]
    if not plan.stages:
        return "<br>".join([word(NO_STAGE), *notes])
    sizes = " → ".join(f"{w}x{h}" for h, w in [(n * CELL for n in plan.base), *(s.pixels for s in plan.stages)])
    time = [] if seconds is None else [duration(seconds)]
    summary = ", ".join([f"<b>{sizes}</b>", *time, f"{times_base:.3g} {word(TIMES_BASE)}"])
    return "<br>".join([summary, *notes, *_warnings(plan, tab, seconds)])


def word(text: str) -> str:
    """Returns a constant text as a node of its own."""
    return f"<span>{html.escape(text)}</span>"


def problem_html(*parts: str) -> str:
    """Returns pieces of HTML as something that is wrong."""
    return f'<span class="demofusion-error">{" ".join(parts)}</span>'


def error_html(error: SettingsError) -> str:
    """Returns the message of an error, behind the label of its field where that has another name in the panel."""
    before, _, allowed = str(error).partition(NOT_POSSIBLE)
    label = SPECS[error.name].label if error.name in SPECS else ""
    same = label.lower() == error.name.replace("_", " ")
    field = [f"{word(label)}:"] if label and not same else []
    return problem_html(*field, html.escape(before.strip()), word(NOT_POSSIBLE), html.escape(allowed.strip()))


def duration(seconds: float) -> str:
    """Returns a rough time as HTML, in the largest unit of which there are at least two."""
    if seconds >= 2 * 3600:
        number, unit = round(seconds / 1800) / 2, HOURS
    elif seconds >= 2 * 60:
        number, unit = round(seconds / 60), MINUTES
    else:
        number, unit = max(1, round(seconds)) if seconds < 10 else 5 * round(seconds / 5), SECONDS
    return f"{word(ABOUT)} {number:g} {word(unit)}"


def _refusal(tab: TabValues) -> list[str]:
    reason = neighbours.reason(neighbours.of_page(timing.loaded_model(), tab.script, tab.override_settings or ()))
    return [] if reason is None else [problem_html(word(neighbours.REFUSED), word(reason))]


def _warnings(plan: Plan, tab: TabValues, seconds: float | None) -> list[str]:
    """Returns what to think of before a run that is possible, but long or large."""
    checks = {
        HUGE: max(plan.pixels) > LARGEST_SIDE,
        LONG: seconds is not None and seconds > 3600,
        NO_MEMORY: limits.lacks_memory(plan.pixels, tab.images),
        NO_ROOM: limits.lacks_room_to_decode(timing.loaded_model(), plan.stages[-1].size),
    }
    return [problem_html(word(text)) for text, holds in checks.items() if holds]
