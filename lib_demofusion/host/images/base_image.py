"""Reads the latents and images of the base image, and applies its colors to the stages ("Keep colors")."""

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
"""Seed of the encoder's random sample when the uploaded image is the base image, the same for every image."""


def base_latent(p: Any, samples: Any) -> Tensor:
    """Returns the base image's latent (B, C, H, W) in float32. After hires fix, encodes the result.

    Raises NansException if the latent or the image of hires fix contains NaN. The webui does not check all of these.
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
    """Returns height and width in cells of `samples`, which are latents, or images after hires fix."""
    if getattr(samples, "already_decoded", False):
        return samples[0].shape[-2] // CELL, samples[0].shape[-1] // CELL
    latent = host().family(p.sd_model).form.to_method(samples)
    return latent.shape[-2], latent.shape[-1]


def base_images(p: Any, samples: Any, checkpoint: Any) -> Any:
    """Returns the decoded base images, or None if the VAE that is loaded for the stages can decode them later.

    Hires fix returns images already. If the base pass ended with a refiner, the refiner's VAE must decode the latents.
    This VAE is loaded until the stages load the checkpoint of the base image again.
    """
    if getattr(samples, "already_decoded", False):
        return samples
    return decode(p, samples) if shared.sd_model.sd_checkpoint_info != checkpoint else None


def own_generators() -> Any:
    """Returns a context that restores the state of torch's global random generators at its end.

    The VAE encoder of the next img2img job draws from these generators.
    """
    return torch.random.fork_rng(devices=[devices.device] if devices.device.type == "cuda" else [])


def encode_upload_alike(p: Any) -> None:
    """Makes the next call of `p.init` encode the uploaded image to the same latent every time.

    The webui's encoder draws from torch's global generator, whose state depends on earlier jobs. Every image of a batch
    is encoded on its own, so its latent does not depend on the batch.
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
"""The resize mode of img2img that enlarges the latent instead of the image."""

HALF_A_LEVEL = 1 / 255
"""Half of one 8-bit level on the scale of -1 to 1."""


class BaseColors:
    """The base images of one iteration, whose colors are applied to the images of the stages."""

    def __init__(self, p: Any, plan: Plan):
        self._p = p
        self._plan = plan
        self._base: list[Tensor] | None = None

    def remember(self, pictures: Iterable[Tensor]) -> None:
        """Crops the base images, each (3, H, W) in -1..1, to the area of the stages and stores them.

        Later calls have no effect.
        """
        if self._base is None:
            crop = self._plan.crop.times(CELL)
            self._base = [crop.take(as_image(picture)).float().cpu().clone() for picture in pictures]

    def keep(self, pictures: Any, decode_base: Callable[[], Iterable[Tensor]]) -> None:
        """Applies the colors of the base images to the decoded images of a stage, each (3, H, W), in place.

        `decode_base` returns the base images. It is called only if they are not known yet. An error is reported and
        not raised.
        """
        try:
            if self._base is None:
                self.remember(decode_base())
            painted = inpainting.painted(self._p, self._plan)
            for index, base in enumerate(self._base or ()):
                if pictures[index].dtype == torch.bfloat16:
                    # bfloat16 has only 8 significant bits
                    pictures[index] = pictures[index].float()
                match_colors_(as_image(pictures[index]), base, painted)
        except Exception as error:
            report_failure(self._p, '"Keep colors" failed, so the image has the colors of the model', error)


def known_base(p: Any, samples: Any, redrawn: bool) -> list[Tensor] | None:
    """Returns the base images, each (3, H, W) in -1..1, if the job has them without decoding a latent, else None.

    `samples` are the webui's latents, or images after hires fix. If img2img does not redraw the uploaded image
    (`redrawn` is False), the base image is the uploaded image. It is resized here as the webui resizes it.
    """
    if getattr(samples, "already_decoded", False):
        return [as_image(sample) for sample in samples]
    uploads = getattr(p, "init_images", None)
    if redrawn or not uploads or inpainting.is_inpainting(p) or p.resize_mode == LATENT_RESIZE:
        return None
    flat = (images.flatten(image, shared.opts.img2img_background_color) for image in uploads)
    # the webui rounds the result down to 8 bits, which lowers the mean by half a level
    shown = [to_tensor(images.resize_image(p.resize_mode, image, p.width, p.height)) + HALF_A_LEVEL for image in flat]
    return shown if len(shown) > 1 else shown * len(samples)
