"""Runs the stages of one iteration, and shows and saves the images of the stages.

The number of iterations of a job is the webui's "Batch count". If a stage fails, the images of earlier stages are kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from modules import devices
from torch import Tensor

from lib_demofusion.host.common import options
from lib_demofusion.host.common.messages import BASE_IMAGE, KEY_SIZE, report_failure, report_note, report_stop, sized
from lib_demofusion.host.images import coding, inpainting, output
from lib_demofusion.host.images.base_image import BaseColors, known_base
from lib_demofusion.host.images.output import StageImage, stage_images
from lib_demofusion.host.images.upscaling import enlarged
from lib_demofusion.host.images.vae import Report
from lib_demofusion.host.integrations import refusals, soft_inpainting
from lib_demofusion.host.progress.bar import DECODING, ENCODING, Progress
from lib_demofusion.host.sampling.stage_sampler import StageTask, run_stage, stop_requested
from lib_demofusion.method.plan import CELL, Plan, StagePlan
from lib_demofusion.method.stage import cropped
from lib_demofusion.method.stages import Finish, StageStopped, run_stages
from lib_demofusion.settings.fields import Settings


class StageWork:
    """Implements `method.stages.StageHost` for the stages of one iteration. Images are (3, H, W) in -1..1."""

    def __init__(self, p: Any, plan: Plan, settings: Settings, progress: Progress):
        self.originals = soft_inpainting.Originals(p, plan)
        self._p, self._plan, self._settings, self._progress = p, plan, settings, progress
        self._colors = BaseColors(p, plan) if settings.keep_colors else None
        self._base: Tensor | None = None
        self._latest: tuple[Tensor, Any] | None = None

    def begin(self, base: Tensor, images: Any = None) -> None:
        """Sets the base latent (B, C, h, w). `images` are the decoded base images, or None if they are not decoded."""
        self._base = base
        self._latest = None if images is None else (base, images)
        if self._colors is not None:
            known = known_base(self._p, base if images is None else images, self._settings.img2img_first)
            if known is not None:
                self._colors.remember(known)

    def stopped(self) -> bool:
        """Returns whether the user has asked to stop."""
        return stop_requested()

    def decode(self, latent: Tensor) -> list[Tensor]:
        """Decodes a latent to a list of images. Raises StageStopped if the user has asked to stop."""
        report = _stoppable(partial(self._progress.move, DECODING))
        return list(self.decoded(latent, report))

    def decoded(self, latent: Tensor, report: Report | None = None) -> Any:
        """Decodes a latent to the webui's DecodedSamples, and caches these images until the next stage is sampled."""
        if self._latest is None or self._latest[0] is not latent:
            report = report or partial(self._progress.move, DECODING)
            self._latest = latent, coding.decode(self._p, latent, report)
            self._keep_colors(*self._latest)
        return self._latest[1]

    def _keep_colors(self, latent: Tensor, samples: Any) -> None:
        """Matches the colors of decoded images to the base images ("Keep colors").

        If `latent` is the base latent, `samples` are the base images, and are stored for later calls.
        """
        base = self._base
        if self._colors is None or base is None:
            return
        if latent is base:
            self._colors.remember(samples)
        else:
            self._colors.keep(samples, lambda: coding.decode(self._p, base))

    def enlarge(self, image: Tensor, stage: StagePlan) -> Tensor:
        """Upscales the previous image to the size of the stage. In stage 1, first crops it to the plan's `crop`."""
        return enlarged(self._p, cropped(image, self._plan, stage, CELL), stage.pixels, self._settings.image_upscaler)

    def encode(self, images: Iterable[Tensor]) -> Tensor:
        """Encodes images. Raises StageStopped if the user has asked to stop."""
        report = _stoppable(partial(self._progress.move, ENCODING))
        report(0.0)
        return coding.encode(self._p, images, report)

    def sample(self, stage: StagePlan, anchor: Tensor, finish: Finish) -> Tensor:
        """Samples a stage with a sampler of the webui. In inpainting, restores the original outside the mask."""
        # the decoded images must not use memory while the stage is sampled
        self._latest = None
        # torch keeps the freed memory of the VAE in its cache, in blocks that the UNet can hardly use. torch itself
        # empties the cache only if an allocation fails. On Windows, an allocation that does not fit on the GPU may not
        # fail, but use the computer's memory, which is slow
        devices.torch_gc()
        with inpainting.masks_at(self._p, self._plan, stage.size, self.originals.latent(stage.size)):
            x = run_stage(self._p, StageTask(stage, self._settings, anchor, self._plan), self._progress.sampling)
            return inpainting.keep_unmasked(self._p, soft_inpainting.limit_to_mask(self._p, x, finish(x)))


def _stoppable(report: Report) -> Report:
    """Returns a progress callback that calls `report`, or raises StageStopped if the user has asked to stop."""

    def report_unless_stopped(share: float) -> None:
        if stop_requested():
            raise StageStopped
        report(share)

    return report_unless_stopped


