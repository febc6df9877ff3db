"""Decodes and encodes the latents of a job with the webui's own functions, tile by tile if necessary.

Also checks latents and images for NaN. The error messages name the network that returned NaN, and a solution.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from modules import devices, processing, sd_samplers_common, shared
from torch import Tensor

from lib_demofusion.host.backends import host
from lib_demofusion.host.common import options
from lib_demofusion.host.images import vae
from lib_demofusion.host.progress import timing
from lib_demofusion.tiled_vae.tiling import AUTOMATIC

ROWS = 256
"""Number of pixel rows that are checked for NaN at once. The check needs memory in proportion to this number."""

NO_ENCODER = "the upscaler Latent does not need the encoder"


def decode(p: Any, latent: Tensor, report: vae.Report | None = None) -> Any:
    """Decodes a latent (B, C, h, w) to images (3, H, W) on the CPU, as the webui's DecodedSamples.

    `report` is called with the completed share of the work (0 to 1), at least after every tile. An image that is
    decoded without tiles counts as half done before it is decoded. If `report` raises an error, decoding ends with it.

    Raises an out-of-memory error if memory is not sufficient for the smallest tiles. Raises NansException if the latent
    contains NaN or infinity, or if an image still contains NaN after the webui's own retry in higher precision.
    """
    check_model_output(latent)
    if shared.opts.sd_vae_decode_method != "Full":
        p.extra_generation_params["VAE Decoder"] = shared.opts.sd_vae_decode_method
    report_some = _report_of_some(report, len(latent))
    form = host().family(p.sd_model).form
    with timing.decoding(p, latent):
        devices.torch_gc()
        with _in_parts(p, report_some) as ours:
            if "decoder" not in ours:
                report_some(0.5, len(latent))
            x = form.to_host(latent)
            made = processing.decode_latent_batch(p.sd_model, x, target_device=devices.cpu, check_for_nans=True)
            made[:] = [checked_image(as_image(sample)) for sample in made]
            return made


def encode(p: Any, pictures: Iterable[Tensor], report: vae.Report | None = None) -> Tensor:
    """Encodes the job's images, each (3, H, W) or (1, 3, H, W) in -1..1, to latents (B, C, h, w) in float32.

    The encoder draws from torch's global generator, so each image is encoded alone, with its own seed. `report` is
    called with the completed share of the work. If `report` raises an exception, encoding ends with this exception.
    Raises NansException if a latent contains NaN or infinity.
    """
    # torch keeps the decoder's freed GPU memory in its cache, in blocks that do not suit the encoder
    devices.torch_gc()
    method = sd_samplers_common.approximation_indexes.get(shared.opts.sd_vae_encode_method)
    latents, report_some = [], _report_of_some(report, len(p.seeds))
    with _in_parts(p, report_some) as ours, host().encoding(p):
        for seed, picture in zip(p.seeds, pictures):
            torch.manual_seed(int(seed))
            # assigned to the same name, so that the input can be freed
            picture = (
                (as_image(picture)[None].float() * 0.5).add_(0.5).clamp_(0, 1).to(shared.device, devices.dtype_vae)
            )
            latents.append(checked_latent(sd_samplers_common.images_tensor_to_samples(picture, method, p.sd_model)))
            if "encoder" not in ours:
                report_some(1.0, 1)
    return as_latent(host().family(p.sd_model).form.to_method(torch.cat(latents)))


def as_latent(x: Tensor) -> Tensor:
    """Converts a latent (B, C, h, w) of the webui to float32, the dtype of all latents of a run.

    A stage uses float32 for the base latent, anchors, noise, x, means and standard deviations. In half precision, the
    squares of noise levels would overflow: with zero terminal SNR, noise levels reach 4500. Also, every stage would
    round its result to half precision. The webui samples in float32 too: its noise is float32, and the sum of a float16
    latent and float32 noise is float32.
    """
    return x.to(torch.float32)


def as_image(sample: Tensor) -> Tensor:
    """Returns a decoded image as (3, H, W). Wan's VAE in Forge Neo returns (1, 3, H, W)."""
    return sample[0] if sample.ndim == 4 else sample


def _report_of_some(report: vae.Report | None, count: int) -> vae.ReportOfSome:
    """Returns the callback of `vae.of_all` for a batch of `count` images. If `report` is None, it does nothing."""
    return vae.of_all(report or (lambda share: None), count)


def _in_parts(p: Any, report: vae.ReportOfSome) -> Any:
    """Returns a context in which the VAE runs with or without tiles, depending on options.DECODE and free memory."""
    return vae.in_parts(p.sd_model, options.value(options.DECODE, AUTOMATIC), report)


def checked_latent(latent: Tensor) -> Tensor:
    """Returns an encoded latent unchanged. Raises NansException if the latent contains NaN or infinity.

    The webui does not check encoded latents. Without this check, the stage would run, and the error after the stage
    would name the model as the cause instead of the encoder.
    """
    if torch.isfinite(latent).all():
        return latent
    raise devices.NansException(f"{_vae_problem('encoder')} ({NO_ENCODER})")


def checked_image(image: Tensor) -> Tensor:
    """Returns a decoded image (3, H, W) unchanged. Raises NansException if the image contains NaN.

    When A1111's webui decodes an image, it checks only the first value. Forge and Forge Neo check no value. Without
    this check, an upscaler would turn NaN into black.
    """
    if has_nan(image):
        raise devices.NansException(_vae_problem("decoder"))
    return image


def check_model_output(latent: Tensor) -> None:
    """Raises NansException, which names the model as the cause, if a sampled latent contains NaN or infinity."""
    if not torch.isfinite(latent).all():
        raise devices.NansException(model_problem())


def check_hires_image(image: Tensor) -> None:
    """Raises NansException if an image (3, H, W) that hires fix returned contains NaN.

    Without this check, the image would be encoded to a latent with NaN, and the error would name the encoder.
    """
    if has_nan(image):
        names = "the model or the VAE of hires fix returned NaN before the stages"
        flags = " and ".join(host().fp32_flags())
        raise devices.NansException(_problem(names, devices.dtype_unet, flags, "choose another checkpoint or VAE"))


def has_nan(image: Tensor) -> bool:
    """Returns whether an image (3, H, W) contains NaN."""
    return any(bool(torch.isnan(rows).any()) for rows in image.split(ROWS, dim=-2))


def model_problem() -> str:
    """Returns the error message for NaN in a sampled latent.

    The message suggests another schedule type, because in Forge Neo flow models return NaN with the type Uniform.
    """
    advice = "choose another checkpoint or schedule type"
    return _problem("the model returned NaN", devices.dtype_unet, host().fp32_flags()[0], advice)


def _vae_problem(part: str) -> str:
    advice = "choose another VAE"
    return _problem(f"the VAE's {part} returned NaN", devices.dtype_vae, host().fp32_flags()[1], advice)


def _problem(problem: str, dtype: torch.dtype, flags: str, advice: str) -> str:
    """Returns an error message: the problem, its probable cause, and a solution.

    `dtype` is the dtype of the network. The cause is half precision, or in float32 a damaged file. `flags` are the
    webui's flags that switch to float32.
    """
    if dtype == torch.float32:
        return f"{problem}: its file may be damaged; {advice}"
    name = str(dtype).removeprefix("torch.")
    return f"{problem}: {name} may not be precise enough; add {flags} to the command line, or {advice}"
