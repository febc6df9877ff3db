"""Flattens the decoder or encoder of an AutoencoderKL to a list of steps, and computes the input that each tile needs.

The layout (conv_in, mid, up or down, norm_out, conv_out) is defined in ldm/modules/diffusionmodules/model.py, and sgm
uses the same. The code looks modules up by these names and calls them unchanged, so patches of the host still work.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Size = tuple[int, int]


@dataclass(frozen=True)
class Box:
    """A rectangle of cells in one feature map: rows top..bottom and columns left..right, ends excluded."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def area(self) -> int:
        """The number of cells."""
        return math.prod(self.size)

    def cut(self, x: Tensor, at: Box | None = None) -> Tensor:
        """Crops this box out of x (B, C, h, w), which covers the box `at` or the whole map. Returns a view."""
        top, left = (at.top, at.left) if at else (0, 0)
        return x[..., self.top - top : self.bottom - top, self.left - left : self.right - left]

    @property
    def size(self) -> Size:
        """Rows and columns."""
        return self.bottom - self.top, self.right - self.left

    def common(self, other: Box) -> Box:
        """Returns the intersection with another box that overlaps this one."""
        top, left = max(self.top, other.top), max(self.left, other.left)
        return Box(top, left, min(self.bottom, other.bottom), min(self.right, other.right))

    def grown(self, by: int, size: Size) -> Box:
        """Grows the box by `by` cells on every side, up to the edges of a map of `size`."""
        bottom, right = min(self.bottom + by, size[0]), min(self.right + by, size[1])
        return Box(max(self.top - by, 0), max(self.left - by, 0), bottom, right)


