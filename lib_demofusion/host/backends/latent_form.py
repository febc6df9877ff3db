"""Converts latents between the webui's axes and those of the method: (B, C, h, w) with 8 pixels per cell."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from lib_demofusion.method.views import Size


class LatentForm:
    """Latents (B, C, h, w) with 8 pixels per cell, which are the same in the webui and in the method."""

    copies = False
    """Whether the method's latent is a copy, so changes must be written back to the webui's latent."""

    def to_method(self, x: Tensor) -> Tensor:
        """Converts a latent of the webui to the axes of the method."""
        return x

    def to_host(self, x: Tensor) -> Tensor:
        """Converts a latent of the method to the axes of the webui."""
        return x

    def host_shape(self, channels: int, size: Size) -> tuple[int, ...]:
        """Returns the shape in the webui, without the batch, of a method's latent with `channels` and `size`."""
        return (channels, *size)


class FiveAxes(LatentForm):
    """Latents (B, C, 1, h, w) of the engines that share Wan's video VAE. The third axis is time."""

    def to_method(self, x: Tensor) -> Tensor:
        return x.squeeze(2) if x.ndim == 5 else x

    def to_host(self, x: Tensor) -> Tensor:
        return x.unsqueeze(2)

    def host_shape(self, channels: int, size: Size) -> tuple[int, ...]:
        return (channels, 1, *size)


class Packed(LatentForm):
    """Latents (B, 4 C, h / 2, w / 2) whose cells of 16 pixels hold 2 x 2 cells of 8 pixels in their channels.

    Dilated views need cells of 8 pixels. A view of every second packed cell would show 16 pixels and skip the next 16.
    """

    copies = True

    def to_method(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(x, 2)

    def to_host(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(x, 2)

    def host_shape(self, channels: int, size: Size) -> tuple[int, ...]:
        return (4 * channels, size[0] // 2, size[1] // 2)


PLAIN, FIVE_AXES, PACKED = LatentForm(), FiveAxes(), Packed()
