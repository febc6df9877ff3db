"""The webui's own Soft inpainting: its overlay is made again for the size of the last stage.

In the stages it acts by itself, through the webui's hook on every blend with the mask. What it pastes a picture onto it
makes behind the base pass, from the base's latent and at the base's size (extensions-builtin/soft-inpainting).
"""

from __future__ import annotations

from typing import Any

from modules import images, scripts
from torch import Tensor

from lib_demofusion.host.inpainting import is_inpainting, masks_at, resized
from lib_demofusion.host.scoped import replaced
from lib_demofusion.plan import CELL, Plan

TITLE, ENABLED_KEY = "Soft Inpainting", "Soft inpainting enabled"


def is_active(p: Any) -> bool:
    """Returns whether the job is inpainted softly."""
    return str(p.extra_generation_params.get(ENABLED_KEY)) == "True" and is_inpainting(p)


def remake_overlay(p: Any, plan: Plan, latent: Tensor) -> None:
    """Has the script look at the last stage's latent (B, C, h, w) as if it were that of a pass of its size.

    The job's `paste_to` must already be that of this size.
    """
    own = next((entry for entry in p.scripts.alwayson_scripts if entry.title() == TITLE), None)
    if own is None or not is_active(p):
        return
    size = latent.shape[-2], latent.shape[-1]
    args = p.script_args[own.args_from : own.args_to]
    shown = replaced(p, height=size[0] * CELL, width=size[1] * CELL, init_images=_pictures(p, plan, size))
    with masks_at(p, plan, size), shown:
        own.post_sample(p, scripts.PostSampleArgs(latent), *args)


def _pictures(p: Any, plan: Plan, size: tuple[int, int]) -> list[Any]:
    """Returns the source pictures as large as a stage of `size` cells shows them, or all of them where it is a part."""
    crop = plan.crop
    down, across = size[0] / crop.height, size[1] / crop.width
    if p.paste_to is not None:
        return [resized(image, None, (across, down)) for image in p.init_images]
    width, height = (round(n * CELL * scale) for n, scale in zip(plan.base[::-1], (across, down)))
    left, top = round(crop.left * CELL * across), round(crop.top * CELL * down)
    box = left, top, left + size[1] * CELL, top + size[0] * CELL
    return [images.resize_image(p.resize_mode, image, width, height).crop(box) for image in p.init_images]
