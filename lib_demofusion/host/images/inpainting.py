"""Resizes the mask and the original latent of an inpainting job for each stage, and the overlay for the result.

The original latent, `p.init_latent`, is the encoded upload. The webui's mask `p.mask` is 1 where the original is kept,
and `p.nmask` is 1 where the model paints.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from modules import scripts
from PIL import Image
from torch import Tensor

from lib_demofusion.host.common import replaced
from lib_demofusion.method.plan import CELL, Plan
from lib_demofusion.method.views import Size
from lib_demofusion.settings.errors import SettingsError

OVERLAY = ("overlay_images", "mask_for_overlay", "paste_to")
"""Attributes of the request with which the webui pastes the upload, except its painted area, over the final image.

See apply_overlay in modules/processing.py.
"""


def is_inpainting(p: Any) -> bool:
    """Returns whether the job has a mask."""
    return getattr(p, "mask", None) is not None


def check_shape(p: Any, plan: Plan) -> None:
    """Raises SettingsError if the inpaint area is 'Only masked' and the plan crops the base image.

    The webui pastes the result into the whole upload, at the place of the masked area. A cropped result does not fit.
    """
    if is_inpainting(p) and p.paste_to is not None and (plan.crop.height, plan.crop.width) != plan.base:
        width, height = plan.base[1] * CELL, plan.base[0] * CELL
        allowed = f"a size with the aspect ratio of {width}x{height}, or the inpaint area 'Whole picture'"
        raise SettingsError("width", plan.pixels[1], allowed)


@contextmanager
def masks_at(p: Any, plan: Plan, size: Size, original: Tensor | None = None) -> Iterator[None]:
    """Replaces the job's mask and original latent inside the block with versions of `size`, a stage's size in cells.

    The mask is cropped as planned and resized. `original` (B, C, h, w) is the original latent at this size. If
    `original` is None, the job's own original latent is cropped as planned and enlarged. The webui uses the mask and
    the latent in every call of its denoiser, so both need the size of x.
    """
    if not is_inpainting(p):
        yield
        return
    mode = "nearest" if p.mask_round else "bilinear"
    mask, nmask = (_resized(plan.crop.take(m), size, mode) for m in (p.mask, p.nmask))
    if original is None:
        original = F.interpolate(plan.crop.take(p.init_latent), size, mode="bicubic", align_corners=False)
    with replaced(p, mask=mask, nmask=nmask, init_latent=original):
        yield


def painted(p: Any, plan: Plan) -> Tensor | None:
    """Returns the mask of the base latent (1, h, w), cropped as planned, or None without a mask.

    The mask is 1 in the painted area and 0 outside. Values in between are possible.
    """
    if not is_inpainting(p):
        return None
    mask = plan.crop.take(p.nmask)
    return mask.float().cpu().reshape(-1, *mask.shape[-2:])[:1]


def _resized(mask: Tensor, size: Size, mode: str) -> Tensor:
    """Resizes a mask (C, h, w), or in Forge Neo (1, C, h, w)."""
    resized: Tensor = F.interpolate(mask.reshape(-1, *mask.shape[-3:]), size, mode=mode)
    return resized.reshape(*mask.shape[:-2], *size)


def keep_unmasked(p: Any, x: Tensor) -> Tensor:
    """Replaces the unpainted area of x (B, C, h, w) with the original latent, like the webui after its own pass.

    Calls the hook `on_mask_blend`, in which scripts can change the result (modules/processing.py).
    """
    if not is_inpainting(p):
        return x
    blended = x * p.nmask + p.init_latent * p.mask
    if p.scripts is None:
        return blended
    blend = scripts.MaskBlendArgs(x, p.nmask, p.init_latent, p.mask, blended)
    p.scripts.on_mask_blend(p, blend)
    return blend.blended_latent


class Overlay:
    """Stores the overlay of a job (see OVERLAY), resizes it for the result of the stages, and restores it."""

    def __init__(self, p: Any):
        self._own = {name: getattr(p, name) for name in OVERLAY if hasattr(p, name)}

    def restore(self, p: Any) -> None:
        """Restores the job's own overlay."""
        for name, value in self._own.items():
            setattr(p, name, value)

    @staticmethod
    def picture_size(p: Any) -> tuple[int, int] | None:
        """Returns the width and height of the final image if the inpaint area is 'Only masked', else None.

        The webui then pastes the result into a larger image.
        """
        pasted = getattr(p, "paste_to", None) and getattr(p, "overlay_images", None)
        return pasted[0].size if pasted else None

    def resize(self, p: Any, plan: Plan, size: Size) -> None:
        """Resizes the job's overlay for a result of `size` cells.

        If the inpaint area is 'Only masked', the result is a part of the final image. The overlay, which has the size
        of the final image, is then enlarged by the same factor as the result. Otherwise, it is also cropped as planned.
        """
        images, mask, place = (self._own.get(name) for name in OVERLAY)
        if images is None and mask is None:
            return
        scale = size[1] / plan.crop.width, size[0] / plan.crop.height
        box = None if place else tuple(CELL * n for n in _corners(plan))
        p.overlay_images = [resized(image, box, scale) for image in images or []]
        p.mask_for_overlay = mask and resized(mask, box, scale)
        p.paste_to = place and tuple(round(n * scale[i % 2]) for i, n in enumerate(place))


def _corners(plan: Plan) -> tuple[int, int, int, int]:
    crop = plan.crop
    return crop.left, crop.top, crop.left + crop.width, crop.top + crop.height


def resized(image: Image.Image, box: Any, scale: tuple[float, float]) -> Image.Image:
    """Crops an image to `box` (left, top, right, bottom), unless `box` is None, and resizes it by `scale` (x, y).

    In RGBA images, the opacity of a pixel is its weight, so transparent pixels do not change the colors.
    """
    part = image.crop(box) if box else image
    size = round(part.width * scale[0]), round(part.height * scale[1])
    if part.mode != "RGBA":
        return part.resize(size, Image.Resampling.LANCZOS)
    return part.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA")
