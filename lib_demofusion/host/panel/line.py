"""The live line of the panel: what a run will be, what it takes, and what stands in its way.

The webui translates a text node where it knows the whole of it: every constant piece is therefore a node of its own.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from modules import sd_samplers

from lib_demofusion.host.neighbours import refusals as neighbours
from lib_demofusion.host.progress import timing
from lib_demofusion.method.plan import CELL, Plan, make_plan
from lib_demofusion.progress.costs import run_costs
from lib_demofusion.progress.forecast import even_timesteps, plan_evaluations, schedule_steps
from lib_demofusion.settings.fields import Settings, settings_from_args
from lib_demofusion.settings.spec import SettingsError

NOT_POSSIBLE = "is not possible; allowed:"
NO_STAGE = "no stage: the final size is that of the base picture"
EVALUATIONS = "model evaluations"
TIMES_BASE = "times the base pass"
ABOUT = "about"
SECONDS, MINUTES, HOURS = "seconds", "minutes", "hours"
HUGE = "more than 16384 pixels on a side: memory may not suffice, and few programs open such a picture"
WORDS = (NOT_POSSIBLE, NO_STAGE, EVALUATIONS, TIMES_BASE, ABOUT, SECONDS, MINUTES, HOURS, HUGE)

LARGEST_SIDE = 16384
"""What the panel's sliders offer, and about what browsers and WebP still show."""


@dataclass(frozen=True)
class TabValues:
    """What the line needs to know of the tab; these values stand until the tab's own are known."""

    width: float = 512
    height: float = 512
    steps: float = 20
    sampling: str | None = None
    cfg_scale: float = 7
    batch_size: float = 1
    batch_count: float = 1
    override_settings: Sequence[str] = ()
    """What stands in for settings in this tab alone, as `Tiling: True`; pasting fills it."""
    script: str = ""
    """Title of the chosen script."""


def describe(args: Sequence[Any], tab: TabValues) -> str:
    """Returns the line as HTML: stages, final size, model evaluations, cost and time, or what is wrong."""
    try:
        settings = settings_from_args(args)
        plan = make_plan(settings, (int(tab.height or 0) // CELL, int(tab.width or 0) // CELL))
    except SettingsError as error:
        return error_html(error)
    parts = [_summary(settings, plan, tab), *map(html.escape, plan.notes), *_warnings(plan, tab)]
    return "<br>".join(parts)


def word(text: str) -> str:
    """Returns a constant text as a node of its own."""
    return f"<span>{html.escape(text)}</span>"


def problem_html(*parts: str) -> str:
    """Returns pieces of HTML as something that is wrong."""
    return f'<span class="demofusion-error">{" ".join(parts)}</span>'


def error_html(error: SettingsError) -> str:
    """Returns the message of an error."""
    before, _, allowed = str(error).partition(NOT_POSSIBLE)
    return problem_html(html.escape(before.strip()), word(NOT_POSSIBLE), html.escape(allowed.strip()))


def _summary(settings: Settings, plan: Plan, tab: TabValues) -> str:
    if not plan.stages:
        return word(NO_STAGE)
    sizes = " → ".join(f"{w}x{h}" for h, w in [(n * CELL for n in plan.base), *(s.pixels for s in plan.stages)])
    steps, two_calls = max(1, int(tab.steps or 1)), _two_calls(tab)
    timesteps = even_timesteps(schedule_steps(steps, settings), settings.strength, two_calls)
    evaluations = len(even_timesteps(steps, two_calls=two_calls)) + plan_evaluations(plan, timesteps, settings)
    costs = run_costs(plan, settings, steps, two_calls)
    cells = costs.base + sum(costs.stages)
    # where a path is skipped below some weight, the true schedule decides when that is
    roughly = f"{word(ABOUT)} " if settings.dilated_threshold or settings.local_threshold else ""
    pieces = [sizes, f"{roughly}{evaluations} {word(EVALUATIONS)}", f"{cells / costs.base:.3g} {word(TIMES_BASE)}"]
    pictures = max(1, int(tab.batch_size or 1)) * max(1, int(tab.batch_count or 1))
    seconds = timing.seconds(cells * pictures, tab.cfg_scale != 1)
    return ", ".join([*pieces, *([] if seconds is None else [duration(seconds)])])


def duration(seconds: float) -> str:
    """Returns a rough time as HTML, in the largest unit of which there are at least two."""
    if seconds >= 2 * 3600:
        number, unit = round(seconds / 1800) / 2, HOURS
    elif seconds >= 2 * 60:
        number, unit = round(seconds / 60), MINUTES
    else:
        number, unit = max(1, round(seconds)) if seconds < 10 else 5 * round(seconds / 5), SECONDS
    return f"{word(ABOUT)} {number:g} {word(unit)}"


def _warnings(plan: Plan, tab: TabValues) -> list[str]:
    found = []
    reason = neighbours.reason(neighbours.of_page(timing.loaded_model(), tab.script, tab.override_settings or ()))
    if reason is not None:
        found.append(problem_html(word(neighbours.REFUSED), word(reason)))
    if max(plan.pixels) > LARGEST_SIDE:
        found.append(problem_html(word(HUGE)))
    return found


def _two_calls(tab: TabValues) -> bool:
    """Returns whether the sampler calls its model twice a step."""
    config = sd_samplers.find_sampler_config(tab.sampling)
    return config is not None and config.options.get("second_order", False)
