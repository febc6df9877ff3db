"""Filters latents: Gaussian blurs, matching of means and standard deviations, and downsampling for live previews."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_demofusion.method.views import Size


def gaussian_blur(x: Tensor, factor: int, std: float) -> Tensor:
    """Blurs x (B, C, H, W) with a separable Gaussian of 2*factor - 1 taps and zero padding.

    `std` is in cells. The paper specifies 4*factor - 3 taps, but the published code uses 2*factor - 1.
    """
    reach = factor - 1
    return _filtered(x, _gaussian(x, reach, std))


def smooth(x: Tensor, std: float) -> Tensor:
    """Blurs x (B, C, H, W) with a separable Gaussian, with reflected borders.

    The standard deviation is `std` cells. The Gaussian is truncated at three standard deviations.
    """
    reach = min(math.ceil(3 * std), min(x.shape[-2:]) - 1)
    padded = F.pad(x, (reach, reach, reach, reach), mode="reflect")
    height, width = x.shape[-2:]
    return _filtered(padded, _gaussian(x, reach, std))[..., reach : reach + height, reach : reach + width]


def _gaussian(x: Tensor, reach: int, std: float) -> Tensor:
    """Returns the 2 reach + 1 taps of a Gaussian, in the dtype and on the device of x."""
    offsets = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
    kernel = torch.exp(-0.5 * (offsets / std) ** 2)
    return kernel / kernel.sum()


AT_ONCE = 1 << 18
"""Number of cells per channel that are filtered at once, so that they fit into the cache of a CPU."""


def _filtered(x: Tensor, kernel: Tensor) -> Tensor:
    """Convolves x (B, C, H, W) with a kernel of odd length along both axes, with zero padding.

    The rows are processed in chunks, so the result is the only allocation of the size of x.
    """
    channels, width, reach = x.shape[1], x.shape[-1], len(kernel) // 2
    vertical = kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    horizontal = kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows = max(AT_ONCE // width, 1)
    with _without_autocast(x.device.type):
        for first in range(0, x.shape[-2], rows):
            top = max(first - reach, 0)
            part = x[..., top : first + rows + reach, :]
            if x.device.type == "cpu":
                # this memory format makes the convolution eight times as fast on a CPU
                part = part.contiguous(memory_format=torch.channels_last)
            down = F.conv2d(part, vertical, padding=(reach, 0), groups=channels)
            part = down[..., first - top : first - top + rows, :]
            out[..., first : first + rows, :] = F.conv2d(part, horizontal, padding=(0, reach), groups=channels)
    return out


def _without_autocast(kind: str) -> AbstractContextManager[Any]:
    """Returns a context in which convolutions on this device keep the precision of their input."""
    # torch 2.1 supports autocast on these devices only, and raises an error for all others
    return torch.autocast(kind, enabled=False) if kind in ("cpu", "cuda") else nullcontext()


def mean_and_std(x: Tensor) -> tuple[Tensor, Tensor]:
    """Computes the scalar mean and standard deviation of each image of x (B, C, H, W), both (B, 1, 1, 1)."""
    std, mean = torch.std_mean(x, dim=(1, 2, 3), keepdim=True)
    return mean, std


def match_statistics(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Shifts and scales x (B, C, H, W) so that each image has the given scalar mean and std (B, 1, 1, 1)."""
    return match_statistics_(x.clone(), mean, std)


def match_statistics_(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Shifts and scales x like `match_statistics`, but in place. Returns x."""
    own_mean, own_std = mean_and_std(x)
    # in a flat image, the deviations from the mean are only rounding errors, which must not be amplified without limit
    return x.sub_(own_mean).mul_(std / own_std.clamp_min(torch.finfo(x.dtype).eps)).add_(mean)


LOW_BAND = 4
"""The low band of a latent consists of the means of LOW_BAND x LOW_BAND areas."""


def match_low_band(x: Tensor, base: Tensor) -> Tensor:
    """Shifts and scales the low band of x (B, C, H, W), so that it matches the low band of base (B, C, h, w).

    Each channel of the low band gets the mean and standard deviation of the same channel of base. Only the low band
    changes, so x keeps its contrast and detail.
    """
    low, wanted = (_means_of_areas(latent, LOW_BAND) for latent in (x, base))
    std, mean = torch.std_mean(low, dim=(2, 3), keepdim=True)
    wanted_std, wanted_mean = torch.std_mean(wanted, dim=(2, 3), keepdim=True)
    moved = (low - mean) * (wanted_std / std.clamp_min(torch.finfo(x.dtype).eps)) + wanted_mean
    return x + F.interpolate(moved - low, size=x.shape[-2:], mode="bicubic", align_corners=False)


def _means_of_areas(x: Tensor, count: int) -> Tensor:
    """Averages x (B, C, H, W) over a grid of areas, (B, C, count, count).

    The areas are the same as in adaptive pooling. They overlap if `count` does not divide a side. In this case, torch's
    adaptive pooling fails on Apple's GPUs, so this function does not use adaptive pooling.
    """
    rows, columns = (
        [slice(i * side // count, -(-(i + 1) * side // count)) for i in range(count)] for side in x.shape[-2:]
    )
    means = [x[..., row, column].mean((2, 3)) for row in rows for column in columns]
    return torch.stack(means, 2).reshape(*x.shape[:2], count, count)


def blur_for_dilation(x: Tensor, factor: int, std: float) -> Tensor:
    """Blurs x (B, C, H, W) for the dilated views and restores the scalar mean and std of x."""
    blurred = gaussian_blur(x, factor, std)
    mean, std_of_x = mean_and_std(x)
    return match_statistics_(blurred, mean, std_of_x)


PREVIEW_CELLS = 128
"""Maximum length of the longer side of a live preview, in latent cells (1024 pixels)."""


def preview_size(size: Size) -> Size:
    """Returns the size in cells of the live preview of a latent of `size`, with the same aspect ratio."""
    shrink = max(max(size) / PREVIEW_CELLS, 1)
    return max(1, round(size[0] / shrink)), max(1, round(size[1] / shrink))


def for_preview(latent: Tensor) -> Tensor:
    """Downsamples a latent (B, C, H, W), or (B, C, 1, H, W) with Wan's VAE in Forge Neo, to the size of a live preview.

    The host decodes a preview in one piece while the model runs. A preview at full size could exceed the memory.
    """
    size = latent.shape[-2], latent.shape[-1]
    small = preview_size(size)
    if small == size:
        return latent
    shrunk = F.interpolate(latent.reshape(-1, 1, *size), size=small, mode="bilinear", antialias=True)
    return shrunk.reshape(*latent.shape[:-2], *small)
