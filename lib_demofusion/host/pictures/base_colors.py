"""Keeps the base image's colors in the decoded images of the stages (the field "Keep colors")."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from modules import images, shared
from torch import Tensor

from lib_demofusion.host.common.messages import report_failure
from lib_demofusion.host.pictures import inpainting
from lib_demofusion.host.pictures.coding import as_picture
from lib_demofusion.host.pictures.pixel_anchor import to_tensor
from lib_demofusion.method.colors import match_colors_
from lib_demofusion.method.plan import CELL, Plan

LATENT_RESIZE = 3
"""The resize mode of img2img that enlarges the latent instead of the image."""

HALF_A_LEVEL = 1 / 255
"""Half a step of an 8-bit value, on the scale of -1 to 1."""


class BaseColors:
    """The base images of one iteration. The images of the stages keep their colors."""

    def __init__(self, p: Any, plan: Plan):
        self._p = p
        self._plan = plan
        self._base: list[Tensor] | None = None

    def remember(self, pictures: Iterable[Tensor]) -> None:
        """Crops the base images, each (3, H, W) in -1..1, to the stages' area and stores them once."""
        if self._base is None:
            crop = self._plan.crop.times(CELL)
            self._base = [crop.take(as_picture(picture)).float().cpu().clone() for picture in pictures]

    def keep(self, pictures: Any, decode_base: Callable[[], Iterable[Tensor]]) -> None:
        """Gives the decoded images of a stage, each (3, H, W), the colors of the base image, in place.

        `decode_base` returns the base images. It is called only if they are not known yet. An error is reported and
        not raised.
        """
        try:
            if self._base is None:
                self.remember(decode_base())
            painted = inpainting.painted(self._p, self._plan)
            for index, base in enumerate(self._base or ()):
                if pictures[index].dtype == torch.bfloat16:
                    # bfloat16 has only 8 bits of precision
                    pictures[index] = pictures[index].float()
                match_colors_(as_picture(pictures[index]), base, painted)
        except Exception as error:
            report_failure(self._p, '"Keep colors" failed, the image has the colors that the model gave it', error)


def known_base(p: Any, samples: Any, redrawn: bool) -> list[Tensor] | None:
    """Returns the base images, each (3, H, W) in -1..1, if the job has them without decoding a latent, else None.

    `samples` are the host's latents, or images after hires fix. If img2img does not redraw the uploaded image, the base
    is the uploaded image, resized like the host does.
    """
    if getattr(samples, "already_decoded", False):
        return [as_picture(sample) for sample in samples]
    uploads = getattr(p, "init_images", None)
    if redrawn or not uploads or inpainting.is_inpainting(p) or p.resize_mode == LATENT_RESIZE:
        return None
    flat = (images.flatten(image, shared.opts.img2img_background_color) for image in uploads)
    # the host rounds the result down to 8 bits, which lowers the mean by half a level
    shown = [to_tensor(images.resize_image(p.resize_mode, image, p.width, p.height)) + HALF_A_LEVEL for image in flat]
    return shown if len(shown) > 1 else shown * len(samples)
