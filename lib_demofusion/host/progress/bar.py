"""The webui's progress bar over base and stages."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from modules import shared

from lib_demofusion.host.progress import console, timing
from lib_demofusion.host.progress.job_count import JobCount, add_jobs, exact, move_to
from lib_demofusion.host.progress.webui_steps import calls_twice
from lib_demofusion.method.costs import Pass, run_costs
from lib_demofusion.method.plan import Plan, StagePlan
from lib_demofusion.method.stage_meter import StageMeter
from lib_demofusion.settings.fields import LATENT, Settings

DECODING, ENCODING, SAMPLING = PARTS = range(3)
"""Of a stage: decoding what it begins from, encoding that where it was enlarged as an image, and sampling."""

ENCODER = 0.44
"""Operations of the encoder's convolutions against those of the decoder's."""


class Progress:
    """Sets the bar to the share of an iteration's time that has passed: the webui tells the time left from it.

    The host's bar stands at (job_no + step / steps) / job_count. It counts `jobs` per iteration, one or two with hires
    fix, and ends the last one itself after the image is decoded; the stages are as many jobs more as they are planned
    to take the time of one. `costs` are the cells that the host's own passes evaluate, those of the parts of every
    stage, and those of the result, which is decoded.
    """

    def __init__(self, p: Any, plan: Plan, costs: Sequence[float], total: console.Console):
        self.plan = plan
        base, *self._parts = costs
        self._model, self._decoder = p.sd_model, 1.0
        rate, self._decoder_rate = (timing.known(p.sd_model, kind) for kind in (timing.MODEL, timing.DECODER))
        self._rate = rate and rate * p.batch_size
        self._weigh_decoder(rate)
        # the base is a job even where it takes no time
        self._base = max(base, 0.002 * (base + sum(self._parts))) or 1.0
        self._jobs = 2 if getattr(p, "enable_hr", False) else 1
        self._of_all = self._jobs * (1 + sum(self._parts) / self._base)
        self._first_job, self._stage, self._place, self._console = 0.0, 0, 0.0, total
        # what the host has done before its first iteration counts as it does there
        self._began = time.time() if shared.state.job_no else shared.state.time_start

    def announce(self, p: Any) -> None:
        """Adds the stages to what the host counts; in a grid or a folder every image does when its turn comes."""
        self._console.announce(shared.state.job_count, p.n_iter)
        add_jobs(p.n_iter * (self._of_all - self._jobs))

    def base_done(self) -> None:
        """Takes note of where the base's last job stands, which the host has not ended yet."""
        self._first_job, self._place = exact(shared.state.job_no) - self._jobs + 1, self._jobs
        self._console.base_done()

    def begin(self, stage: StagePlan) -> None:
        """Begins a stage and names it beside the bar."""
        self._stage = stage.number - 1
        console.begin_job()
        height, width = stage.pixels
        shared.state.textinfo = f"DemoFusion {stage.number}/{len(self.plan.stages)} {width}x{height}"
        self.move(DECODING, 0.0)

    def sampling(self, meter: StageMeter) -> None:
        """Moves the bar as far as the current stage has come; the stages that follow cost more or less as it does."""
        if not meter.done + meter.ahead:
            # a host that does not ask our model: the stage will fail
            return
        if not meter.done:
            # the image before this stage may have been the first that was decoded
            self._decoder_rate = timing.known(self._model, timing.DECODER)
        if meter.rate:
            self._rate = meter.rate * meter.images
            self._weigh_decoder(meter.rate)
        places = slice(len(PARTS) * self._stage + SAMPLING, None, len(PARTS))
        changed = (meter.done + meter.ahead) / self._parts[places][0]
        self._parts[places] = [changed * cost for cost in self._parts[places]]
        self.move(SAMPLING, meter.done / (meter.done + meter.ahead))

    def move(self, part: int, share: float) -> None:
        """Moves the bar to a share of a part of the current stage, never back; without a rate, by the costs alone.

        Behind the last stage, the part is decoding the result.
        """
        place = len(PARTS) * self._stage + part
        ahead = (1 - share) * self._parts[place] + sum(self._parts[place + 1 :])
        passed, left = self._base + sum(self._parts) - ahead, ahead
        if self._rate:
            passed, left = time.time() - self._began, self._rate * ahead
        self._place = max(self._place, self._of_all * passed / ((passed + left) or 1.0))
        move_to(self._first_job + self._place)

    def _weigh_decoder(self, rate: float | None) -> None:
        """Counts the decoding of a cell as the evaluation of as many as take that long at the model's rate."""
        cells = self._decoder_rate / rate if self._decoder_rate and rate else timing.ASSUMED_DECODER
        coded = (place for place in range(len(self._parts)) if place % len(PARTS) != SAMPLING)
        for place in coded:
            self._parts[place] *= cells / self._decoder
        self._decoder = cells

    def sampled(self) -> None:
        """Moves the bar to the end of the last stage, behind which the image is decoded."""
        self._stage = len(self.plan.stages)
        self.move(DECODING, 0.0)

    def end(self) -> None:
        """Leaves the bar where the host's own end of the iteration completes it."""
        shared.state.job_no = JobCount(self._first_job + self._of_all - 1)
        shared.state.textinfo = None
        self._began = time.time()
        self._console.stages_done()


def make_progress(p: Any, plan: Plan, settings: Settings, pictures: int, passes: Sequence[Pass]) -> Progress:
    """Returns the progress of a request.

    So many images are decoded to be shown or saved, the base image first; `passes` are those of the host.
    """
    costs = run_costs(plan, settings, p.steps, calls_twice(p.sampler_name), passes)
    enlarged = settings.anchor != LATENT
    cells = [math.prod(size) for size in (plan.base, *(stage.size for stage in plan.stages))]
    parts = [costs.base]
    for i, (before, after, sampling) in enumerate(zip(cells, cells[1:], costs.stages)):
        parts += before * (i < pictures or enlarged), ENCODER * after * enlarged, sampling
    result = [cells[-1]] if plan.stages else []
    return Progress(p, plan, [*parts, *result], console.make_console(p, plan, settings))
