"""The stages of one iteration, one after the other: anchor, sampling, images, and what is kept when one fails."""

from __future__ import annotations

from functools import partial
from typing import Any

from modules import devices
from torch import Tensor

from lib_demofusion.host import options
from lib_demofusion.host.messages import BASE_IMAGE, KEY_SIZE, report_failure, report_note, report_stop
from lib_demofusion.host.neighbours import refusals, soft_inpainting
from lib_demofusion.host.pictures import coding, formats, inpainting
from lib_demofusion.host.pictures.base_colors import BaseColors
from lib_demofusion.host.pictures.pixel_anchor import pixel_anchor
from lib_demofusion.host.pictures.stage_pictures import StagePicture, stage_pictures
from lib_demofusion.host.pictures.vae import Report
from lib_demofusion.host.progress.bar import DECODING, ENCODING, Progress
from lib_demofusion.host.sampling.stage_sampler import StageStopped, StageTask, run_stage, stop_requested
from lib_demofusion.method.plan import CELL, Plan, StagePlan
from lib_demofusion.method.stage import cropped, finish_stage, make_anchor, mix_anchors
from lib_demofusion.settings.fields import LATENT, PIXELS, Settings


class StageLoop:
    """Runs the stages of one iteration and keeps every image that is already made."""

    def __init__(self, p: Any, plan: Plan, settings: Settings, overlay: inpainting.Overlay, progress: Progress):
        self.pictures: list[StagePicture] = []
        """Of the base image and the stages before the last, where they are shown too."""
        self._p = p
        self._overlay = overlay
        self._plan = plan
        self._settings = settings
        self._shown, self._base_shown = shows_stages(p, settings), shows_base(p, settings)
        if settings.return_stages and not self._shown:
            script = refusals.of_job(p).script
            report_note(p, f'"Show every stage" does not act in {script}; "Save every stage" saves them')
        self._progress, self._decoding = progress, partial(progress.move, DECODING)
        self._total = len(plan.stages)
        self._originals = soft_inpainting.Originals(p, plan)
        self._latest: tuple[Tensor, Any] | None = None
        self._colors = BaseColors(p, plan) if settings.keep_colors else None
        self._base: Tensor | None = None

    def run(self, base: Tensor, images: Any = None, known: Any = None) -> Any:
        """Returns the decoded images of the last good stage, or None where there is none.

        `base` is the latent (B, C, h, w) of the base image. `images` are its images as the webui decodes them, if that
        has been done. `known` are images whose colors are those of the base image, if there are any without decoding.
        """
        self._base = base
        self._latest = None if images is None else (base, images)
        if self._colors is not None and known is not None:
            self._colors.remember(known)
        latents = self._sample(base)
        self._progress.sampled()
        decoded = self._decode(latents)
        if decoded is None and not self._shown:
            # the base image is the final one
            self.pictures.clear()
        return decoded

    def _sample(self, base: Tensor) -> list[Tensor]:
        """Returns the latents of the base and of every stage that went well, in order."""
        done = [base]
        for stage in self._plan.stages:
            self._progress.begin(stage)
            self._keep_picture(done[-1], stage.number - 1)
            try:
                if stop_requested():
                    raise StageStopped
                done.append(self._run_stage(stage, done[-1], base))
            except StageStopped:
                self._stopped(stage.number)
                break
            except Exception as error:
                self._failed(stage.number, error)
                break
            devices.torch_gc()
        return done

    def _run_stage(self, stage: StagePlan, before: Tensor, base: Tensor) -> Tensor:
        """Returns the latent (B, C, H, W) that a stage makes of the one before it, (B, C, h, w)."""
        anchor = self._anchor(before, stage)
        # no memory for the decoded images beside the sampling
        self._latest = None
        # what torch keeps is of the autoencoder's sizes: the sampling might not fit beside it, and Windows then moves
        # some of it into the computer's memory rather than say so
        devices.torch_gc()
        colours = self._plan.crop.take(base) if self._settings.keep_colors else None
        with inpainting.masks_at(self._p, self._plan, stage.size, self._originals.latent(stage.size)):
            x = run_stage(self._p, StageTask(stage, self._settings, anchor, self._plan), self._progress.sampling)
            x = soft_inpainting.as_far_as_painted(self._p, x, finish_stage(x, base, colours))
            return inpainting.keep_unmasked(self._p, x)

    def _anchor(self, latent: Tensor, stage: StagePlan) -> Tensor:
        if self._settings.anchor == LATENT:
            return make_anchor(latent, self._plan, stage)
        samples = self._decoded(latent, _stoppable(self._decoding))
        report = _stoppable(partial(self._progress.move, ENCODING))
        report(0.0)
        shown = (cropped(sample, self._plan, stage, CELL) for sample in samples)
        pixels = pixel_anchor(self._p, shown, stage.pixels, self._settings.image_upscaler, report).to(latent)
        if self._settings.anchor == PIXELS:
            return pixels
        before = self._plan.stages[stage.number - 2].scale if stage.number > 1 else 1.0
        return mix_anchors(pixels, make_anchor(latent, self._plan, stage), stage.scale / before)

    def _decoded(self, latent: Tensor, report: Report) -> Any:
        """Returns the images of a latent, which are kept until the next stage begins to sample."""
        if self._latest is None or self._latest[0] is not latent:
            self._latest = latent, coding.decode(self._p, latent, report)
            self._keep_colors(*self._latest)
        return self._latest[1]

    def _keep_colors(self, latent: Tensor, samples: Any) -> None:
        """Gives the decoded images of a stage's latent the base image's colors; of the base's, remembers them."""
        base = self._base
        if self._colors is None or base is None:
            return
        if latent is base:
            self._colors.remember(samples)
        else:
            self._colors.keep(samples, lambda: coding.decode(self._p, base))

    def _decode(self, latents: list[Tensor]) -> Any:
        """Decodes the last latent; where that fails, the one before, so that a finished image is not lost."""
        while len(latents) > 1:
            latent = latents.pop()
            size = latent.shape[-2], latent.shape[-1]
            try:
                decoded = self._decoded(latent, self._decoding)
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
        """Has no grid made of images of `size` cells where it would cost the images."""
        width, height = self._overlay.picture_size(self._p) or (size[1] * CELL, size[0] * CELL)
        problem = formats.grid_problem(self._p, (width, height))
        if problem:
            report_note(self._p, problem)
            self._p.do_not_save_grid = True

    def _keep_picture(self, latent: Tensor, number: int) -> None:
        """Saves and shows the image of stage `number` (0 for the base image), which another stage follows."""
        save = saves_stages(self._p, self._settings)
        shown = self._shown or (self._base_shown and not number)
        if not (save or shown):
            return
        try:
            samples = self._decoded(latent, self._decoding)
            pictures = stage_pictures(self._p, samples, number, self._total, save)
        except Exception as error:
            report_failure(self._p, f"showing {self._name(number)} failed, its image is left out", error)
            return
        if shown:
            self.pictures.extend(pictures)

    def _name(self, number: int) -> str:
        """Returns the name and size of stage `number`, or of the base image for 0."""
        height, width = self._plan.stages[number - 1].pixels if number else (n * CELL for n in self._plan.base)
        return f"{f'stage {number} of {self._total}' if number else BASE_IMAGE} ({width}x{height})"

    def _stopped(self, number: int) -> None:
        report_stop(self._p, f"in {self._name(number)}", self._name(number - 1))

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


def shows_stages(p: Any, settings: Settings) -> bool:
    """Returns whether the stages' images come back too.

    A script lays out what it gets: Prompt matrix fails at an image too many, and all of them are lost.
    """
    return bool(settings.return_stages and not refusals.of_job(p).script)


def shows_base(p: Any, settings: Settings) -> bool:
    """Returns whether the page shows the base image behind the final one.

    The API returns what it was asked for. A script lays out what it gets. An upload that is the base image is on the
    page already.
    """
    drawn = getattr(p, "init_images", None) is None or settings.img2img_first or inpainting.is_inpainting(p)
    wanted = drawn and not p.is_api and options.value(options.SHOW_BASE, True)
    return bool(wanted and not refusals.of_job(p).script)


def saves_stages(p: Any, settings: Settings) -> bool:
    """Returns whether the stages' images are saved; a request that saves nothing saves none of them."""
    return bool((settings.save_stages or options.value(options.SAVE_STAGES, False)) and p.save_samples())
