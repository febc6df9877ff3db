"""One job: from the arguments of a request to the samples that the webui goes on with."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from modules import devices, shared
from torch import Tensor

from lib_demofusion import __version__
from lib_demofusion.host import options
from lib_demofusion.host.backends import host
from lib_demofusion.host.messages import KEY_SIZE, KEY_STOPPED, clear, report_failure, report_note, report_problem
from lib_demofusion.host.neighbours import refusals as neighbours
from lib_demofusion.host.neighbours import soft_inpainting
from lib_demofusion.host.pictures import inpainting, output
from lib_demofusion.host.pictures.base_picture import base_latent, own_generators
from lib_demofusion.host.pictures.pixel_anchor import pixel_anchor
from lib_demofusion.host.pictures.vae import Report
from lib_demofusion.host.progress.bar import Progress, img2img_steps, make_progress
from lib_demofusion.host.sampling.stage_sampler import StageStopped, StageTask, run_stage, stop_requested
from lib_demofusion.method.plan import CELL, NO_STAGE, Plan, StagePlan, make_plan
from lib_demofusion.method.stage import finish_stage, make_anchor, mix_anchors
from lib_demofusion.progress.costs import Pass
from lib_demofusion.settings.fields import ENABLED_KEY, LATENT, PIXELS, Settings
from lib_demofusion.settings.spec import SettingsError


class Job:
    """What one `process_images` call with the panel on does; made in `process`, dropped in `postprocess`."""

    def __init__(self, p: Any, settings: Settings, infotext: Mapping[str, str]):
        self.settings = settings
        self.request = weakref.ref(p)
        """Returns the `p` that the job was made for, by which copies of it are told."""
        self.pictures: list[output.StagePicture] = []
        self.problem: str | None = None
        self._passthrough: Any = None
        self._checkpoint = shared.sd_model.sd_checkpoint_info
        self._overlay: inpainting.Overlay | None = None
        self._no_grid = p.do_not_save_grid
        self._progress: Progress | None = None
        p.extra_generation_params[ENABLED_KEY] = __version__
        p.extra_generation_params.update(infotext)
        self.problem = neighbours.refusal(p) or self._plan_problem(p)
        if self.problem:
            report_problem(p, self.problem)

    @property
    def active(self) -> bool:
        """Whether stages will run."""
        return self.problem is None

    def _plan_problem(self, p: Any) -> str | None:
        """Plans for the size that the request names, so that what does not fit is said before anything is sampled."""
        try:
            options.check()
            plan = make_plan(self.settings, (p.height // CELL, p.width // CELL))
            output.check_format(p, plan)
        except SettingsError as error:
            # with hires fix the base is larger than that
            return None if getattr(p, "enable_hr", False) else str(error)
        return None

    def _make_progress(self, p: Any, plan: Plan) -> Progress:
        pictures = _saves_stages(p, self.settings) or _shows_stages(p, self.settings)
        return make_progress(p, plan, self.settings, pictures, self._base_passes(p))

    def _base_passes(self, p: Any) -> list[Pass]:
        """Returns steps and size in cells of what the webui itself samples; the last makes the base picture."""
        steps, size = p.steps, (p.height // CELL, p.width // CELL)
        if _is_img2img(p):
            drawn = self.settings.img2img_first or inpainting.is_inpainting(p)
            return [(img2img_steps(steps, p.denoising_strength) if drawn else 0, size)]
        if not getattr(p, "enable_hr", False):
            return [(steps, size)]
        result = p.hr_upscale_to_y // CELL - p.truncate_y, p.hr_upscale_to_x // CELL - p.truncate_x
        # the button below a picture has that for the first pass
        first = [] if getattr(p, "firstpass_image", None) is not None else [(steps, size)]
        return [*first, (p.hr_second_pass_steps or steps, result)]

    def before_base(self, p: Any) -> None:
        """In img2img without `img2img_first`, makes the host's pass hand on the uploaded picture's latent as it is.

        p.sampler belongs to this job and is made anew for the next.
        """
        if self.active and self._progress is None:
            # by now the host has counted its own jobs; where there is no plan, that is said after the base picture
            with suppress(SettingsError):
                plan = make_plan(self.settings, self._base_passes(p)[-1][1])
                self._progress = self._make_progress(p, plan)
                self._progress.announce(p)
        if self.active and not self.settings.img2img_first and _is_img2img(p) and not inpainting.is_inpainting(p):
            self._passthrough = p.sampler
            p.sampler.sample_img2img = lambda p, x, noise, *args, **kwargs: x

    def after_base(self, p: Any, samples: Any) -> Any:
        """Returns what replaces the base samples: the decoded pictures of the last stage that went well."""
        if self._passthrough is not None:
            self._passthrough.__dict__.pop("sample_img2img", None)
            self._passthrough = None
        if not self.active:
            return samples
        clear(p)
        if self._progress is not None:
            self._progress.base_done()
        try:
            return self._stages(p, samples)
        finally:
            if self._progress is not None:
                self._progress.end()

    def _stages(self, p: Any, samples: Any) -> Any:
        """Returns the pictures of the last stage, or the samples that came; what went wrong is told in the infotext."""
        if stop_requested():
            p.extra_generation_params[KEY_STOPPED] = "before the first stage, this is the base image"
            return samples
        problem = neighbours.refusal(p)
        if problem:
            report_problem(p, problem)
            return samples
        try:
            with own_generators(), host().base_checkpoint(p, self._checkpoint):
                return self._run(p, base_latent(p, samples)) or samples
        except SettingsError as error:
            report_problem(p, str(error))
        except Exception as error:
            report_failure(p, "preparing the stages failed, the base image is returned", error)
        return samples

    def _run(self, p: Any, base: Tensor) -> Any:
        plan = make_plan(self.settings, (base.shape[-2], base.shape[-1]))
        inpainting.check_shape(p, plan)
        output.check_format(p, plan)
        for note in plan.notes if plan.stages else (NO_STAGE, *plan.notes):
            report_note(p, note)
        self._overlay = self._overlay or inpainting.Overlay(p)
        self.end(p)
        if self._progress is None or self._progress.plan != plan:
            self._progress = self._make_progress(p, plan)
            self._progress.base_done()
        return _StageLoop(p, plan, self.settings, self.pictures, self._overlay, self._progress).run(base)

    def end(self, p: Any) -> None:
        """Leaves the request as it came."""
        p.do_not_save_grid = self._no_grid
        if self._overlay is not None:
            self._overlay.restore(p)


class _StageLoop:
    """Runs the stages of one iteration and keeps every picture that is already made."""

    def __init__(
        self,
        p: Any,
        plan: Plan,
        settings: Settings,
        pictures: list[output.StagePicture],
        overlay: inpainting.Overlay,
        progress: Progress,
    ):
        self._p = p
        self._overlay = overlay
        self._plan = plan
        self._settings = settings
        self._pictures = pictures
        self._shown = _shows_stages(p, settings)
        if settings.return_stages and not self._shown:
            script = neighbours.of_job(p).script
            report_note(p, f'"Show every stage" does not act in {script}; "Save every stage" saves them')
        self._progress = progress
        self._total = len(plan.stages) + 1
        self._originals = soft_inpainting.Originals(p, plan)
        self._latest: tuple[Tensor, Any] | None = None

    def run(self, base: Tensor) -> Any:
        """Returns the decoded pictures of the last good stage, or None where there is none."""
        latents = self._sample(base)
        self._progress.sampled()
        return self._decode(latents)

    def _sample(self, base: Tensor) -> list[Tensor]:
        """Returns the latents of the base and of every stage that went well, in order."""
        done = [base]
        colours = self._plan.crop.take(base) if self._settings.keep_colors else None
        for stage in self._plan.stages:
            self._progress.begin(stage)
            self._keep_picture(done[-1], stage.number)
            if stop_requested():
                self._stopped(stage.number)
                break
            try:
                anchor = self._anchor(done[-1], stage)
                # no memory for them beside the sampling
                self._latest = None
                # what torch keeps is of the autoencoder's sizes: the sampling might not fit beside it, and Windows then
                # moves some of it into the computer's memory rather than say so
                devices.torch_gc()
                with inpainting.masks_at(self._p, self._plan, stage.size, self._originals.latent(stage.size)):
                    task = StageTask(stage, self._settings, anchor, self._plan)
                    x = run_stage(self._p, task, self._progress.sampling)
                    x = soft_inpainting.as_far_as_painted(self._p, x, finish_stage(x, base, colours))
                    x = inpainting.keep_unmasked(self._p, x)
                done.append(x)
            except StageStopped:
                self._stopped(stage.number)
                break
            except Exception as error:
                self._failed(stage.number, error)
                break
            devices.torch_gc()
        return done

    def _anchor(self, latent: Tensor, stage: StagePlan) -> Tensor:
        if self._settings.anchor == LATENT:
            return make_anchor(latent, self._plan, stage)
        samples = self._decoded(latent, _stoppable(self._progress.decoding))
        report = _stoppable(self._progress.encoding)
        report(0.0)
        pixels = pixel_anchor(self._p, samples, self._plan, stage, self._settings.image_upscaler, report).to(latent)
        if self._settings.anchor == PIXELS:
            return pixels
        before = self._plan.stages[stage.number - 2].scale if stage.number > 1 else 1.0
        return mix_anchors(pixels, make_anchor(latent, self._plan, stage), stage.scale / before)

    def _decoded(self, latent: Tensor, report: Report) -> Any:
        """Returns the pictures of a latent, which are kept until the next stage begins to sample."""
        if self._latest is None or self._latest[0] is not latent:
            self._latest = latent, output.decode(self._p, latent, report)
        return self._latest[1]

    def _decode(self, latents: list[Tensor]) -> Any:
        """Decodes the last latent; where that fails, the one before, so that a finished picture is not lost."""
        while len(latents) > 1:
            latent = latents.pop()
            size = latent.shape[-2], latent.shape[-1]
            try:
                decoded = self._decoded(latent, self._progress.decoding)
                self._overlay.resize(self._p, self._plan, size)
                with inpainting.masks_at(self._p, self._plan, size, self._originals.latent(size)):
                    self._originals.remake_overlay(latent)
                self._spare_grid(size)
            except Exception as error:
                self._failed(len(latents), error, "decoding ")
                continue
            height, width = (n * CELL for n in size)
            self._p.extra_generation_params[KEY_SIZE] = f"{width} x {height}"
            return decoded
        self._overlay.restore(self._p)
        return None

    def _spare_grid(self, size: tuple[int, int]) -> None:
        """Has no grid made of pictures of `size` cells where it would cost the pictures."""
        width, height = self._overlay.picture_size(self._p) or (size[1] * CELL, size[0] * CELL)
        problem = output.grid_problem(self._p, (width, height))
        if problem:
            report_note(self._p, problem)
            self._p.do_not_save_grid = True

    def _keep_picture(self, latent: Tensor, number: int) -> None:
        """Saves and shows the picture of stage `number` (the base is 1), which another stage follows."""
        save = _saves_stages(self._p, self._settings)
        if not (save or self._shown):
            return
        try:
            samples = self._decoded(latent, self._progress.decoding)
            pictures = output.stage_pictures(self._p, samples, number, self._total, save)
        except Exception as error:
            self._failed(number - 1, error, "showing ")
            return
        if self._shown:
            self._pictures.extend(pictures)

    def _name(self, number: int) -> str:
        """Names the stage with `number` stages before it; the base is the first."""
        height, width = self._plan.stages[number - 1].pixels if number else (n * CELL for n in self._plan.base)
        return f"stage {number + 1} of {self._total} ({width}x{height})"

    def _stopped(self, number: int) -> None:
        self._p.extra_generation_params[KEY_STOPPED] = f"in {self._name(number)}, this is the one before"

    def _failed(self, number: int, error: Exception, what: str = "") -> None:
        problem = f"{what}{self._name(number)} failed, the best finished image is returned"
        report_failure(self._p, problem, error)


def _stoppable(report: Report) -> Report:
    """Returns a report that raises StageStopped once the user asked to stop."""

    def report_unless_stopped(share: float) -> None:
        if stop_requested():
            raise StageStopped
        report(share)

    return report_unless_stopped


def _shows_stages(p: Any, settings: Settings) -> bool:
    """Returns whether the stages' pictures come back too.

    A script lays out what it gets: Prompt matrix fails at a picture too many, and all of them are lost.
    """
    return bool(settings.return_stages and not neighbours.of_job(p).script)


def _saves_stages(p: Any, settings: Settings) -> bool:
    """Returns whether the stages' pictures are saved; a request that saves nothing saves none of them."""
    return bool((settings.save_stages or options.value(options.SAVE_STAGES, False)) and p.save_samples())


def _is_img2img(p: Any) -> bool:
    return getattr(p, "init_images", None) is not None
