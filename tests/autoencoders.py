"""Defines a small autoencoder with random weights, and creates test images for it.

The modules have the same names as in Stable Diffusion's autoencoder, and run in the same order.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """A residual block, as in Stable Diffusion's autoencoder."""

    def __init__(self, inputs: int, outputs: int, groups: int):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(groups, inputs, eps=1e-6), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(groups, outputs, eps=1e-6), nn.Conv2d(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attention(nn.Module):
    """A self-attention layer, as in Stable Diffusion's autoencoder."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(self.norm(x)).flatten(2) for layer in (self.q, self.k, self.v))  # (B, C, N)
        weights = torch.softmax(q.transpose(1, 2) @ k / q.shape[1] ** 0.5, 2)
        return x + self.proj_out((v @ weights.transpose(1, 2)).reshape(x.shape))


class Up(nn.Module):
    """Doubles height and width."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Down(nn.Module):
    """Halves height and width, with padding only at the right and at the bottom."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Network(nn.Module):
    """The base class of the decoder and the encoder."""

    levels: nn.ModuleList

    def build_middle(self, channels: int, groups: int) -> None:
        self.mid = nn.Module()
        self.mid.block_1, self.mid.block_2 = Block(channels, channels, groups), Block(channels, channels, groups)
        self.mid.attn_1 = Attention(channels, groups)

    def middle(self, x: Tensor) -> Tensor:
        return self.mid.block_2(self.mid.attn_1(self.mid.block_1(x)))

    def build_level(self, channels: int, outputs: int, blocks: int, groups: int, attends: bool) -> nn.Module:
        level = nn.Module()
        level.block = nn.ModuleList(Block(channels if i == 0 else outputs, outputs, groups) for i in range(blocks))
        level.attn = nn.ModuleList(Attention(outputs, groups) for _ in range(blocks if attends else 0))
        return level

    def run(self, level: Any, x: Tensor) -> Tensor:
        for index, block in enumerate(level.block):
            x = block(x)
            if len(level.attn):
                x = level.attn[index](x)
        return x

    def end(self, x: Tensor) -> Tensor:
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(Network):
    """Decodes latents (B, 4, h, w) to images (B, 3, H, W). With four levels, H is 8 h and W is 8 w.

    With `attends`, the blocks of `up[1]`, which have half the resolution of the image, also have attention layers.
    In ldm, the parameter attn_resolutions adds such layers.
    """

    def __init__(self, ch: int = 8, mult: tuple[int, ...] = (1, 2, 4, 4), groups: int = 4, attends: bool = False):
        super().__init__()
        channels = ch * mult[-1]
        self.conv_in = nn.Conv2d(4, channels, 3, padding=1)
        self.build_middle(channels, groups)
        self.up = nn.ModuleList()
        for index in reversed(range(len(mult))):
            level = self.build_level(channels, ch * mult[index], 3, groups, attends and index == 1)
            channels = ch * mult[index]
            if index:
                level.upsample = Up(channels)
            self.up.insert(0, level)
        self.norm_out, self.conv_out = nn.GroupNorm(groups, channels, eps=1e-6), nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.middle(self.conv_in(z))
        for level in reversed(self.up):
            x = self.run(level, x)
            if hasattr(level, "upsample"):
                x = level.upsample(x)
        return self.end(x)


class Encoder(Network):
    """Encodes images (B, 3, H, W) to (B, 8, h, w): the means of four latent channels, then their log variances."""

    def __init__(self, ch: int = 8, mult: tuple[int, ...] = (1, 2, 4, 4), groups: int = 4):
        super().__init__()
        channels = ch
        self.conv_in = nn.Conv2d(3, channels, 3, padding=1)
        self.down = nn.ModuleList()
        for index, factor in enumerate(mult):
            level = self.build_level(channels, ch * factor, 2, groups, attends=False)
            channels = ch * factor
            if index < len(mult) - 1:
                level.downsample = Down(channels)
            self.down.append(level)
        self.build_middle(channels, groups)
        self.norm_out, self.conv_out = nn.GroupNorm(groups, channels, eps=1e-6), nn.Conv2d(channels, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = self.run(level, x)
            if hasattr(level, "downsample"):
                x = level.downsample(x)
        return self.end(self.middle(x))


def randomised(network: nn.Module, seed: int = 0) -> Any:
    """Sets all weights of a network to random values and returns the network.

    The values are large enough for every block to affect the output.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in network.eval().requires_grad_(False).modules():
        if isinstance(module, nn.Conv2d):
            module.weight.normal_(0, module.weight[0].numel() ** -0.5, generator=generator)
            module.bias.normal_(0, 0.1, generator=generator)
        elif isinstance(module, nn.GroupNorm):
            module.weight.normal_(1, 0.2, generator=generator)
            module.bias.normal_(0, 0.2, generator=generator)
    return network


def picture_like(channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Returns a tensor (1, C, H, W) that is smooth at the top, noisy at the bottom, and high in one small spot.

    The mean and variance differ from place to place. A test therefore fails if a tile is normalized with its own mean
    and variance instead of those of the whole feature map.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(2, channels, height, width, generator=generator)
    smooth = F.interpolate(noise[:1, :, ::6, ::6], size=(height, width), mode="bicubic")
    below = torch.sigmoid((torch.linspace(0, 1, height) - 0.55) * 30)[:, None]
    x = smooth + 0.8 * below * noise[1:]
    x[..., height // 5 : height // 5 + 2, width // 3 : width // 3 + 2] += 4
    return x


def autoencoder() -> Any:
    """Returns an object with a decoder and an encoder, like `first_stage_model` of the webui's models."""
    return SimpleNamespace(decoder=randomised(Decoder()), encoder=randomised(Encoder()))
