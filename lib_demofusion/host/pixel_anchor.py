"""The anchor of a stage by way of the picture: decoded, enlarged and encoded again."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lib_demofusion.host.base_picture import encode
from lib_demofusion.host.output import decode
from lib_demofusion.plan import Plan, StagePlan
from lib_demofusion.stage import cropped
from lib_demofusion.views import Size


def pixel_anchor(p: Any, latent: Tensor, plan: Plan, stage: StagePlan) -> Tensor:
    """Returns the latent (B, C, h, w) of the stage before, enlarged to the size of `stage` as a picture.

    An enlarged latent decodes to a blur with streaks, which a stage that begins below full noise keeps. Raises what
    the host raises when it decodes or encodes.
    """
    samples = decode(p, cropped(latent, plan, stage))
    return encode(p, (lanczos(sample, stage.pixels) for sample in samples)).to(latent)


def lanczos(picture: Tensor, size: Size) -> Tensor:
    """Returns a picture (3, H, W) enlarged to (height, width), channel by channel without rounding to 8 bits."""
    height, width = size
    planes = (Image.fromarray(plane) for plane in picture.float().cpu().numpy())
    enlarged = [np.asarray(plane.resize((width, height), Image.Resampling.LANCZOS)) for plane in planes]
    return torch.from_numpy(np.stack(enlarged))