class StageLoop:
    """Runs the stages of one iteration, and keeps the latent of every finished stage."""

    def __init__(self, p: Any, plan: Plan, settings: Settings, overlay: inpainting.Overlay, progress: Progress):
        self.stage_images: list[StageImage] = []
        """The images that the job returns after the final images.

        Depending on the settings, the list is empty, contains the base images, or also contains the images of every
        stage except the last.
        """
        self._p = p
        self._overlay = overlay
        self._plan = plan
        self._settings = settings
        self._shown, self._base_shown = shows_stages(p, settings), shows_base(p, settings)
        if settings.return_stages and not self._shown:
            script = refusals.of_job(p).script
            report_note(p, f'"Show every stage" has no effect with {script}; use "Save every stage"')
        self._progress = progress
        self._total = len(plan.stages)
        self._work = StageWork(p, plan, settings, progress)

    def run(self, base: Tensor, images: Any = None) -> Any:
        """Runs the stages. Returns the decoded images of the last stage that succeeded, or None if no stage succeeded.

        `base` is the base latent (B, C, h, w). `images` are the decoded base images, or None if they are not decoded.
        """
        self._work.begin(base, images)
        latents = self._sample(base)
        self._progress.sampled()
        decoded = self._decode(latents)
        if decoded is None and not self._shown:
            # no stage succeeded, so the base image is the final image, and the gallery must not show it twice
            self.stage_images.clear()
        return decoded

    def _sample(self, base: Tensor) -> list[Tensor]:
        """Samples the stages. Returns the base latent, followed by the latent of every stage that succeeded."""
        done = [base]
        stages = run_stages(self._work, self._plan, self._settings, base)
        for stage in self._plan.stages:
            self._progress.begin(stage)
            self._show_and_save(done[-1], stage.number - 1)
            try:
                done.append(next(stages))
            except StageStopped:
                self._stopped(stage.number)
                break
            except Exception as error:
                self._failed(stage.number, error)
                break
            devices.torch_gc()
        return done

    def _decode(self, latents: list[Tensor]) -> Any:
        """Decodes the last latent. If decoding fails, tries the latent before it, down to the first stage.

        Returns None if no stage could be decoded. The base latent `latents[0]` is not decoded here.
        """
        while len(latents) > 1:
            latent = latents.pop()
            size = latent.shape[-2], latent.shape[-1]
            try:
                decoded = self._work.decoded(latent)
                self._overlay.resize(self._p, self._plan, size)
                with inpainting.masks_at(self._p, self._plan, size, self._work.originals.latent(size)):
                    self._work.originals.remake_overlay(latent)
                self._disable_impossible_grid(size)
            except Exception as error:
                self._failed(len(latents), error, "decoding ")
                continue
            height, width = (n * CELL for n in size)
            self._p.extra_generation_params[KEY_SIZE] = f"{width} x {height}"
            return decoded
        self._overlay.restore(self._p)
        return None

    def _disable_impossible_grid(self, size: tuple[int, int]) -> None:
        """Disables the webui's grid if it would be too large. Otherwise, the webui's error would lose all images.

        `size` is the size of one image in cells.
        """
        width, height = self._overlay.picture_size(self._p) or (size[1] * CELL, size[0] * CELL)
        problem = output.grid_problem(self._p, (width, height))
        if problem:
            report_note(self._p, problem)
            self._p.do_not_save_grid = True

    def _show_and_save(self, latent: Tensor, number: int) -> None:
        """Shows and saves the images of stage `number`, depending on the settings. Number 0 is the base image."""
        save = saves_stages(self._p, self._settings)
        shown = self._shown or (self._base_shown and not number)
        if not (save or shown):
            return
        try:
            samples = self._work.decoded(latent)
            pictures = stage_images(self._p, samples, number, self._total, save)
        except Exception as error:
            report_failure(self._p, f"showing {self._name(number)} failed, so its image is missing", error)
            return
        if shown:
            self.stage_images.extend(pictures)

    def _name(self, number: int) -> str:
        """Returns the name and size of stage `number`. 0 is the base image."""
        height, width = self._plan.stages[number - 1].pixels if number else (n * CELL for n in self._plan.base)
        return sized(f"stage {number} of {self._total}" if number else BASE_IMAGE, width, height)

    def _stopped(self, number: int) -> None:
        report_stop(self._p, f"in {self._name(number)}", self._name(number - 1))

    def _failed(self, number: int, error: Exception, what: str = "") -> None:
        problem = f"{what}{self._name(number)} failed, so the last finished image is returned"
        report_failure(self._p, problem, error)


def shows_stages(p: Any, settings: Settings) -> bool:
    """Returns whether the result includes the base image and the images of all stages, not only the final image.

    Returns False if a script is selected, because a script can depend on the number of images. For example, Prompt
    matrix fails if a job returns more images than it expects, and all images are lost.
    """
    return bool(settings.return_stages and not refusals.of_job(p).script)


def shows_base(p: Any, settings: Settings) -> bool:
    """Returns whether the gallery shows the base image after the final image.

    Returns False for the API, which returns only the requested images, and for scripts, which can depend on the number
    of images. Also returns False if the upload is the base image, because img2img shows the upload already.
    """
    drawn = getattr(p, "init_images", None) is None or settings.img2img_first or inpainting.is_inpainting(p)
    wanted = drawn and not p.is_api and options.value(options.SHOW_BASE, True)
    return bool(wanted and not refusals.of_job(p).script)


def saves_stages(p: Any, settings: Settings) -> bool:
    """Returns whether the base image and the images of all stages but the last are saved as additional files.

    Returns False if the request saves no images at all.
    """
    return bool((settings.save_stages or options.value(options.SAVE_STAGES, False)) and p.save_samples())
