"""What is known of the rows that the webui makes of x for conds and unconds."""

from __future__ import annotations

from typing import Any

from modules import script_callbacks
from modules.sd_samplers_cfg_denoiser import CFGDenoiser
from torch import Tensor


def repeated_images(cls: type, x: Tensor, cond: Any) -> int:
    """Returns how many images the host repeats in the rows that it makes of x (B, C, H, W), 0 where that is not known.

    Its CFGDenoiser of class `cls` gives every image once per prompt of its own, image by image, and then all images
    once more for the uncond: with one prompt each, the images over and over in one order. That is not certain where an
    extension may change single rows in a callback, or has put another `forward` in the place of the host's.
    """
    forward = getattr(cls, "forward", None)
    if getattr(forward, "__globals__", {}).get("__name__") != CFGDenoiser.__module__:
        return 0
    if script_callbacks.callback_map["callbacks_cfg_denoiser"]:
        return 0
    prompts = getattr(cond, "batch", None)
    one_each = prompts is not None and all(len(of_image) == 1 for of_image in prompts)
    return len(x) if one_each or len(x) == 1 else 0
