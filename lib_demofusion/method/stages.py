"""Runs the stages one after the other.

A host implements the operations of a stage (`StageHost`). It can also run its own code between two stages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Generic, Protocol, TypeVar

from torch import Tensor

from lib_demofusion.method.plan import Plan, StagePlan
from lib_demofusion.method.stage import finish_stage, make_anchor, mix_anchors
from lib_demofusion.settings.fields import LATENT, PIXELS, Settings

Image = TypeVar("Image")
"""The host's own type for a decoded image."""

Finish = Callable[[Tensor], Tensor]
"""A function that returns a sampled latent after matching its statistics to the base latent (see `finish_stage`)."""


class StageStopped(Exception):
    """Raised if the user has asked to stop (see `StageHost.stopped`)."""


class StageHost(Protocol, Generic[Image]):
    """The operations that a stage needs. Latents are (B, C, h, w)."""

    def stopped(self) -> bool:
        """Returns whether the user has asked to stop."""
        ...

    def decode(self, latent: Tensor) -> Iterable[Image]:
        """Decodes a latent to its images."""
        ...

    def enlarge(self, image: Image, stage: StagePlan) -> Image:
        """Crops the image of the previous stage to the part that `stage` shows, and upscales it to `stage.pixels`."""
        ...

    def encode(self, images: Iterable[Image]) -> Tensor:
        """Encodes images to one latent with one row per image.

        `images` can be an iterator, so that only one enlarged image is in memory at a time.
        """
        ...

    def sample(self, stage: StagePlan, anchor: Tensor, finish: Finish) -> Tensor:
        """Samples a stage from its anchor. Returns the result of `finish` for the sampled latent.

        The anchor and the result have the size of the stage.
        """
        ...


def run_stages(host: StageHost[Image], plan: Plan, settings: Settings, base: Tensor) -> Iterator[Tensor]:
    """Samples the stages of `plan`, starting from the base latent (B, C, h, w). Yields the latent of each stage.

    The function is a generator, so a stage runs only when its latent is requested. Raises StageStopped if the user
    has asked to stop before a stage begins. Exceptions of the host are passed on, also StageStopped.
    """
    colors = plan.crop.take(base) if settings.keep_colors else None

    def finish(x: Tensor) -> Tensor:
        return finish_stage(x, base, colors)

    latent = base
    for stage in plan.stages:
        if host.stopped():
            raise StageStopped
        latent = host.sample(stage, stage_anchor(host, latent, (plan, stage), settings), finish)
        yield latent


def stage_anchor(host: StageHost[Image], latent: Tensor, place: tuple[Plan, StagePlan], settings: Settings) -> Tensor:
    """Returns the anchor of a stage: the latent of the previous stage, upscaled according to the field Upscaler.

    `place` contains the plan and the stage. An upscaled latent decodes to a blurred image with streaks. The streaks
    remain in the result, unless the stage begins at full noise. Upscaling the decoded image instead gives a sharper
    anchor. If `settings.anchor` is MIXED, the two kinds of anchors are combined (see `mix_anchors`).
    """
    plan, stage = place
    if settings.anchor == LATENT:
        return make_anchor(latent, plan, stage)
    images = host.decode(latent)
    pixels = host.encode(host.enlarge(image, stage) for image in images).to(latent)
    if settings.anchor == PIXELS:
        return pixels
    before = plan.stages[stage.number - 2].scale if stage.number > 1 else 1.0
    return mix_anchors(pixels, make_anchor(latent, plan, stage), stage.scale / before)