@dataclass(frozen=True, eq=False)
class Step:
    """One convolution with the group norm before it, or one attention.

    `reads` and `writes` name feature maps: "x" is the main path, and "h" is the branch of a residual block.
    """

    kind: str
    """One of conv, up, down and attn."""
    module: Any
    inputs: int
    outputs: int
    norm: nn.GroupNorm | None = None
    reads: str = "x"
    writes: str = "x"
    aside: nn.Module | None = None
    """For the first convolution of a residual block: the shortcut that produces the main path for the second one."""
    adds: bool = False
    """Whether the step adds its output to the main path."""
    lazy: bool = False
    """Whether the output is not stored, but recomputed on every read."""

    def size(self, size: Size) -> Size:
        """Returns the output size for an input of `size`."""
        if self.kind == "up":
            return size[0] * 2, size[1] * 2
        return (size[0] // 2, size[1] // 2) if self.kind == "down" else size

    def needs(self, box: Box, size: Size) -> Box:
        """Returns the box of an input of `size` on which the output in `box` depends."""
        if self.kind == "up":
            box = Box((box.top - 1) // 2, (box.left - 1) // 2, box.bottom // 2 + 1, box.right // 2 + 1)
            return box.grown(0, size)
        if self.kind == "down":
            return Box(box.top * 2, box.left * 2, box.bottom * 2 + 1, box.right * 2 + 1).grown(0, size)
        return box.grown(1, size)

    def run(self, x: Tensor, part: Box, box: Box) -> Tensor:
        """Computes the output in `box` from x, which is the box `part` of the normalised input.

        `part` must contain `needs(box)`. The module pads x with zeros on every side. This is correct at the borders of
        the map. Everywhere else the padding only affects cells outside of `box`.
        """
        top, left = part.top, part.left
        if self.kind == "up":
            top, left = top * 2, left * 2
        elif self.kind == "down":
            top, left = top // 2, left // 2
        y: Tensor = self.module(x)
        return box.cut(y, Box(top, left, box.bottom, box.right))

    def work(self, size: Size) -> float:
        """Estimates the number of multiplications for an input of `size`."""
        cells = math.prod(self.size(size))
        if self.kind == "attn":
            return cells * (4.0 * self.inputs**2 + 2.0 * self.inputs * cells)
        return cells * 9.0 * self.inputs * self.outputs * (2 if self.lazy else 1)

    def elements(self, size: Size) -> int:
        """Returns the number of elements of the input or of the output, whichever is larger, for an input of `size`."""
        return max(self.inputs * math.prod(size), self.outputs * math.prod(self.size(size)))


def decoder_steps(decoder: Any) -> list[Step]:
    """Returns the steps of a decoder. Raises ValueError if its layout is unknown."""
    _require(decoder, ("conv_in", "mid", "up", "norm_out", "conv_out"))
    levels = [(level, "up", getattr(level, "upsample", None)) for level in reversed(decoder.up)]
    steps = _checked([_first(decoder), *_middle(decoder), *_levels(levels), _last(decoder)], decoder)
    last = max((index for index, step in enumerate(steps) if step.kind == "up"), default=None)
    if last is not None and steps[last + 1].aside is not None:
        # this is the largest map: it has more channels than any other map of its size
        steps[last] = replace(steps[last], lazy=True)
    return steps


def encoder_steps(encoder: Any) -> list[Step]:
    """Returns the steps of an encoder. Raises ValueError if its layout is unknown."""
    _require(encoder, ("conv_in", "mid", "down", "norm_out", "conv_out"))
    levels = [(level, "down", getattr(level, "downsample", None)) for level in encoder.down]
    return _checked([_first(encoder), *_levels(levels), *_middle(encoder), _last(encoder)], encoder)


def sizes(steps: Sequence[Step], size: Size) -> list[Size]:
    """Returns the input size of every step, then the output size of the last one, for a first input of `size`."""
    found = [size]
    for step in steps:
        found.append(step.size(found[-1]))
    return found


def part_side(steps: Sequence[Step], limits: Sequence[Size], index: int, tile: int) -> int:
    """Returns the side of output tiles of step `index` that use as much memory as `tile` cells of the largest map."""
    largest = max(step.elements(size) for step, size in zip(steps, limits))
    cells = min(math.prod(size) for size in limits)
    growth = largest / steps[index].elements(limits[index]) * math.prod(limits[index + 1]) / cells
    return max(int(tile * math.sqrt(growth)), 1)


def activate(x: Tensor, scale_shift: Tensor | None) -> Tensor:
    """Computes silu(x * scale + shift) for x (B, C, H, W) and scale_shift (2, C). Returns x if scale_shift is None."""
    if scale_shift is None:
        return x
    return F.silu(normalise(x, scale_shift), inplace=True).to(x.dtype)


def normalise(x: Tensor, scale_shift: Tensor | None) -> Tensor:
    """Computes x * scale + shift in float32 for x (B, C, H, W) and scale_shift (2, C)."""
    if scale_shift is None:
        return x.float()
    scale, shift = scale_shift.to(x.device)[..., None, None]
    y: Tensor = x * scale
    return y.add_(shift)


def whole_bytes(steps: Sequence[Step], size: Size, itemsize: int) -> int:
    """Estimates the peak memory of the network's own forward pass for an input of `size`, in bytes without the weights.

    Before a convolution the network holds the main path, the normalised map, its sigmoid and their product. If the
    webui's attention has no fused kernel, it holds the attention matrix and its softmax
    (sd_hijack_optimizations.py: sdp_attnblock_forward).
    """
    peak, main = 0, 0
    for step, before in zip(steps, sizes(steps, size)):
        entering, leaving = step.inputs * math.prod(before), step.outputs * math.prod(step.size(before))
        if step.reads == "x":
            main = entering
        if step.kind == "attn":
            peak = max(peak, 6 * entering + 2 * math.prod(before) ** 2)
        elif step.norm is not None:
            peak = max(peak, main + 3 * entering, main + entering + leaving)
        else:
            peak = max(peak, entering + leaving * (2 if step.kind == "up" else 1))
    return peak * itemsize


def part_bytes(steps: Sequence[Step], size: Size, itemsize: int, tile: int) -> int:
    """Estimates the memory of tiled_vae for an input of `size` in bytes, without the weights and the stored maps.

    It holds one tile, its normalised copy in 32 bits, another copy in the map's type, and the output. An attention
    also holds all keys and values.
    """
    limits = sizes(steps, size)
    cells = min(math.prod(limit) for limit in limits)
    largest = max(step.elements(limit) for step, limit in zip(steps, limits)) / cells
    keys = max((2 * step.elements(limit) for step, limit in zip(steps, limits) if step.kind == "attn"), default=0)
    return int(largest * min(tile**2, cells) * (4 + 3 * itemsize)) + keys * itemsize


def held_bytes(steps: Sequence[Step], size: Size, itemsize: int) -> int:
    """Returns the peak size of the maps that tiled_vae stores, in bytes, for an input of `size`."""
    peak, main, branch = 0, steps[0].inputs * math.prod(size), 0
    for step, before in zip(steps, sizes(steps, size)):
        leaving = step.outputs * math.prod(step.size(before))
        fresh = 0 if step.adds or step.lazy or step.kind == "attn" else leaving
        peak = max(peak, main + branch + fresh * (2 if step.aside else 1))
        if not step.lazy and (step.writes == "x" or step.aside):
            main = leaving
        branch = leaving if step.writes == "h" else 0
    return peak * itemsize


def _first(network: Any) -> Step:
    return Step("conv", network.conv_in, network.conv_in.in_channels, network.conv_in.out_channels)


def _last(network: Any) -> Step:
    conv = network.conv_out
    return Step("conv", conv, conv.in_channels, conv.out_channels, network.norm_out)


def _middle(network: Any) -> list[Step]:
    middle = network.mid
    return [*_block(middle.block_1), *_attention([middle.attn_1]), *_block(middle.block_2)]


def _levels(levels: Sequence[tuple[Any, str, Any]]) -> list[Step]:
    """Returns the steps of the levels in the given order. The module that resizes the map follows each level."""
    found: list[Step] = []
    for level, kind, resample in levels:
        attentions = list(getattr(level, "attn", ()))
        for index, block in enumerate(level.block):
            found += _block(block)
            found += _attention(attentions[index : index + 1])
        if resample is not None:
            _require(resample, ("conv",))
            channels = resample.conv.in_channels
            found.append(Step(kind, resample, channels, channels))
    return found


def _block(block: Any) -> list[Step]:
    _require(block, ("norm1", "conv1", "norm2", "conv2"))
    if hasattr(block, "conv_shortcut"):
        raise ValueError("a residual block with a 3x3 shortcut")
    first, second = block.conv1, block.conv2
    shortcut = getattr(block, "nin_shortcut", None)
    return [
        Step("conv", first, first.in_channels, first.out_channels, block.norm1, writes="h", aside=shortcut),
        Step("conv", second, second.in_channels, second.out_channels, block.norm2, reads="h", adds=True),
    ]


def _attention(modules: Sequence[Any]) -> list[Step]:
    """Returns the steps of attention modules. An identity module has no step."""
    found = []
    for module in modules:
        if isinstance(module, nn.Identity):
            continue
        _require(module, ("norm", "q", "k", "v", "proj_out"))
        channels = module.q.in_channels
        found.append(Step("attn", module, channels, channels, module.norm))
    return found


def _require(module: Any, names: tuple[str, ...]) -> None:
    missing = [name for name in names if not hasattr(module, name)]
    if missing:
        raise ValueError(f"a {type(module).__name__} without {', '.join(missing)}")


def _checked(steps: list[Step], network: Any) -> list[Step]:
    """Returns the steps. Raises ValueError if they do not reproduce every module of the network."""
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    if any(m.padding_mode != "zeros" or max(m.dilation) > 1 or max(m.kernel_size) > 3 for m in convolutions):
        raise ValueError("a convolution that does not pad with zeros, or a large one")
    if any(step.norm is not None and not isinstance(step.norm, nn.GroupNorm) for step in steps):
        raise ValueError("a normalisation that is not a group norm")
    if getattr(network, "give_pre_end", False):
        raise ValueError("a network without its end")
    return steps


def channel_scale_shift(norm: nn.GroupNorm, mean: Tensor, var: Tensor) -> Tensor:
    """Computes the scale and shift (2, C) of a group norm from the mean and variance (C,) of every channel."""
    mean, var = mean.reshape(norm.num_groups, -1), var.reshape(norm.num_groups, -1)
    centre = mean.mean(1, keepdim=True)
    spread = (var + (mean - centre) ** 2).mean(1, keepdim=True)
    scale = (spread + norm.eps).rsqrt().expand_as(mean).flatten()
    shift = -centre.expand_as(mean).flatten() * scale
    if norm.weight is not None:
        # move before converting: Apple's GPUs have no double precision
        weight, bias = (own.detach().to(mean.device).to(mean.dtype) for own in (norm.weight, norm.bias))
        scale, shift = scale * weight, shift * weight + bias
    return torch.stack([scale, shift]).float()
