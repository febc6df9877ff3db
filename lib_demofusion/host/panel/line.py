"""The live line of the panel, which shows the sizes, the time and the cost of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lib_demofusion.host.backends import selected_family
from lib_demofusion.host.panel import warnings
from lib_demofusion.host.panel.markup import ABOUT, HOURS, MINUTES, NOT_VALID, SECONDS, duration, error_html, word
from lib_demofusion.host.panel.tab import TabValues, base_image
from lib_demofusion.host.progress import timing
from lib_demofusion.host.progress.webui_steps import calls_twice
from lib_demofusion.method.costs import run_costs
from lib_demofusion.method.plan import CELL, NO_STAGE, make_plan
from lib_demofusion.settings.errors import SettingsError
from lib_demofusion.settings.presets import BUILT_IN, Choices
from lib_demofusion.settings.reading import settings_from_args

TIMES_BASE = "times as long as the base image"
WORDS = (NOT_VALID, NO_STAGE, TIMES_BASE, ABOUT, SECONDS, MINUTES, HOURS, warnings.TURBO_CHOSEN)


def describe(args: Sequence[Any], tab: TabValues, known: Choices = BUILT_IN) -> str:
    """Returns the line as HTML: the sizes, the estimated time (if known), the cost, and then notes and warnings.

    If no run is possible, the line contains only the reason. `known` are the presets and upscalers that users and the
    webui add.
    """
    try:
        settings = settings_from_args(args, choices=known)
        base, passes = base_image(settings, tab)
        plan = make_plan(settings, base, selected_family().unit_cells)
    except SettingsError as error:
        return error_html(error)
    pending = warnings.of_pending_checkpoint()
    if refused := warnings.of_refusal(tab):
        return "<br>".join([*refused, *pending])
    two_calls = calls_twice(tab.sampling)
    costs = run_costs(plan, settings, tab.step_count, two_calls, passes)
    cells = costs.base + sum(costs.stages)
    seconds = timing.seconds(cells * tab.images * max(1, int(tab.batch_count or 1)))
    times_base = cells / run_costs(plan, settings, tab.step_count, two_calls).base
    notes = [*warnings.of_plan(plan, settings), *warnings.of_few_steps(settings, tab), *pending]
    if not plan.stages:
        return "<br>".join([word(NO_STAGE), *notes])
    sizes = " → ".join(f"{w}x{h}" for h, w in [(n * CELL for n in plan.base), *(s.pixels for s in plan.stages)])
    time = [] if seconds is None else [duration(seconds)]
    summary = ", ".join([f"<b>{sizes}</b>", *time, f"{times_base:.3g} {word(TIMES_BASE)}"])
    return "<br>".join([summary, *notes, *warnings.of_size(plan, tab, seconds)])
