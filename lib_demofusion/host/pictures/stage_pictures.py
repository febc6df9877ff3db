"""The images of the stages before the last: made, named in their own text, and saved."""

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
class StagePicture:
    """An image of a stage before the last, with the text that belongs to it."""

    image: Image.Image
    infotext: str
    index: int
    """Its place in the batch."""
    own: Mapping[str, str]
    """Infotext entries of this stage alone."""


def stage_pictures(p: Any, samples: Any, number: int, total: int, save: bool) -> list[StagePicture]:
    """Returns the images of stage `number` of `total` (0 for the base image), and saves them by the host's rules.

    `samples` are what `coding.decode` returned.
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
        pictures.append(StagePicture(image, text, index, own))
    return pictures


def with_later_reports(p: Any, picture: StagePicture) -> StagePicture:
    """Writes the image's text anew, with the notes and errors that the iteration reported after the image was made.

    A file that is saved already keeps its text.
    """
    with _extra_params(p, picture.own):
        # an interruption concerns the final image alone
        p.extra_generation_params.pop(KEY_STOPPED, None)
        return replace(picture, infotext=_infotext(p, picture.image, picture.index))


def _infotext(p: Any, image: Image.Image, index: int) -> str:
    """Returns the infotext of the image at a place in the batch, and attaches it to the image."""
    text = processing.create_infotext(
        p, p.prompts, p.seeds, p.subseeds, index=index, all_negative_prompts=p.negative_prompts
    )
    if shared.opts.enable_pnginfo:
        image.info["parameters"] = text
    return text


def to_image(sample: Tensor) -> Image.Image:
    """Returns the image of a decoded sample (3, H, W) in [-1, 1], rounded down as the host does."""
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
