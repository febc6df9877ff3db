"""Upscales the decoded images of the previous stage, or the base images, to the size of a stage."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from modules import images, shared
from PIL import Image
from torch import Tensor

from lib_demofusion.host.common.messages import report_note
from lib_demofusion.method.views import Size
from lib_demofusion.settings.presets import LANCZOS


def enlarged(p: Any, image: Tensor, size: Size, upscaler: str = LANCZOS) -> Tensor:
    """Upscales an image (3, H, W) in -1..1 to `size` (height, width): with `lanczos`, or with an upscaler of the webui.

    If the webui's upscaler does not work, the webui uses Lanczos and reports this only on the console. Then this
    function adds a note to the job.
    """
    if upscaler == LANCZOS:
        return lanczos(image, size)
    pixels = (image.float().cpu().permute(1, 2, 0).numpy() * 127.5 + 127.5).round().clip(0, 255)
    before = Image.fromarray(pixels.astype(np.uint8))
    after = images.resize_image(0, before, size[1], size[0], upscaler_name=upscaler).convert("RGB")
    if _needs_model(upscaler) and _is_lanczos(before, after):
        report_note(p, f"the upscaler {upscaler} does not work, so {LANCZOS} was used instead; see the console")
    return torch.from_numpy(np.asarray(after, np.float32)).permute(2, 0, 1) / 127.5 - 1


def _needs_model(upscaler: str) -> bool:
    return any(known.name == upscaler and known.data_path for known in shared.sd_upscalers)


def _is_lanczos(before: Image.Image, after: Image.Image) -> bool:
    """Returns whether `after` is `before`, enlarged with Lanczos. Returns False if the user has interrupted the job.

    The webui also uses Lanczos if an upscaler is interrupted, although the upscaler works.
    """
    if shared.state.interrupted:
        return False
    return before.resize(after.size, Image.Resampling.LANCZOS).tobytes() == after.tobytes()


def lanczos(picture: Tensor, size: Size) -> Tensor:
    """Enlarges an image (3, H, W) to (height, width) with Lanczos, channel by channel, without rounding to 8 bits."""
    height, width = size
    # writing each channel into the result needs no second copy of all channels; one channel can have more than 1 GB
    enlarged = np.empty((len(picture), height, width), np.float32)
    for plane, place in zip(picture.float().cpu().numpy(), enlarged):
        place[:] = np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.LANCZOS))
    return torch.from_numpy(enlarged)


def to_tensor(image: Image.Image) -> Tensor:
    """Converts an image to a tensor for the encoder, (3, H, W) in -1..1."""
    return torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1
