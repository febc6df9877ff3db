"""The denoising UNet of Stable Diffusion 1 and SDXL with the parameter names of their checkpoints."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trial.autoencoder import Upsample


@dataclass(frozen=True)
class UNetConfig:
    """The fields of `unet_config` in a checkpoint's .yaml that are not the same in all supported models.

    `attention_resolutions` are downsampling factors. Levels with these factors and the middle block have transformers.
    """

    model_channels: int = 64
    channel_mult: tuple[int, ...] = (1, 2, 2)
    num_res_blocks: int = 1
    attention_resolutions: tuple[int, ...] = (2, 4)
    num_heads: int = 4
    context_dim: int = 64
    transformer_depth: int | tuple[int, ...] = 1
    """Number of transformer blocks after a residual block: one number for all levels, or one for each level."""
    num_head_channels: int = 0
    """Width of an attention head at all levels. If it is 0, each level has `num_heads` heads."""
    adm_in_channels: int = 0
    """Width of SDXL's vector y with sizes and the pooled text embedding. If it is 0, the model has no such input."""


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """Computes the embedding (B, dim) of timesteps t (B,): cosines, then sines, of t times geometric frequencies."""
    half = dim // 2
    frequencies = torch.exp(-math.log(10000.0) / half * torch.arange(half, device=t.device, dtype=torch.float32))
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], 1)


class ResBlock(nn.Module):
    """A residual block from (B, C, H, W) to (B, C', H, W). Adds the time embedding between its two convolutions."""

    def __init__(self, inputs: int, outputs: int, emb: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(nn.GroupNorm(32, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, outputs))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, outputs), nn.SiLU(), nn.Identity(), nn.Conv2d(outputs, outputs, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers(x) + self.emb_layers(emb)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class CrossAttention(nn.Module):
    """Attention from tokens (B, N, C) to a context (B, M, D). For self-attention, pass the tokens as the context."""

    def __init__(self, dim: int, context_dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(context_dim, dim, bias=False)
        self.to_v = nn.Linear(context_dim, dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(dim, dim), nn.Identity())

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class GEGLU(nn.Module):
    """A linear layer to 2 * `outputs` values. The second half of the values gates the first half."""

    def __init__(self, dim: int, outputs: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, 2 * outputs)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, -1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """A feed-forward layer for each token, with a gated hidden layer of four times the width."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the text, and a feed-forward layer, each with a skip connection."""

    def __init__(self, dim: int, context_dim: int, heads: int) -> None:
        super().__init__()
        self.attn1, self.attn2 = CrossAttention(dim, dim, heads), CrossAttention(dim, context_dim, heads)
        self.ff = FeedForward(dim)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        h = self.norm1(x)
        x = x + self.attn1(h, h)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Applies transformer blocks to a feature map (B, C, H, W). Each position is a token."""

    def __init__(self, channels: int, context_dim: int, heads: int, depth: int = 1) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(TransformerBlock(channels, context_dim, heads) for _ in range(depth))
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        tokens = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)  # (B, H W, C)
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        return x + self.proj_out(tokens.transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    """Halves height and width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Block(nn.ModuleList):
    """A sequence of layers. ResBlocks also receive the time embedding, and transformers the text embeddings."""

    def forward(self, x: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context)
            else:
                x = layer(x)
        return x


class UNet(nn.Module):
    """Predicts the noise in x (B, 4, H, W) at timesteps t (B,) for the text embeddings context (B, M, D).

    SDXL's UNet also receives a vector y (B, V) with sizes and the pooled text.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        base, emb = config.model_channels, 4 * config.model_channels
        self.time_embed = nn.Sequential(nn.Linear(base, emb), nn.SiLU(), nn.Linear(emb, emb))
        if config.adm_in_channels:
            layers = nn.Linear(config.adm_in_channels, emb), nn.SiLU(), nn.Linear(emb, emb)
            self.label_emb = nn.Sequential(nn.Sequential(*layers))
        skips = self._build_down(emb)
        widest = base * config.channel_mult[-1]
        self.middle_block = Block(
            [
                ResBlock(widest, widest, emb),
                self._transformer(widest),
                ResBlock(widest, widest, emb),
            ]
        )
        self._build_up(emb, skips)
        self.out = nn.Sequential(nn.GroupNorm(32, base), nn.SiLU(), nn.Conv2d(base, 4, 3, padding=1))

    def _stage(self, inputs: int, outputs: int, emb: int, factor: int) -> Block:
        block = Block([ResBlock(inputs, outputs, emb)])
        if factor in self.config.attention_resolutions:
            block.append(self._transformer(outputs))
        return block

    def _transformer(self, channels: int) -> SpatialTransformer:
        config, depth = self.config, self.config.transformer_depth
        heads = channels // config.num_head_channels if config.num_head_channels else config.num_heads
        if not isinstance(depth, int):
            depth = depth[config.channel_mult.index(channels // config.model_channels)]
        return SpatialTransformer(channels, config.context_dim, heads, depth)

    def _build_down(self, emb: int) -> list[int]:
        """Builds the input blocks. Returns the number of channels of every skip connection."""
        config, width = self.config, self.config.model_channels
        self.input_blocks = nn.ModuleList([Block([nn.Conv2d(4, width, 3, padding=1)])])
        skips = [width]
        for level, mult in enumerate(config.channel_mult):
            for _ in range(config.num_res_blocks):
                self.input_blocks.append(self._stage(width, mult * config.model_channels, emb, 2**level))
                width = mult * config.model_channels
                skips.append(width)
            if level < len(config.channel_mult) - 1:
                self.input_blocks.append(Block([Downsample(width)]))
                skips.append(width)
        return skips

    def _build_up(self, emb: int, skips: list[int]) -> None:
        """Builds the output blocks, one for each skip connection."""
        config, width = self.config, skips[-1]
        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(config.channel_mult))):
            for index in range(config.num_res_blocks + 1):
                block = self._stage(width + skips.pop(), mult * config.model_channels, emb, 2**level)
                width = mult * config.model_channels
                if level > 0 and index == config.num_res_blocks:
                    block.append(Upsample(width))
                self.output_blocks.append(block)

    def forward(self, x: Tensor, t: Tensor, context: Tensor, y: Tensor | None = None) -> Tensor:
        emb = self.time_embed(timestep_embedding(t, self.config.model_channels).to(x.dtype))
        if y is not None:
            emb = emb + self.label_emb(y)
        skips, h = [], x
        for block in self.input_blocks:
            h = block(h, emb, context)
            skips.append(h)
        h = self.middle_block(h, emb, context)
        for block in self.output_blocks:
            h = block(_joined(h, skips.pop()), emb, context)
        return self.out(h)


def _joined(h: Tensor, skip: Tensor) -> Tensor:
    """Concatenates h and a skip connection along the channels.

    If the skip connection has an odd height or width, h is one position larger there. h is then resized to the size of
    the skip connection, as in the webui (modules/sd_hijack_unet.py).
    """
    if h.shape[-2:] != skip.shape[-2:]:
        h = F.interpolate(h, skip.shape[-2:], mode="nearest")
    return torch.cat([h, skip], 1)
