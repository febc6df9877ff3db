"""The anchor of a stage by way of the picture: decoded, enlarged and encoded again."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from modules import images, shared
from PIL import Image
from torch import Tensor

from lib_demofusion.host.base_picture import encode
from lib_demofusion.host.output import decode
from lib_demofusion.plan import Plan, StagePlan
from lib_demofusion.settings import LANCZOS
from lib_demofusion.stage import cropped
from lib_demofusion.views import Size


def host_upscalers() -> list[str]:
    """Returns the names of the webui's upscalers; they are loaded after its scripts."""
    return [upscaler.name for upscaler in shared.sd_upscalers if upscaler.name != "None"]


def pixel_anchor(p: Any, latent: Tensor, plan: Plan, stage: StagePlan, upscaler: str = LANCZOS) -> Tensor:
    """Returns the latent (B, C, h, w) of the stage before, enlarged to the size of `stage` as a picture.

    An enlarged latent decodes to a blur with streaks, which a stage that begins below full noise keeps. Raises what
    the host raises when it decodes or encodes.
    """
    samples = decode(p, cropped(latent, plan, stage))
    return encode(p, (enlarged(sample, stage.pixels, upscaler) for sample in samples)).to(latent)


def enlarged(picture: Tensor, size: Size, upscaler: str) -> Tensor:
    """Returns a picture (3, H, W) in -1..1 enlarged to (height, width) by an upscaler of the webui's."""
    if upscaler == LANCZOS:
        return lanczos(picture, size)
    pixels = (picture.float().cpu().permute(1, 2, 0).numpy() * 127.5 + 127.5).round().clip(0, 255)
    image = Image.fromarray(pixels.astype(np.uint8))
    image = images.resize_image(0, image, size[1], size[0], upscaler_name=upscaler).convert("RGB")
    return torch.from_numpy(np.asarray(image, np.float32)).permute(2, 0, 1) / 127.5 - 1


def lanczos(picture: Tensor, size: Size) -> Tensor:
    """Returns a picture (3, H, W) enlarged to (height, width), channel by channel without rounding to 8 bits."""
    height, width = size
    planes = (Image.fromarray(plane) for plane in picture.float().cpu().numpy())
    enlarged = [np.asarray(plane.resize((width, height), Image.Resampling.LANCZOS)) for plane in planes]
    return torch.from_numpy(np.stack(enlarged))
