"""Runs one job, from the settings of a request to the samples that the webui receives."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from modules import shared
from torch import Tensor

from lib_demofusion import __version__
from lib_demofusion.host.backends import host
from lib_demofusion.host.common import options
from lib_demofusion.host.common.messages import (
    BASE_IMAGE,
    report_failure,
    report_note,
    report_problem,
    report_stop,
    reported,
    reset,
    sized,
)
from lib_demofusion.host.images import inpainting, output
from lib_demofusion.host.images.base_image import (
    base_images,
    base_latent,
    base_size,
    encode_upload_with_seed,
    own_generators,
)
from lib_demofusion.host.images.output import StageImage, with_later_reports
from lib_demofusion.host.integrations import refusals
from lib_demofusion.host.progress import webui_state
from lib_demofusion.host.progress.bar import Progress, make_progress
from lib_demofusion.host.progress.webui_state import img2img_steps
from lib_demofusion.host.sampling.stage_sampler import stop_requested
from lib_demofusion.host.stage_loop import StageLoop, saves_stages, shows_base, shows_stages
from lib_demofusion.method.costs import Pass
from lib_demofusion.method.plan import CELL, NO_STAGE, Plan, make_plan
from lib_demofusion.settings.errors import SettingsError
from lib_demofusion.settings.fields import ENABLED_KEY, Settings

NOISE_MULTIPLIER = "Noise multiplier"
"""The infotext key of the webui's setting "Noise multiplier for img2img" (modules/processing.py)."""


