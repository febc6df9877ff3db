"""The webui's progress bar over base and stages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from modules import shared

from lib_demofusion.host.progress import console, timing
from lib_demofusion.host.sampling.webui_steps import calls_twice
from lib_demofusion.method.plan import Plan, StagePlan
from lib_demofusion.progress.costs import Pass, expected_calls, run_costs
from lib_demofusion.settings.fields import LATENT, Settings

DECODING, ENCODING, SAMPLING = PARTS = range(3)
"""Of a stage: decoding what it begins from, encoding that where it was enlarged as an image, and sampling."""

ENCODER = 0.44
"""Operations of the encoder's convolutions against those of the decoder's."""


class Progress:
    """Shares the bar out by cost, so that the time left follows from the time taken at any point of it.

    The host's bar stands at (job_no + step / steps) / job_count. It counts one job per iteration, or two with hires
    fix, and ends the last one itself after the image is decoded; the stages are as many jobs more as they are planned
    to take the time of one. `parts` are the costs of the parts of every stage and of decoding the result, `job` that of
    one of the host's, for which its sampler was expected to call the model `calls` times.
    """

    def __init__(self, plan: Plan, parts: Sequence[float], job: float, calls: int, total: console.Console):
        self.plan = plan
        # the base is a job even where it takes no time
        self._planned = self._base = max(job, 0.002 * sum(parts)) or 1.0
        self._parts, self._calls, self._console = list(parts), calls, total
        self._jobs = 1 + sum(parts) / self._base
        self._first_job, self._stage, self._place = 0.0, 0, 0.0

    def announce(self, p: Any) -> None:
        """Adds the stages to what the host counts; in a grid or a folder every image does when its turn comes."""
        self._console.announce(shared.state.job_count, p.n_iter)
        shared.state.job_count += p.n_iter * (self._jobs - 1)

    def base_done(self, calls: int = 0) -> None:
        """Takes note of where the base's last job stands, which the host has not ended yet.

        `calls` says how often its sampler called the model, 0 where that is not known.
        """
        self._first_job, self._place = shared.state.job_no, 1.0
        if calls and self._calls:
            self._base = self._planned * calls / self._calls
        self._console.base_done()

    def begin(self, stage: StagePlan) -> None:
        """Begins a stage and names it beside the bar."""
        self._stage = stage.number - 1
        console.begin_job()
        height, width = stage.pixels
        shared.state.textinfo = f"DemoFusion {stage.number + 1}/{len(self.plan.stages) + 1} {width}x{height}"
        self.decoding(0.0)

    def decoding(self, share: float) -> None:
        """Moves the bar to a share of decoding what the current stage begins from; behind the last, of the result."""
        self._move(DECODING, share)

    def encoding(self, share: float) -> None:
        """Moves the bar to a share of encoding what the current stage begins from."""
        self._move(ENCODING, share)

    def sampling(self, done: float, ahead: float) -> None:
        """Moves the bar by the cells that the current stage has evaluated and those that are to come.

        Where they are not as many as planned, so it will be in the stages that follow.
        """
        if not done + ahead:
            # a host that does not ask our model: the stage will fail
            return
        place = len(PARTS) * self._stage + SAMPLING
        changed = (done + ahead) / self._parts[place]
        self._parts[place :: len(PARTS)] = [changed * cost for cost in self._parts[place :: len(PARTS)]]
        self._move(SAMPLING, done / (done + ahead))

    def sampled(self) -> None:
        """Moves the bar to the end of the last stage, behind which the image is decoded."""
        self._stage = len(self.plan.stages)
        self.decoding(0.0)

    def end(self) -> None:
        """Leaves the bar where the host's own end of the iteration completes it."""
        shared.state.job_no, shared.state.textinfo = self._first_job + self._jobs - 1, None
        self._console.stages_done()

    def _move(self, part: int, share: float) -> None:
        """Moves the bar to a share of a part of the current stage, never back."""
        place = len(PARTS) * self._stage + part
        done = self._base + sum(self._parts[:place]) + share * self._parts[place]
        self._place = max(self._place, self._jobs * done / (self._base + sum(self._parts)))
        state = shared.state
        # the host adds its own steps, which cover one job only
        own = state.sampling_step / state.sampling_steps if state.sampling_steps else 0.0
        state.job_no = self._first_job + self._place - own


def make_progress(p: Any, plan: Plan, settings: Settings, pictures: bool, passes: Sequence[Pass]) -> Progress:
    """Returns the progress of a request; `pictures` says whether every stage's is decoded, `passes` are the host's."""
    two_calls = calls_twice(p.sampler_name)
    costs = run_costs(plan, settings, p.steps, two_calls, passes)
    decoder, enlarged = timing.decoder_cells(p.sd_model), settings.anchor != LATENT
    cells = [math.prod(size) for size in (plan.base, *(stage.size for stage in plan.stages))]
    parts = [decoder * cells[-1]] if plan.stages else []
    for before, after, sampling in reversed([*zip(cells, cells[1:], costs.stages)]):
        parts[:0] = decoder * before * (pictures or enlarged), decoder * ENCODER * after * enlarged, sampling
    job = costs.base / (2 if getattr(p, "enable_hr", False) else 1)
    calls = expected_calls(passes[-1][0], two_calls)
    return Progress(plan, parts, job, calls, console.make_console(p, plan, settings))
