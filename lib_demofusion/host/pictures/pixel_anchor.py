"""The anchor of a stage by way of the image: decoded, enlarged and encoded again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from modules import images, shared
from PIL import Image
from torch import Tensor

from lib_demofusion.host.messages import report_note
from lib_demofusion.host.pictures.coding import encode
from lib_demofusion.host.pictures.vae import Report
from lib_demofusion.method.views import Size
from lib_demofusion.settings.presets import LANCZOS


def pixel_anchor(
    p: Any, pictures: Iterable[Tensor], size: Size, upscaler: str = LANCZOS, report: Report | None = None
) -> Tensor:
    """Returns the latent (B, C, H, W) of images (3, h, w) in -1..1, enlarged to `size`, height and width in pixels.

    An enlarged latent would decode to a blur with streaks, which a stage that begins below full noise keeps. Raises
    what the host raises when it encodes, and what `report` does.
    """

    def all_enlarged() -> Iterator[Tensor]:
        for before in pictures:
            picture, ran = enlarged(before, size, upscaler)
            if ran != upscaler:
                report_note(p, f"the upscaler {upscaler} does not work, {ran} ran in its place; see the console")
            yield picture

    return encode(p, all_enlarged(), report)


def enlarged(picture: Tensor, size: Size, upscaler: str) -> tuple[Tensor, str]:
    """Returns an image (3, H, W) in -1..1 enlarged to (height, width), and the upscaler of the webui's that did it.

    The webui goes on with Lanczos where a model is missing or broken, and tells only the console.
    """
    if upscaler == LANCZOS:
        return lanczos(picture, size), LANCZOS
    pixels = (picture.float().cpu().permute(1, 2, 0).numpy() * 127.5 + 127.5).round().clip(0, 255)
    before = Image.fromarray(pixels.astype(np.uint8))
    image = images.resize_image(0, before, size[1], size[0], upscaler_name=upscaler).convert("RGB")
    made = torch.from_numpy(np.asarray(image, np.float32)).permute(2, 0, 1) / 127.5 - 1
    return made, LANCZOS if _needs_model(upscaler) and _is_plain(before, image) else upscaler


def _needs_model(upscaler: str) -> bool:
    return any(known.name == upscaler and known.data_path for known in shared.sd_upscalers)


def _is_plain(before: Image.Image, after: Image.Image) -> bool:
    """Returns whether an image is what Lanczos makes of another; one that the user stopped always is."""
    if shared.state.interrupted:
        return False
    return before.resize(after.size, Image.Resampling.LANCZOS).tobytes() == after.tobytes()


def lanczos(picture: Tensor, size: Size) -> Tensor:
    """Returns an image (3, H, W) enlarged to (height, width), channel by channel without rounding to 8 bits."""
    height, width = size
    # one by one into their place: at 16384 pixels each is a gigabyte
    enlarged = np.empty((len(picture), height, width), np.float32)
    for plane, place in zip(picture.float().cpu().numpy(), enlarged):
        place[:] = np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.LANCZOS))
    return torch.from_numpy(enlarged)


def to_tensor(image: Image.Image) -> Tensor:
    """Returns an image as the encoder takes it, (3, H, W) in -1..1."""
    return torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1
