"""Returns the latents and pixels of the base images, and applies their colors to the stages ("Keep colors")."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from modules import devices, images, processing, shared
from torch import Tensor

from lib_demofusion.host.backends import host
from lib_demofusion.host.common import replaced
from lib_demofusion.host.common.messages import report_failure
from lib_demofusion.host.images import inpainting
from lib_demofusion.host.images.coding import (
    as_image,
    as_latent,
    check_hires_image,
    check_model_output,
    checked_latent,
    decode,
    encode,
)
from lib_demofusion.host.images.upscaling import to_tensor
from lib_demofusion.method.colors import match_colors_
from lib_demofusion.method.plan import CELL, Plan
from lib_demofusion.method.views import Size

UPLOAD_SEED = 0
"""Seed of the VAE encoder's random sample if the upload is the base image. Every job and every image uses this seed."""


def base_latent(p: Any, samples: Any) -> Tensor:
    """Returns the base latent (B, C, h, w) in float32. `samples` are latents, or decoded images after hires fix.

    Encodes the images of hires fix. Raises NansException if an image of hires fix contains NaN, or if a base latent or
    the latent of the upload contains NaN or infinity, so that no stage runs with them.
    """
    if getattr(samples, "already_decoded", False):
        for sample in samples:
            check_hires_image(as_image(sample))
        return encode(p, samples)
    if getattr(p, "init_latent", None) is not None:
        checked_latent(p.init_latent)
    check_model_output(samples)
    return as_latent(host().family(p.sd_model).form.to_method(samples))


def base_size(p: Any, samples: Any) -> Size:
    """Returns the height and width of the base image in cells. `samples` are latents, or images after hires fix."""
    if getattr(samples, "already_decoded", False):
        return samples[0].shape[-2] // CELL, samples[0].shape[-1] // CELL
    latent = host().family(p.sd_model).form.to_method(samples)
    return latent.shape[-2], latent.shape[-1]


def base_images(p: Any, samples: Any, checkpoint: Any) -> Any:
    """Returns the decoded base images, or None if the base latents are to be decoded later, with the stages' VAE.

    After hires fix, `samples` are images already. `checkpoint` is the checkpoint that was loaded when the job began. If
    another one is loaded now, the base pass ended with a refiner. Only the refiner's VAE can decode the latents
    correctly, so they are decoded here, before the refiner is unloaded for the stages.
    """
    if getattr(samples, "already_decoded", False):
        return samples
    return decode(p, samples) if shared.sd_model.sd_checkpoint_info != checkpoint else None


def own_generators() -> Any:
    """Returns a context that restores the state of torch's global random generators (CPU and CUDA) when it ends.

    The VAE encoder of the next img2img job draws from these generators. The stages must not change this encoder's
    result.
    """
    return torch.random.fork_rng(devices=[devices.device] if devices.device.type == "cuda" else [])


def encode_upload_with_seed(p: Any) -> None:
    """Replaces `p.init` for its next call. In this call, every uploaded image is encoded alone, with UPLOAD_SEED.

    The latent of an upload then does not depend on earlier jobs or on the batch. Otherwise it would, because the
    webui's encoder draws from torch's global generator.
    """
    init, encode_all = p.init, processing.images_tensor_to_samples

    def one_by_one(image: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        latents = []
        for single in image:
            torch.manual_seed(UPLOAD_SEED)
            latents.append(encode_all(single[None], *args, **kwargs))
        return torch.cat(latents)

    def seeded_init(*args: Any, **kwargs: Any) -> None:
        del p.init
        with own_generators(), replaced(processing, images_tensor_to_samples=one_by_one):
            torch.manual_seed(UPLOAD_SEED)
            init(*args, **kwargs)

    p.init = seeded_init


LATENT_RESIZE = 3
"""The number of img2img's resize mode "Just resize (latent upscale)"."""

HALF_A_LEVEL = 1 / 255
"""Half of the distance between two 8-bit levels, for pixels in -1..1."""


class BaseColors:
    """Stores the base images of one iteration ("Batch count"), and applies their colors to the images of the stages."""

    def __init__(self, p: Any, plan: Plan):
        self._p = p
        self._plan = plan
        self._base: list[Tensor] | None = None

    def remember(self, pictures: Iterable[Tensor]) -> None:
        """Stores the base images, each (3, H, W) in -1..1, cropped as planned. Later calls have no effect."""
        if self._base is None:
            crop = self._plan.crop.times(CELL)
            self._base = [crop.take(as_image(picture)).float().cpu().clone() for picture in pictures]

    def keep(self, pictures: Any, decode_base: Callable[[], Iterable[Tensor]]) -> None:
        """Applies the colors of the base images to the decoded images of a stage, each (3, H, W).

        Changes the list `pictures` in place. `decode_base` decodes the base images. It is called only if `remember` has
        not been called. Errors are reported and not raised, so that the images are not lost.
        """
        try:
            if self._base is None:
                self.remember(decode_base())
            painted = inpainting.painted(self._p, self._plan)
            for index, base in enumerate(self._base or ()):
                if pictures[index].dtype == torch.bfloat16:
                    # bfloat16 has 8 significant bits, which is too coarse for small changes of colors
                    pictures[index] = pictures[index].float()
                match_colors_(as_image(pictures[index]), base, painted)
        except Exception as error:
            report_failure(self._p, '"Keep colors" failed, so the image has the colors of the model', error)


def known_base(p: Any, samples: Any, redrawn: bool) -> list[Tensor] | None:
    """Returns the base images, each (3, H, W) in -1..1, or None if only their latents exist.

    `samples` are the base latents, or decoded images, which are returned. `redrawn` is the field `img2img_first`. If
    `redrawn` is False in img2img, the base images are the uploads, resized with the webui's own function. With a mask,
    or with the resize mode "Just resize (latent upscale)", which resizes only the latents, the result is None.
    """
    if getattr(samples, "already_decoded", False):
        return [as_image(sample) for sample in samples]
    uploads = getattr(p, "init_images", None)
    if redrawn or not uploads or inpainting.is_inpainting(p) or p.resize_mode == LATENT_RESIZE:
        return None
    flat = (images.flatten(image, shared.opts.img2img_background_color) for image in uploads)
    # the webui later rounds the pixels of the stages down to 8 bits, which makes them half a level darker on average.
    # Base images that are lighter by half a level compensate for this
    shown = [to_tensor(images.resize_image(p.resize_mode, image, p.width, p.height)) + HALF_A_LEVEL for image in flat]
    return shown if len(shown) > 1 else shown * len(samples)
