"""One job: from the arguments of a request to the samples that the webui goes on with."""

from __future__ import annotations

from typing import Any

import torch
from modules import devices, errors
from torch import Tensor

from lib_demofusion import __version__
from lib_demofusion.host import neighbours, output
from lib_demofusion.host.progress import Progress
from lib_demofusion.host.stage_runner import StageStopped, run_stage, stop_requested
from lib_demofusion.plan import CELL, Plan, make_plan
from lib_demofusion.settings import ENABLED_KEY, Settings, SettingsError, to_infotext
from lib_demofusion.stage import finish_stage, make_anchor

KEY_ERROR = "DemoFusion error"
KEY_STOPPED = "DemoFusion stopped"
KEY_SIZE = "DemoFusion size"
PREFIX = "DemoFusion"


class Job:
    """What one `process_images` call does; made in `process`, dropped in `postprocess`."""

    def __init__(self, p: Any, settings: Settings):
        self.settings = settings
        self.pictures: list[output.StagePicture] = []
        self.problem: str | None = None
        self._passthrough: Any = None
        if not settings.enabled:
            return
        p.extra_generation_params[ENABLED_KEY] = __version__
        p.extra_generation_params.update(to_infotext(settings))
        self.problem = neighbours.refusal(p) or self._plan_problem(p)
        if self.problem:
            report_problem(p, self.problem)

    @property
    def active(self) -> bool:
        """Whether stages will run."""
        return self.settings.enabled and self.problem is None

    def _plan_problem(self, p: Any) -> str | None:
        """Plans for the size that the request names, so that what does not fit is said before anything is sampled."""
        try:
            plan = make_plan(self.settings, (p.height // CELL, p.width // CELL))
        except SettingsError as error:
            return str(error)
        Progress(plan).announce(p)
        return None

    def before_base(self, p: Any) -> None:
        """In img2img without `redraw_base`, makes the host's pass hand on the uploaded picture's latent as it is.

        p.sampler belongs to this job and is made anew for the next.
        """
        if self.active and not self.settings.redraw_base and _is_img2img(p) and getattr(p, "mask", None) is None:
            self._passthrough = p.sampler
            p.sampler.sample_img2img = lambda p, x, noise, *args, **kwargs: x

    def after_base(self, p: Any, base: Tensor) -> Any:
        """Returns what replaces the base samples: the decoded pictures of the last stage that went well."""
        if self._passthrough is not None:
            self._passthrough.__dict__.pop("sample_img2img", None)
            self._passthrough = None
        if not self.active:
            return base
        for key in (KEY_ERROR, KEY_STOPPED, KEY_SIZE):
            # of the iteration before
            p.extra_generation_params.pop(key, None)
        if stop_requested():
            p.extra_generation_params[KEY_STOPPED] = "before the first stage, this is the base picture"
            return base
        refused = neighbours.refusal(p)
        if refused:
            report_problem(p, refused)
            return base
        plan = make_plan(self.settings, (base.shape[-2], base.shape[-1]))
        for note in plan.notes:
            p.comment(f"{PREFIX}: {note}")
        return _StageLoop(p, plan, self.settings, self.pictures).run(base)


class _StageLoop:
    """Runs the stages of one iteration and keeps every picture that is already made."""

    def __init__(self, p: Any, plan: Plan, settings: Settings, pictures: list[output.StagePicture]):
        self._p = p
        self._plan = plan
        self._settings = settings
        self._pictures = pictures
        self._progress = Progress(plan)
        self._total = len(plan.stages) + 1

    def run(self, base: Tensor) -> Any:
        """Returns the decoded pictures of the last good stage, or the base samples where there is none."""
        self._progress.base_done()
        try:
            # the next img2img job's VAE encoder draws from torch's global generators, as a plain job leaves them
            with torch.random.fork_rng(devices=[devices.device] if devices.device.type == "cuda" else []):
                return self._decode(self._sample(base))
        finally:
            self._progress.end()

    def _sample(self, base: Tensor) -> list[Tensor]:
        """Returns the latents of the base and of every stage that went well, in order."""
        done = [base]
        for stage in self._plan.stages:
            self._keep_picture(done[-1], stage.number)
            self._progress.begin(stage)
            if stop_requested():
                self._stopped(stage.number)
                break
            try:
                anchor = make_anchor(done[-1], self._plan, stage)
                x = run_stage(self._p, stage, self._settings, anchor, self._progress.advance)
                done.append(finish_stage(x, base).to(base.dtype))
            except StageStopped:
                self._stopped(stage.number)
                break
            except Exception as error:
                self._failed(stage.number, error)
                break
            devices.torch_gc()
        return done

    def _decode(self, latents: list[Tensor]) -> Any:
        """Decodes the last latent; where that fails, the one before, so that a finished picture is not lost."""
        while len(latents) > 1:
            latent = latents.pop()
            try:
                decoded = output.decode(self._p, latent)
            except Exception as error:
                self._failed(len(latents), error, "decoding ")
                continue
            height, width = latent.shape[-2] * CELL, latent.shape[-1] * CELL
            self._p.extra_generation_params[KEY_SIZE] = f"{width} x {height}"
            return decoded
        return latents[0]

    def _keep_picture(self, latent: Tensor, number: int) -> None:
        """Saves and shows the picture of stage `number` (the base is 1), which another stage follows."""
        if not (self._settings.save_stages or self._settings.return_stages):
            return
        try:
            pictures = output.stage_pictures(self._p, latent, number, self._total, self._settings.save_stages)
        except Exception as error:
            self._failed(number - 1, error, "showing ")
            return
        if self._settings.return_stages:
            self._pictures.extend(pictures)

    def _name(self, number: int) -> str:
        """Names the stage with `number` stages before it; the base is the first."""
        height, width = self._plan.stages[number - 1].pixels if number else (n * CELL for n in self._plan.base)
        return f"stage {number + 1} of {self._total} ({width}x{height})"

    def _stopped(self, number: int) -> None:
        self._p.extra_generation_params[KEY_STOPPED] = f"in {self._name(number)}, this is the one before"

    def _failed(self, number: int, error: Exception, what: str = "") -> None:
        problem = f"{what}{self._name(number)} failed, the best finished picture is returned: {_first_line(error)}"
        errors.report(f"{PREFIX}: {problem}", exc_info=True)
        report_problem(self._p, problem)


def report_problem(p: Any, problem: str) -> None:
    """Says under the picture and in its infotext what went wrong: the host shows no error of a script's hook."""
    p.comment(f"{PREFIX}: {problem}")
    p.extra_generation_params[KEY_ERROR] = problem


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]


def _is_img2img(p: Any) -> bool:
    return getattr(p, "init_images", None) is not None
