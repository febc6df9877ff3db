"""The axes of a family's latents: the webui's at the border, and (B, C, h, w) with 8 pixels a cell in the method."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from lib_demofusion.method.views import Size


class LatentForm:
    """Latents (B, C, h, w) with a cell of 8 pixels: the same in the webui and in the method."""

    copies = False
    """Whether the method's latent is a copy of the webui's, so that changes must be written back."""

    def to_method(self, x: Tensor) -> Tensor:
        """Returns the method's form of a webui's latent."""
        return x

    def to_host(self, x: Tensor) -> Tensor:
        """Returns the webui's form of a method's latent."""
        return x

    def host_shape(self, channels: int, size: Size) -> tuple[int, ...]:
        """Returns the webui's shape, without the batch, of a method's latent with `channels` and `size`."""
        return (channels, *size)


class FiveAxes(LatentForm):
    """Latents (B, C, 1, h, w) of the engines that share Wan's video VAE; the third axis is time."""

    def to_method(self, x: Tensor) -> Tensor:
        return x.squeeze(2) if x.ndim == 5 else x

    def to_host(self, x: Tensor) -> Tensor:
        return x.unsqueeze(2)

    def host_shape(self, channels: int, size: Size) -> tuple[int, ...]:
        return (channels, 1, *size)


class Packed(LatentForm):
    """Latents (B, 4 C, h / 2, w / 2) with a cell of 16 pixels, which holds 2 x 2 cells of 8 pixels in its channels.

    Cells of 8 pixels are needed for views: every second packed cell shows 16 pixels and leaves out the next 16.
    """

    copies = True

    def to_method(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(x, 2)

    def to_host(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(x, 2)

    def host_shape(self, channels: int, size: Size) -> tuple[int, ...]:
        return (4 * channels, size[0] // 2, size[1] // 2)


PLAIN, FIVE_AXES, PACKED = LatentForm(), FiveAxes(), Packed()
