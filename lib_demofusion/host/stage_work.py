"""The operations of the stages in the webui: decoding, upscaling, encoding and sampling."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from modules import devices
from torch import Tensor

from lib_demofusion.host.integrations import soft_inpainting
from lib_demofusion.host.pictures import coding, inpainting
from lib_demofusion.host.pictures.base_colors import BaseColors, known_base
from lib_demofusion.host.pictures.pixel_anchor import enlarged
from lib_demofusion.host.pictures.vae import Report
from lib_demofusion.host.progress.bar import DECODING, ENCODING, Progress
from lib_demofusion.host.sampling.stage_sampler import StageTask, run_stage, stop_requested
from lib_demofusion.method.plan import CELL, Plan, StagePlan
from lib_demofusion.method.stage import cropped
from lib_demofusion.method.stages import Finish, StageStopped
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
        """Sets the base latent (B, C, h, w). `images` are its DecodedSamples, if they are decoded already."""
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
        """Decodes the images of a latent. Raises StageStopped if the user stops."""
        report = _stoppable(partial(self._progress.move, DECODING))
        return list(self.decoded(latent, report))

    def decoded(self, latent: Tensor, report: Report | None = None) -> Any:
        """Decodes a latent to the webui's DecodedSamples. The images are cached until a stage is sampled."""
        if self._latest is None or self._latest[0] is not latent:
            report = report or partial(self._progress.move, DECODING)
            self._latest = latent, coding.decode(self._p, latent, report)
            self._keep_colors(*self._latest)
        return self._latest[1]

    def _keep_colors(self, latent: Tensor, samples: Any) -> None:
        """Matches the colors of a stage's images to the base image. Remembers the images of the base latent."""
        base = self._base
        if self._colors is None or base is None:
            return
        if latent is base:
            self._colors.remember(samples)
        else:
            self._colors.keep(samples, lambda: coding.decode(self._p, base))

    def enlarge(self, image: Tensor, stage: StagePlan) -> Tensor:
        """Crops an image to the part that the stage shows, and upscales it to the size of the stage."""
        return enlarged(self._p, cropped(image, self._plan, stage, CELL), stage.pixels, self._settings.image_upscaler)

    def encode(self, images: Iterable[Tensor]) -> Tensor:
        """Encodes images. Raises StageStopped if the user stops."""
        report = _stoppable(partial(self._progress.move, ENCODING))
        report(0.0)
        return coding.encode(self._p, images, report)

    def sample(self, stage: StagePlan, anchor: Tensor, finish: Finish) -> Tensor:
        """Samples a stage with a sampler of the webui, and keeps the original where nothing was painted."""
        # the decoded images must not use memory while the stage is sampled
        self._latest = None
        # torch's cache has the sizes of the autoencoder. The sampling might not fit as well, and Windows would then
        # move data to the computer's memory without an error
        devices.torch_gc()
        with inpainting.masks_at(self._p, self._plan, stage.size, self.originals.latent(stage.size)):
            x = run_stage(self._p, StageTask(stage, self._settings, anchor, self._plan), self._progress.sampling)
            return inpainting.keep_unmasked(self._p, soft_inpainting.as_far_as_painted(self._p, x, finish(x)))


def _stoppable(report: Report) -> Report:
    """Returns a report that raises StageStopped after the user has asked to stop."""

    def report_unless_stopped(share: float) -> None:
        if stop_requested():
            raise StageStopped
        report(share)

    return report_unless_stopped
