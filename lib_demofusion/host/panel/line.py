"""The live line of the panel: what a run will be, what it takes, and what stands in its way.

The webui translates a text node where it knows the whole of it: every constant piece is therefore a node of its own.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from modules import sd_samplers

from lib_demofusion.host.neighbours import refusals as neighbours
from lib_demofusion.host.panel import limits
from lib_demofusion.host.progress import timing
from lib_demofusion.method.plan import CELL, NO_STAGE, Plan, make_plan
from lib_demofusion.method.views import Size
from lib_demofusion.progress.costs import Pass, img2img_steps, passes_cells, run_costs
from lib_demofusion.progress.forecast import even_timesteps, plan_evaluations, schedule_steps
from lib_demofusion.settings.fields import Settings, settings_from_args
from lib_demofusion.settings.spec import SettingsError

NOT_POSSIBLE = "is not possible; allowed:"
EVALUATIONS = "model evaluations"
TIMES_BASE = "times the base pass"
ABOUT = "about"
SECONDS, MINUTES, HOURS = "seconds", "minutes", "hours"
HUGE = "more than 16384 pixels on a side: memory may not suffice, and few programs open such a picture"
LONG = "this takes more than an hour"
NO_MEMORY = "the computer's free memory may not suffice for a picture of this size"
NO_ROOM = "neither the free memory nor the disk may suffice to decode a picture of this size"
WORDS = (NOT_POSSIBLE, NO_STAGE, EVALUATIONS, TIMES_BASE, ABOUT, SECONDS, MINUTES, HOURS)
WARNINGS = (HUGE, LONG, NO_MEMORY, NO_ROOM)

LARGEST_SIDE = 16384
"""What the panel's sliders offer, and about what browsers and WebP still show."""


@dataclass(frozen=True)
class TabValues:
    """What the line needs to know of the tab, by its components' ids; these stand until its own are known."""

    width: float = 512
    height: float = 512
    steps: float = 20
    sampling: str | None = None
    cfg_scale: float = 7
    batch_size: float = 1
    batch_count: float = 1
    denoising_strength: float = 0.75
    hr_checkbox: bool = False
    """Whether hires fix is on; the four below are its own."""
    hires_steps: float = 0
    hr_scale: float = 2
    hr_resize_x: float = 0
    hr_resize_y: float = 0
    img2img: bool = False
    resize_by: bool = False
    """Whether img2img's size is that of the picture times `scale`."""
    scale: float = 1
    scale_resolution_preview: str = ""
    """Where the webui says the picture's size, `... 512x768 ... to ...`; without a picture it holds none."""
    override_settings: Sequence[str] = ()
    """What stands in for settings in this tab alone, as `Tiling: True`; pasting fills it."""
    script: str = ""
    """Title of the chosen script."""


def describe(args: Sequence[Any], tab: TabValues) -> str:
    """Returns the line as HTML: stages, final size, model evaluations, cost and time, or what is wrong."""
    try:
        settings = settings_from_args(args)
        base, passes = base_picture(settings, tab)
        plan = make_plan(settings, base)
    except SettingsError as error:
        return error_html(error)
    if not plan.stages:
        return "<br>".join([word(NO_STAGE), *map(html.escape, plan.notes), *_refusal(tab)])
    summary, seconds = _summary(settings, plan, tab, passes)
    warnings = [problem_html(word(text)) for text in _warnings(plan, tab, seconds)]
    return "<br>".join([summary, *map(html.escape, plan.notes), *_refusal(tab), *warnings])


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


def _summary(settings: Settings, plan: Plan, tab: TabValues, passes: Sequence[Pass]) -> tuple[str, float | None]:
    """Returns sizes, evaluations, cost and time of a run in words, and the time in seconds where it is known."""
    sizes = " → ".join(f"{w}x{h}" for h, w in [(n * CELL for n in plan.base), *(s.pixels for s in plan.stages)])
    steps, two_calls = _steps(tab), _two_calls(tab)
    timesteps = even_timesteps(schedule_steps(steps, settings), settings.strength, two_calls)
    of_base = sum(len(even_timesteps(number, two_calls=two_calls)) for number, _ in passes)
    evaluations = of_base + plan_evaluations(plan, timesteps, settings)
    costs = run_costs(plan, settings, steps, two_calls, passes)
    cells = costs.base + sum(costs.stages)
    times_base = cells / passes_cells([(steps, plan.base)], two_calls)
    # where a path is skipped below some weight, the true schedule decides when that is
    roughly = f"{word(ABOUT)} " if settings.dilated_threshold or settings.local_threshold else ""
    pieces = [sizes, f"{roughly}{evaluations} {word(EVALUATIONS)}", f"{times_base:.3g} {word(TIMES_BASE)}"]
    pictures = _batch(tab) * max(1, int(tab.batch_count or 1))
    seconds = timing.seconds(cells * pictures, tab.cfg_scale != 1)
    return ", ".join([*pieces, *([] if seconds is None else [duration(seconds)])]), seconds


def base_picture(settings: Settings, tab: TabValues) -> tuple[Size, list[Pass]]:
    """Returns the size in cells of the picture that the stages begin from, and the webui's passes that make it."""
    first, steps = _cells(tab.width, tab.height), _steps(tab)
    if tab.img2img:
        source = re.search(r"(\d+)x(\d+)", tab.scale_resolution_preview or "") if tab.resize_by else None
        if source is not None:
            first = _cells(*(int(int(side) * (tab.scale or 0)) for side in source.groups()))
        return first, [(img2img_steps(steps, tab.denoising_strength or 0), first)] if settings.redraw_base else []
    if not tab.hr_checkbox:
        return first, [(steps, first)]
    second = _cells(*_hires_pixels(tab))
    return second, [(steps, first), (int(tab.hires_steps or 0) or steps, second)]


def _hires_pixels(tab: TabValues) -> tuple[float, float]:
    """Returns width and height of hires fix's result (modules/processing.py, calculate_target_resolution)."""
    width, height = max(1, int(tab.width or 0)), max(1, int(tab.height or 0))
    wide, high = int(tab.hr_resize_x or 0), int(tab.hr_resize_y or 0)
    if not wide and not high:
        return width * (tab.hr_scale or 0), height * (tab.hr_scale or 0)
    return wide or high * width // height, high or wide * height // width


def _cells(width: float, height: float) -> Size:
    return int(height or 0) // CELL, int(width or 0) // CELL


def _steps(tab: TabValues) -> int:
    return max(1, int(tab.steps or 1))


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
        NO_MEMORY: limits.lacks_memory(plan.pixels, _batch(tab)),
        NO_ROOM: limits.lacks_room_to_decode(timing.loaded_model(), plan.stages[-1].size),
    }
    return [text for text, holds in checks.items() if holds]


def _batch(tab: TabValues) -> int:
    return max(1, int(tab.batch_size or 1))


def _two_calls(tab: TabValues) -> bool:
    """Returns whether the sampler calls its model twice a step."""
    config = sd_samplers.find_sampler_config(tab.sampling)
    return config is not None and config.options.get("second_order", False)
