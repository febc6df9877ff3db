"""Runs the webui's own Soft inpainting (extensions-builtin/soft-inpainting) at the size of a stage.

Before a stage, this file encodes the source images at the size of the stage (`Originals.latent`). While the stage is
sampled, it has nothing to do: the webui calls the script of Soft inpainting whenever it blends x with their
latent by the mask. Two tasks remain after the sampling:

* Keep the latent outside the mask unchanged. The script compares the final latent with the latent of the source
  image, and pastes the source image where these latents hardly differ. After the sampling, a stage may therefore
  change the latent only inside the mask (`limit_to_mask`).
* Create the overlay again. The overlay is the image that the webui pastes over the result. The script has created it at
  the size of the base image. `Originals.remake_overlay` calls the script's hook again after the last stage, at the size
  of that stage.
"""

from __future__ import annotations

from typing import Any

import torch
from modules import images, scripts, shared
from PIL import Image
from torch import Tensor

from lib_demofusion.host.common import replaced
from lib_demofusion.host.images.coding import encode
from lib_demofusion.host.images.inpainting import is_inpainting, resized
from lib_demofusion.host.images.upscaling import to_tensor
from lib_demofusion.method.plan import CELL, Plan
from lib_demofusion.method.views import Size

TITLE, ENABLED_KEY = "Soft Inpainting", "Soft inpainting enabled"

LATENT_RESIZE = 3
"""The resize mode in img2img that resizes the latent instead of the image."""


def is_active(p: Any) -> bool:
    """Returns whether the job uses Soft inpainting."""
    return str(p.extra_generation_params.get(ENABLED_KEY)) == "True" and is_inpainting(p)


def limit_to_mask(p: Any, x: Tensor, changed: Tensor) -> Tensor:
    """Limits a change of a latent to the painted area if the job uses Soft inpainting.

    `x` (B, C, h, w) is the latent before the change, and `changed` (B, C, h, w) the latent after it. Returns `changed`
    in the painted area and `x` elsewhere, blended by the mask of the job. The mask must have the size of the stage.
    Without Soft inpainting, returns `changed` everywhere.
    """
    return torch.lerp(x, changed, p.nmask.to(x)) if is_active(p) else changed


class Originals:
    """The source images of a job with Soft inpainting, at the sizes of the stages."""

    def __init__(self, p: Any, plan: Plan):
        self._p = p
        self._plan = plan
        self._place = p.paste_to
        self._latents: dict[Size, Tensor] = {}

    def latent(self, size: Size) -> Tensor | None:
        """Encodes the source images, resized to `size` cells, to a latent (B, C, h, w).

        Returns None if the job does not use Soft inpainting. This function does not upscale the webui's own latent of
        the source images, because an upscaled latent decodes to a blurred image. The blur would be visible at the soft
        border of the mask.
        """
        p = self._p
        if not is_active(p):
            return None
        if size not in self._latents:
            latent = encode(p, map(to_tensor, self._shown(size))).to(p.init_latent)
            self._latents[size] = latent.expand(len(p.init_latent), -1, -1, -1)
        return self._latents[size]

    def remake_overlay(self, latent: Tensor) -> None:
        """Makes the script create the overlay again, at the size of a stage's latent (B, C, h, w).

        Before the call, the mask, the original latent and `paste_to` of the job must have the size of the stage.
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
        """Returns the images into which the webui pastes the result.

        With the inpaint area 'Only masked', these are the whole source images, enlarged by the same factor as the
        painted part. Otherwise, they are the images from `_shown`.
        """
        if not self._place:
            return self._shown(size)
        return [resized(image, None, self._scale(size)) for image in self._flat()]

    def _shown(self, size: Size) -> list[Image.Image]:
        """Returns the part of the source images that a stage shows, at the size of the stage, `size` cells.

        The crop and the resize mode are the same as in the webui's own pass. Only the mode LATENT_RESIZE is replaced by
        mode 0, which stretches the image.
        """
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
        """Returns the factors for width and height from the cropped base image to a stage of `size` cells."""
        return size[1] / self._plan.crop.width, size[0] / self._plan.crop.height
