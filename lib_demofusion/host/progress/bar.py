"""Moves the webui's progress bar while the base image and the stages run."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from modules import shared

from lib_demofusion.host.progress import timing, webui_state
from lib_demofusion.host.progress.timing import StageProgress
from lib_demofusion.host.progress.webui_state import JobCount, calls_twice, exact, move_to
from lib_demofusion.method.costs import Pass, run_costs
from lib_demofusion.method.plan import Plan, StagePlan
from lib_demofusion.settings.fields import LATENT, Settings

DECODING, ENCODING, SAMPLING = PARTS = range(3)
"""The parts of a stage: decoding the previous image, encoding the upscaled image, and sampling."""

ENCODER = 0.44
"""Operations in the convolutions of the encoder, divided by those in the decoder, for an image of the same size."""


class Progress:
    """Moves the webui's bar in proportion to time. The webui computes the remaining time from the position of the bar.

    The webui's bar shows (job_no + step / steps) / job_count. The webui counts one job per iteration ("Batch count"),
    or two with hires fix. It ends the last job itself, after decoding. The stages add jobs in proportion to their
    expected time. `costs` are numbers of latent cells (in sampling, the cells that the model evaluates): one for the
    webui's own passes, one for each of the three PARTS of every stage, and one for decoding the final image.
    """

    def __init__(self, p: Any, plan: Plan, costs: Sequence[float], total: webui_state.Console):
        self.plan = plan
        base, *self._parts = costs
        self._model, self._decoder = p.sd_model, 1.0
        rate, self._decoder_rate = (timing.known(p.sd_model, kind) for kind in (timing.MODEL, timing.DECODER))
        self._rate = rate and rate * p.batch_size
        self._update_decoder_costs(rate)
        # numbers of jobs are costs divided by the cost of the base image, so this cost must not be 0
        self._base = max(base, 0.002 * (base + sum(self._parts))) or 1.0
        self._jobs = 2 if getattr(p, "enable_hr", False) else 1
        self._of_all = self._jobs * (1 + sum(self._parts) / self._base)
        self._first_job, self._stage, self._place, self._console = 0.0, 0, 0.0, total
        # the start of the current iteration; in the first one, the webui counts from the start of the request
        self._began = time.time() if shared.state.job_no else shared.state.time_start

    def announce(self, p: Any) -> None:
        """Adds the stages to the webui's number of jobs. Called for every cell of an X/Y/Z plot or file of a batch."""
        self._console.announce(shared.state.job_count, p.n_iter)
        webui_state.announce(p.n_iter * self._jobs, p.n_iter * (self._of_all - self._jobs))

    def base_done(self) -> None:
        """Stores the position of the bar after the webui's own passes. The webui has not ended their last job yet."""
        self._first_job, self._place = exact(shared.state.job_no) - self._jobs + 1, self._jobs
        self._console.base_done()

    def begin(self, stage: StagePlan) -> None:
        """Begins a stage and shows its number and size next to the bar."""
        self._stage = stage.number - 1
        webui_state.begin_job()
        height, width = stage.pixels
        shared.state.textinfo = f"DemoFusion {stage.number}/{len(self.plan.stages)} {width}x{height}"
        self.move(DECODING, 0.0)

    def sampling(self, stage: StageProgress) -> None:
        """Moves the bar while a stage is sampled. Also corrects the expected costs of this stage and later stages."""
        if not stage.done + stage.ahead:
            # no model call has been counted, because the webui calls the UNet without DemoFusion: the stage will fail
            return
        if not stage.done:
            # decoding the previous image may have measured the decoder for the first time
            self._decoder_rate = timing.known(self._model, timing.DECODER)
        if stage.rate:
            self._rate = stage.rate * stage.images
            self._update_decoder_costs(stage.rate)
        places = slice(len(PARTS) * self._stage + SAMPLING, None, len(PARTS))
        changed = (stage.done + stage.ahead) / self._parts[places][0]
        self._parts[places] = [changed * cost for cost in self._parts[places]]
        self.move(SAMPLING, stage.done / (stage.done + stage.ahead))

    def move(self, part: int, share: float) -> None:
        """Moves the bar to the position at which `share` of a part of the current stage is done, but never back.

        After the last stage, DECODING is the decoding of the final image. Until the model's speed is known, the
        position depends only on the costs, then also on the time that has passed.
        """
        place = len(PARTS) * self._stage + part
        ahead = (1 - share) * self._parts[place] + sum(self._parts[place + 1 :])
        passed, left = self._base + sum(self._parts) - ahead, ahead
        if self._rate:
            passed, left = time.time() - self._began, self._rate * ahead
        self._place = max(self._place, self._of_all * passed / ((passed + left) or 1.0))
        move_to(self._first_job + self._place)

    def _update_decoder_costs(self, rate: float | None) -> None:
        """Sets the costs of decoding and encoding to the numbers of cells that the model evaluates in the same time."""
        cells = self._decoder_rate / rate if self._decoder_rate and rate else timing.ASSUMED_DECODER
        coded = (place for place in range(len(self._parts)) if place % len(PARTS) != SAMPLING)
        for place in coded:
            self._parts[place] *= cells / self._decoder
        self._decoder = cells

    def sampled(self) -> None:
        """Moves the bar to the position at which all stages are done, before the final image is decoded."""
        self._stage = len(self.plan.stages)
        self.move(DECODING, 0.0)

    def end(self) -> None:
        """Sets the bar to one job before the end of the iteration. The webui itself then ends this last job."""
        shared.state.job_no = JobCount(self._first_job + self._of_all - 1)
        shared.state.textinfo = None
        self._began = time.time()
        self._console.stages_done()


def make_progress(p: Any, plan: Plan, settings: Settings, pictures: int, passes: Sequence[Pass]) -> Progress:
    """Creates the progress of a request. `passes` are the webui's own passes.

    `pictures` images are decoded to be shown or saved: the base image, then stage 1 and so on, but not the last stage.
    """
    costs = run_costs(plan, settings, p.steps, calls_twice(p.sampler_name), passes)
    enlarged = settings.anchor != LATENT
    cells = [math.prod(size) for size in (plan.base, *(stage.size for stage in plan.stages))]
    parts = [costs.base]
    for i, (before, after, sampling) in enumerate(zip(cells, cells[1:], costs.stages)):
        parts += before * (i < pictures or enlarged), ENCODER * after * enlarged, sampling
    result = [cells[-1]] if plan.stages else []
    return Progress(p, plan, [*parts, *result], webui_state.make_console(p, plan, settings))
