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

    `factor` is the factor of the dilated views, and `std` is in cells. The paper specifies 4*factor - 3 taps, but the
    published code uses 2*factor - 1.
    """
    reach = factor - 1
    return _filtered(x, _gaussian(x, reach, std))


def smooth(x: Tensor, std: float) -> Tensor:
    """Blurs x (B, C, H, W) with a separable Gaussian, with reflected borders.

    The standard deviation is `std` cells. The Gaussian is truncated at three standard deviations, or earlier if x is
    smaller.
    """
    reach = min(math.ceil(3 * std), min(x.shape[-2:]) - 1)
    padded = F.pad(x, (reach, reach, reach, reach), mode="reflect")
    height, width = x.shape[-2:]
    return _filtered(padded, _gaussian(x, reach, std))[..., reach : reach + height, reach : reach + width]


def _gaussian(x: Tensor, reach: int, std: float) -> Tensor:
    """Returns the 2 * reach + 1 taps of a Gaussian, in the dtype and on the device of x."""
    offsets = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
    kernel = torch.exp(-0.5 * (offsets / std) ** 2)
    return kernel / kernel.sum()


AT_ONCE = 1 << 18
"""Approximate number of cells per channel that are filtered at once. This part of x fits into the cache of a CPU."""


def _filtered(x: Tensor, kernel: Tensor) -> Tensor:
    """Convolves x (B, C, H, W) with a kernel of odd length along both axes, with zero padding.

    The rows are processed in chunks, so the result is the only new tensor that is as large as x.
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
    """Returns a context without autocast on a device type, so that convolutions keep the precision of their input."""
    # torch.autocast of torch 2.1 raises an error for some other devices, such as Apple's GPUs
    return torch.autocast(kind, enabled=False) if kind in ("cpu", "cuda") else nullcontext()


def mean_and_std(x: Tensor) -> tuple[Tensor, Tensor]:
    """Computes the mean and standard deviation of all values of each image of x (B, C, H, W), both (B, 1, 1, 1)."""
    std, mean = torch.std_mean(x, dim=(1, 2, 3), keepdim=True)
    return mean, std


def match_statistics(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Shifts and scales each image of x (B, C, H, W) to the given mean and standard deviation, both (B, 1, 1, 1)."""
    return match_statistics_(x.clone(), mean, std)


def match_statistics_(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Shifts and scales x like `match_statistics`, but in place. Returns x."""
    own_mean, own_std = mean_and_std(x)
    # the limit prevents the rounding errors of a flat image from being amplified to the wanted standard deviation
    return x.sub_(own_mean).mul_(std / own_std.clamp_min(torch.finfo(x.dtype).eps)).add_(mean)


LOW_BAND = 4
"""A latent is divided into LOW_BAND x LOW_BAND areas. The means of these areas are the low band of the latent."""


def match_low_band(x: Tensor, base: Tensor) -> Tensor:
    """Shifts and scales the low band of x (B, C, H, W), so that it matches the low band of base (B, C, h, w).

    Each channel of the low band of x gets the mean and the standard deviation of the same channel of the low band of
    base. The change is interpolated between the areas, so it does not affect detail.
    """
    low, wanted = (_means_of_areas(latent, LOW_BAND) for latent in (x, base))
    std, mean = torch.std_mean(low, dim=(2, 3), keepdim=True)
    wanted_std, wanted_mean = torch.std_mean(wanted, dim=(2, 3), keepdim=True)
    moved = (low - mean) * (wanted_std / std.clamp_min(torch.finfo(x.dtype).eps)) + wanted_mean
    return x + F.interpolate(moved - low, size=x.shape[-2:], mode="bicubic", align_corners=False)


def _means_of_areas(x: Tensor, count: int) -> Tensor:
    """Averages x (B, C, H, W) over a grid of areas, (B, C, count, count).

    The areas are the same as in torch's adaptive pooling. If `count` does not divide the height or the width, the areas
    overlap. Torch's own adaptive pooling fails on Apple's GPUs if the areas overlap.
    """
    rows, columns = (
        [slice(i * side // count, -(-(i + 1) * side // count)) for i in range(count)] for side in x.shape[-2:]
    )
    means = [x[..., row, column].mean((2, 3)) for row in rows for column in columns]
    return torch.stack(means, 2).reshape(*x.shape[:2], count, count)


def blur_for_dilation(x: Tensor, factor: int, std: float) -> Tensor:
    """Blurs x (B, C, H, W) for the dilated views, and restores the mean and standard deviation of each image of x."""
    blurred = gaussian_blur(x, factor, std)
    mean, std_of_x = mean_and_std(x)
    return match_statistics_(blurred, mean, std_of_x)


PREVIEW_CELLS = 128
"""Maximum length of the longer side of a live preview in latent cells. 128 cells are 1024 pixels."""


def preview_size(size: Size) -> Size:
    """Returns the size in cells to which a latent of `size` is reduced for a live preview.

    The aspect ratio does not change. A small latent keeps its size.
    """
    shrink = max(max(size) / PREVIEW_CELLS, 1)
    return max(1, round(size[0] / shrink)), max(1, round(size[1] / shrink))


def for_preview(latent: Tensor) -> Tensor:
    """Downsamples a latent to the size of a live preview.

    The latent is (B, C, H, W), or (B, C, 1, H, W) for models with Wan's VAE in Forge Neo. The host decodes a preview in
    one piece while the model is in memory. A preview of the full size could exceed the memory.
    """
    size = latent.shape[-2], latent.shape[-1]
    small = preview_size(size)
    if small == size:
        return latent
    shrunk = F.interpolate(latent.reshape(-1, 1, *size), size=small, mode="bilinear", antialias=True)
    return shrunk.reshape(*latent.shape[:-2], *small)
