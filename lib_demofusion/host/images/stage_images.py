"""Creates and saves the images of the stages before the last, each with its own infotext."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from modules import images, processing, shared
from PIL import Image
from torch import Tensor

from lib_demofusion.host.common.messages import KEY_STOPPED


@dataclass(frozen=True)
class StageImage:
    """An image of a stage before the last, with its infotext."""

    image: Image.Image
    infotext: str
    index: int
    """The image's index in the batch."""
    own: Mapping[str, str]
    """Infotext entries that apply only to this stage."""


def stage_images(p: Any, samples: Any, number: int, total: int, save: bool) -> list[StageImage]:
    """Creates the images of stage `number` of `total` (0 is the base image), and saves them if `save` is set.

    `samples` is the result of `coding.decode`. If the host saves no images, these are not saved either.
    """
    height, width = samples[0].shape[-2:]
    name = f"{number} of {total}" if number else "base image"
    own = {"DemoFusion stage": name, "DemoFusion size": f"{width} x {height}"}
    pictures = []
    for index, sample in enumerate(samples):
        image = to_image(sample)
        with _extra_params(p, own):
            text = _infotext(p, image, index)
            if save and p.save_samples():
                _save(p, image, index, text, f"-demofusion-{width}x{height}")
        pictures.append(StageImage(image, text, index, own))
    return pictures


def with_later_reports(p: Any, picture: StageImage) -> StageImage:
    """Updates the image's infotext with notes and errors that were reported after the image was created.

    A file that is already saved keeps its old infotext.
    """
    with _extra_params(p, picture.own):
        # an interruption affects only the final image
        p.extra_generation_params.pop(KEY_STOPPED, None)
        return replace(picture, infotext=_infotext(p, picture.image, picture.index))


def _infotext(p: Any, image: Image.Image, index: int) -> str:
    """Creates the infotext of image `index` of the batch and attaches it to the image."""
    text = processing.create_infotext(
        p, p.prompts, p.seeds, p.subseeds, index=index, all_negative_prompts=p.negative_prompts
    )
    if shared.opts.enable_pnginfo:
        image.info["parameters"] = text
    return text


def to_image(sample: Tensor) -> Image.Image:
    """Converts a decoded sample (3, H, W) in -1..1 to an image. Rounds down like the host."""
    pixels = (sample.float() * 0.5 + 0.5).clamp(0, 1).mul(255).to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())


def _save(p: Any, image: Image.Image, index: int, text: str, suffix: str) -> None:
    images.save_image(
        image,
        p.outpath_samples,
        "",
        p.seeds[index],
        p.prompts[index],
        shared.opts.samples_format,
        info=text,
        p=p,
        suffix=suffix,
    )


@contextmanager
def _extra_params(p: Any, own: Mapping[str, str]) -> Iterator[None]:
    before = p.extra_generation_params
    p.extra_generation_params = {**before, **own}
    try:
        yield
    finally:
        p.extra_generation_params = before