class Job:
    """The job of one `process_images` call, created in `process` and removed in `postprocess`."""

    def __init__(self, p: Any, settings: Settings, infotext: Mapping[str, str]):
        self.settings = settings
        self.request = weakref.ref(p)
        """A weak reference to the `p` for which the job was created. Other extensions pass copies of `p` to hooks."""
        self.stage_images: list[StageImage] = []
        self.problem: str | None = None
        self._passthrough: Any = None
        self._checkpoint = shared.sd_model.sd_checkpoint_info
        self._overlay: inpainting.Overlay | None = None
        self._no_grid = p.do_not_save_grid
        self._progress: Progress | None = None
        p.extra_generation_params[ENABLED_KEY] = __version__
        self._infotext = infotext
        self.problem = refusals.refusal(p) or self._plan_problem(p)
        if self.problem:
            report_problem(p, self.problem)
        else:
            p.extra_generation_params.update(infotext)
            if _is_img2img(p) and not settings.img2img_first and getattr(p, "image_mask", None) is None:
                encode_upload_with_seed(p)
        self._reported = reported(p)

    @property
    def active(self) -> bool:
        """Returns whether the job may run its stages: no problem was found when the job was created."""
        return self.problem is None

    def _plan_problem(self, p: Any) -> str | None:
        """Plans the stages for the requested size before the webui samples. Returns an error message, or None."""
        try:
            options.check()
        except SettingsError as error:
            return str(error)
        try:
            plan = make_plan(self.settings, (p.height // CELL, p.width // CELL), _unit(p))
            output.check_format(p, plan)
        except SettingsError as error:
            # with hires fix, the base image is larger than p.width x p.height, so `_final_plan` checks the plan later
            return None if getattr(p, "enable_hr", False) else str(error)
        return None

    def _make_progress(self, p: Any, plan: Plan) -> Progress:
        all_pictures = saves_stages(p, self.settings) or shows_stages(p, self.settings)
        pictures = len(plan.stages) if all_pictures else int(shows_base(p, self.settings))
        return make_progress(p, plan, self.settings, pictures, self._base_passes(p))

    def _base_passes(self, p: Any) -> list[Pass]:
        """Returns the webui's own sampling passes. The last pass creates the base image."""
        steps, size = p.steps, (p.height // CELL, p.width // CELL)
        if _is_img2img(p):
            drawn = self.settings.img2img_first or inpainting.is_inpainting(p)
            return [(img2img_steps(steps, p.denoising_strength) if drawn else 0, size)]
        if not getattr(p, "enable_hr", False):
            return [(steps, size)]
        result = p.hr_upscale_to_y // CELL - p.truncate_y, p.hr_upscale_to_x // CELL - p.truncate_x
        # the button ✨ below an image runs only the second pass of hires fix, which enlarges this image
        first = [] if getattr(p, "firstpass_image", None) is not None else [(steps, size)]
        return [*first, (p.hr_second_pass_steps or steps, result)]

    def before_base(self, p: Any) -> None:
        """Prepares the progress bar, and the sampler if the upload is the base image.

        In img2img without `img2img_first` and without a mask, makes the sampler return the latent of the upload
        unchanged. `after_base` undoes this. If an error prevents `after_base`, the sampler is not used again: the webui
        creates a new sampler for the next job.
        """
        reset(p, self._reported)
        if not self.active:
            webui_state.withdraw()
        if self.active and self._progress is None:
            # earlier hooks do not know the webui's number of jobs. If planning fails, `after_base` reports the error
            with suppress(SettingsError):
                plan = make_plan(self.settings, self._base_passes(p)[-1][1], _unit(p))
                self._progress = self._make_progress(p, plan)
                self._progress.announce(p)
        if self.active and not self.settings.img2img_first and _is_img2img(p) and not inpainting.is_inpainting(p):
            self._passthrough = p.sampler
            p.sampler.sample_img2img = lambda p, x, noise, *args, **kwargs: x

    def after_base(self, p: Any, samples: Any) -> Any:
        """Runs the stages. Returns the decoded images of the last successful stage.

        If no stage succeeds, returns the base samples. If a refiner made these samples, they can be decoded already.
        """
        if self._passthrough is not None:
            self._passthrough.__dict__.pop("sample_img2img", None)
            self._passthrough = None
            # the webui has written the multiplier to the infotext, but the upload was returned without noise
            p.extra_generation_params.pop(NOISE_MULTIPLIER, None)
        if not self.active:
            return samples
        if self._progress is not None:
            self._progress.base_done()
        try:
            return self._stages(p, samples)
        finally:
            if self._progress is not None:
                self._progress.end()

    def _stages(self, p: Any, samples: Any) -> Any:
        """Runs the stages, and writes errors to the infotext. Returns the same as `after_base`."""
        if stop_requested():
            height, width = (n * CELL for n in base_size(p, samples))
            report_stop(p, "before the first stage", sized(BASE_IMAGE, width, height))
            return samples
        problem = refusals.refusal(p)
        if problem:
            # no stage runs, so the settings do not affect the image and must not be in its infotext
            for key in self._infotext:
                p.extra_generation_params.pop(key, None)
            report_problem(p, problem)
            return samples
        base = samples
        try:
            plan = self._final_plan(p, samples)
            if plan.stages:
                with own_generators():
                    images = base_images(p, samples, self._checkpoint)
                    base = samples if images is None else images
                    with host().base_checkpoint(p, self._checkpoint):
                        return self._run(p, plan, base_latent(p, samples), images) or base
        except SettingsError as error:
            report_problem(p, str(error))
        except Exception as error:
            report_failure(p, "preparing the stages failed, so the base image is returned", error)
        return base

    def _final_plan(self, p: Any, samples: Any) -> Plan:
        """Plans the stages for the base samples (latents or images). Raises SettingsError if a setting does not fit."""
        plan = make_plan(self.settings, base_size(p, samples), _unit(p))
        inpainting.check_shape(p, plan)
        output.check_format(p, plan)
        for note in plan.notes if plan.stages else (NO_STAGE, *plan.notes):
            report_note(p, note)
        return plan

    def _run(self, p: Any, plan: Plan, base: Tensor, images: Any) -> Any:
        """Runs the stages. Returns the decoded images of the last successful stage, or None.

        `base` is the base latent (B, C, h, w). `images` are the decoded base images, or None if they are not decoded.
        """
        self._overlay = self._overlay or inpainting.Overlay(p)
        self.end(p)
        if self._progress is None or self._progress.plan != plan:
            self._progress = self._make_progress(p, plan)
            self._progress.base_done()
        loop = StageLoop(p, plan, self.settings, self._overlay, self._progress)
        try:
            return loop.run(base, images)
        finally:
            self.stage_images.extend(with_later_reports(p, picture) for picture in loop.stage_images)

    def end(self, p: Any) -> None:
        """Restores the attributes of the request that the job changed."""
        p.do_not_save_grid = self._no_grid
        if self._overlay is not None:
            self._overlay.restore(p)


def _is_img2img(p: Any) -> bool:
    return getattr(p, "init_images", None) is not None


def _unit(p: Any) -> int:
    """Returns a number of cells. The sides of the checkpoint's latents must be multiples of this number."""
    return host().family(p.sd_model).unit_cells
