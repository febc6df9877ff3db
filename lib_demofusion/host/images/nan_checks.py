"""Checks latents and images for NaN. The errors name the part of the webui that returned it, and what helps."""

from __future__ import annotations

import torch
from modules import devices
from torch import Tensor

from lib_demofusion.host.backends import host

ROWS = 256
"""Number of an image's rows that are checked at once, because the check needs memory of its own."""

NO_ENCODER = "the upscaler Latent does not need the encoder"


def checked_latent(latent: Tensor) -> Tensor:
    """Returns the encoder's latent unchanged. Raises NansException if it contains NaN or infinity.

    The host checks only decoded images. Its error would come after the stage, and would name the model as the cause.
    """
    if torch.isfinite(latent).all():
        return latent
    raise devices.NansException(f"{_vae_problem('encoder')} ({NO_ENCODER})")


def checked_image(image: Tensor) -> Tensor:
    """Returns an image (3, H, W) of the decoder unchanged. Raises NansException if it contains NaN.

    A1111's webui checks the first value only, and Forge's family none. An upscaler would turn NaN into black.
    """
    if has_nan(image):
        raise devices.NansException(_vae_problem("decoder"))
    return image


def check_model_output(latent: Tensor) -> None:
    """Raises NansException if a sampled latent contains NaN or infinity."""
    if not torch.isfinite(latent).all():
        raise devices.NansException(model_problem())


def check_hires_image(image: Tensor) -> None:
    """Raises NansException if an image (3, H, W) that hires fix returned contains NaN.

    The stages would encode it, and the encoder's latent would be NaN too.
    """
    if has_nan(image):
        names = "the model or the VAE of hires fix returned NaN before the stages"
        flags = " and ".join(host().fp32_flags())
        raise devices.NansException(_problem(names, devices.dtype_unet, flags, "choose another checkpoint or VAE"))


def has_nan(image: Tensor) -> bool:
    """Returns whether an image (3, H, W) contains NaN."""
    return any(bool(torch.isnan(rows).any()) for rows in image.split(ROWS, dim=-2))


def model_problem() -> str:
    """Returns the error for a latent of the model that contains NaN.

    In Forge Neo, flow models return NaN with the schedule type Uniform.
    """
    advice = "choose another checkpoint or schedule type"
    return _problem("the model returned NaN", devices.dtype_unet, host().fp32_flags()[0], advice)


def _vae_problem(part: str) -> str:
    advice = "choose another VAE"
    return _problem(f"the VAE's {part} returned NaN", devices.dtype_vae, host().fp32_flags()[1], advice)


def _problem(problem: str, numbers: torch.dtype, flags: str, advice: str) -> str:
    """Returns an error with its probable cause, which depends on the type of the numbers."""
    if numbers == torch.float32:
        return f"{problem}: its file may be damaged; {advice}"
    kind = str(numbers).removeprefix("torch.")
    return f"{problem}: {kind} may not be precise enough; add {flags} to the command line, or {advice}"
