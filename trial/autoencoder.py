"""The KL autoencoder of Stable Diffusion 1 (factor 8), with the parameter names of its checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class AutoencoderConfig:
    """The fields of `ddconfig` in a checkpoint's .yaml that are not the same in all supported models."""

    ch: int = 96
    ch_mult: tuple[int, ...] = (1, 1, 1, 1)
    num_res_blocks: int = 0
    z_channels: int = 4


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    """Two convolutions with a skip connection, from (B, C, H, W) to (B, C', H, W)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2, self.conv2 = _norm(outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    """Single-head attention over all positions of x (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k, self.v = (nn.Conv2d(channels, channels, 1) for _ in range(3))
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2).contiguous() for layer in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        return x + self.proj_out(h)


class Downsample(nn.Module):
    """Halves height and width. Pads only the right and the bottom, as in Stable Diffusion."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles height and width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def _middle(channels: int) -> nn.ModuleDict:
    blocks = {"block_1": ResnetBlock(channels, channels), "attn_1": AttnBlock(channels)}
    return nn.ModuleDict({**blocks, "block_2": ResnetBlock(channels, channels)})


def _run(blocks: nn.ModuleDict, x: Tensor) -> Tensor:
    for block in blocks.values():
        x = block(x)
    return x


class Encoder(nn.Module):
    """Encodes images (B, 3, H, W) to features (B, 2 * z, H / 8, W / 8), where z is `z_channels`."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        channels = config.ch
        self.conv_in = nn.Conv2d(3, channels, 3, padding=1)
        self.down = nn.ModuleList()
        for level, mult in enumerate(config.ch_mult):
            stage = nn.ModuleDict({"block": nn.ModuleList()})
            for _ in range(config.num_res_blocks):
                stage["block"].append(ResnetBlock(channels, config.ch * mult))
                channels = config.ch * mult
            if level < len(config.ch_mult) - 1:
                stage["downsample"] = Downsample(channels)
            self.down.append(stage)
        self.mid = _middle(channels)
        self.norm_out = _norm(channels)
        self.conv_out = nn.Conv2d(channels, 2 * config.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for stage in self.down:
            for block in stage["block"]:
                h = block(h)
            if "downsample" in stage:
                h = stage["downsample"](h)
        return self.conv_out(F.silu(self.norm_out(_run(self.mid, h))))


class Decoder(nn.Module):
    """Decodes features (B, z, h, w), where z is `z_channels`, to images (B, 3, 8 h, 8 w)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        channels = config.ch * config.ch_mult[-1]
        self.conv_in = nn.Conv2d(config.z_channels, channels, 3, padding=1)
        self.mid = _middle(channels)
        stages = []
        for level in reversed(range(len(config.ch_mult))):
            stage = nn.ModuleDict({"block": nn.ModuleList()})
            for _ in range(config.num_res_blocks + 1):
                stage["block"].append(ResnetBlock(channels, config.ch * config.ch_mult[level]))
                channels = config.ch * config.ch_mult[level]
            if level > 0:
                stage["upsample"] = Upsample(channels)
            stages.append(stage)
        self.up = nn.ModuleList(reversed(stages))
        self.norm_out = _norm(channels)
        self.conv_out = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = _run(self.mid, self.conv_in(z))
        for stage in reversed(self.up):
            for block in stage["block"]:
                h = block(h)
            if "upsample" in stage:
                h = stage["upsample"](h)
        return self.conv_out(F.silu(self.norm_out(h)))


class Autoencoder(nn.Module):
    """Encodes and decodes images in -1..1. The latents are not multiplied by the checkpoint's scale factor."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quant_conv = nn.Conv2d(2 * config.z_channels, 2 * config.z_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.z_channels, config.z_channels, 1)

    def encode(self, x: Tensor) -> Tensor:
        """Encodes images (B, 3, H, W) to the means of their latents, (B, z, H / 8, W / 8)."""
        return self.quant_conv(self.encoder(x)).chunk(2, 1)[0]

    def decode(self, z: Tensor) -> Tensor:
        """Decodes latents (B, z, h, w) to images (B, 3, 8 h, 8 w)."""
        return self.decoder(self.post_quant_conv(z))
