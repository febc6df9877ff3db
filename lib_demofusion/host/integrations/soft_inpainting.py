"""The webui's own Soft inpainting (extensions-builtin/soft-inpainting), at the size of a stage.

While a stage is sampled it acts by itself, through the webui's hook on every blend with the mask. Two things are left
to do. It has no final blend: it compares the result with the original's latent, and pastes the original's image
wherever little has changed. What was not to be painted must therefore stay the original's latent to the last digit. And
what it pastes it makes behind the base pass, at the base's size; it is asked again at the end.
"""

from __future__ import annotations

from typing import Any

import torch
from modules import images, scripts, shared
from PIL import Image
from torch import Tensor

from lib_demofusion.host.common.scoped import replaced
from lib_demofusion.host.pictures.coding import encode
from lib_demofusion.host.pictures.inpainting import is_inpainting, resized
from lib_demofusion.host.pictures.pixel_anchor import to_tensor
from lib_demofusion.method.plan import CELL, Plan
from lib_demofusion.method.views import Size

TITLE, ENABLED_KEY = "Soft Inpainting", "Soft inpainting enabled"

LATENT_RESIZE = 3
"""The resize mode in which the host enlarges the latent instead of the image."""


def is_active(p: Any) -> bool:
    """Returns whether the job is inpainted softly."""
    return str(p.extra_generation_params.get(ENABLED_KEY)) == "True" and is_inpainting(p)


def as_far_as_painted(p: Any, x: Tensor, changed: Tensor) -> Tensor:
    """Returns `changed` in place of x, both (B, C, h, w); in soft inpainting, only as far as the mask says.

    The job's mask must have the size of the stage.
    """
    return torch.lerp(x, changed, p.nmask.to(x)) if is_active(p) else changed


class Originals:
    """The source images of a job that is inpainted softly, at the sizes of the stages."""

    def __init__(self, p: Any, plan: Plan):
        self._p = p
        self._plan = plan
        self._place = p.paste_to
        self._latents: dict[Size, Tensor] = {}

    def latent(self, size: Size) -> Tensor | None:
        """Returns their latent (B, C, h, w) at a size in cells, or None in any other job.

        An enlarged latent decodes to a blur, which would show wherever the original shines through.
        """
        p = self._p
        if not is_active(p):
            return None
        if size not in self._latents:
            latent = encode(p, map(to_tensor, self._shown(size))).to(p.init_latent)
            self._latents[size] = latent.expand(len(p.init_latent), -1, -1, -1)
        return self._latents[size]

    def remake_overlay(self, latent: Tensor) -> None:
        """Has the script look at a stage's latent (B, C, h, w) as if it were that of a pass of its size.

        The job's mask and original latent must be those of this size, and so must its `paste_to`.
        """
        p = self._p
        own = next((entry for entry in p.scripts.alwayson_scripts if entry.title() == TITLE), None)
        if own is None or not is_active(p):
            return
        size = latent.shape[-2], latent.shape[-1]
        args = p.script_args[own.args_from : own.args_to]
        height, width = (n * CELL for n in size)
        with replaced(p, height=height, width=width, init_images=self._overlaid(size)):
            own.post_sample(p, scripts.PostSampleArgs(latent), *args)

    def _overlaid(self, size: Size) -> list[Image.Image]:
        """Returns what the result is pasted into: the whole images, enlarged like the part that is painted."""
        if not self._place:
            return self._shown(size)
        return [resized(image, None, self._scale(size)) for image in self._flat()]

    def _shown(self, size: Size) -> list[Image.Image]:
        """Returns what a stage of `size` cells shows of them, cut and resized as the host does it for the base."""
        height, width = (n * CELL for n in size)
        if self._place:
            left, top, across, down = self._place
            box = left, top, left + across, top + down
            return [images.resize_image(2, image.crop(box), width, height) for image in self._flat()]
        scale, base, crop = self._scale(size), self._plan.base, self._plan.crop
        whole = [round(n * CELL * k) for n, k in zip(base[::-1], scale)]
        left, top = (round(n * CELL * k) for n, k in zip((crop.left, crop.top), scale))
        mode = 0 if self._p.resize_mode == LATENT_RESIZE else self._p.resize_mode
        enlarged = (images.resize_image(mode, image, *whole) for image in self._flat())
        return [image.crop((left, top, left + width, top + height)) for image in enlarged]

    def _flat(self) -> list[Image.Image]:
        return [images.flatten(image, shared.opts.img2img_background_color) for image in self._p.init_images]

    def _scale(self, size: Size) -> tuple[float, float]:
        return size[1] / self._plan.crop.width, size[0] / self._plan.crop.height
