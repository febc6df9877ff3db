"""The anchor of a stage by way of the picture: decoded, enlarged and encoded again."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from modules import images, shared
from PIL import Image
from torch import Tensor

from lib_demofusion.host.pictures.base_picture import encode
from lib_demofusion.host.pictures.vae import Report
from lib_demofusion.method.plan import CELL, Plan, StagePlan
from lib_demofusion.method.stage import cropped
from lib_demofusion.method.views import Size
from lib_demofusion.settings.fields import LANCZOS


def host_upscalers() -> list[str]:
    """Returns the names of the webui's upscalers; they are loaded after its scripts."""
    return [upscaler.name for upscaler in shared.sd_upscalers if upscaler.name != "None"]


def pixel_anchor(
    p: Any, samples: Any, plan: Plan, stage: StagePlan, upscaler: str = LANCZOS, report: Report | None = None
) -> Tensor:
    """Returns the latent (B, C, h, w) of pictures of the stage before, enlarged to the size of `stage`.

    `samples` are what `output.decode` returned. An enlarged latent would decode to a blur with streaks, which a stage
    that begins below full noise keeps. Raises what the host raises when it encodes, and what `report` does.
    """
    parts = (cropped(sample, plan, stage, CELL) for sample in samples)
    return encode(p, (enlarged(part, stage.pixels, upscaler) for part in parts), report)


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
    # one by one into their place: at 16384 pixels each is a gigabyte
    enlarged = np.empty((len(picture), height, width), np.float32)
    for plane, place in zip(picture.float().cpu().numpy(), enlarged):
        place[:] = np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.LANCZOS))
    return torch.from_numpy(enlarged)
