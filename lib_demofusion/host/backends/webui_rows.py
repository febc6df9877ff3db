"""Determines how the webui orders the rows that it creates from x for conds and unconds."""

from __future__ import annotations

from typing import Any

from modules import script_callbacks
from modules.sd_samplers_cfg_denoiser import CFGDenoiser
from torch import Tensor


def repeated_images(cls: type, x: Tensor, cond: Any) -> int:
    """Returns how many images repeat in the rows that the host creates from x (B, C, H, W), or 0 if unknown.

    The host's CFGDenoiser creates one row for each prompt of each image, image by image, and then all images again for
    the uncond. If each image has one prompt, the rows repeat the images in the same order. This is unknown if an
    extension can change single rows in a callback, or has replaced `forward` of the class `cls`.
    """
    forward = getattr(cls, "forward", None)
    if getattr(forward, "__globals__", {}).get("__name__") != CFGDenoiser.__module__:
        return 0
    if script_callbacks.callback_map["callbacks_cfg_denoiser"]:
        return 0
    prompts = getattr(cond, "batch", None)
    one_each = prompts is not None and all(len(of_image) == 1 for of_image in prompts)
    return len(x) if one_each or len(x) == 1 else 0
