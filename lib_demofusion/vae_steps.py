"""An AutoencoderKL's decoder or encoder as a flat list of convolutions, and which part of its input each part needs.

The layout (conv_in, mid, up or down, norm_out, conv_out) is that of ldm/modules/diffusionmodules/model.py, which sgm
shares. Modules are found by these names and called as they are, so that whatever the host does to them still works.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Size = tuple[int, int]


@dataclass(frozen=True)
class Box:
    """A rectangle of cells of one feature map: rows top..bottom and columns left..right, ends excluded."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def area(self) -> int:
        """The number of cells."""
        return (self.bottom - self.top) * (self.right - self.left)

    def cut(self, x: Tensor, at: Box | None = None) -> Tensor:
        """Returns the view of this box in x (B, C, h, w), which is the part `at` of the map, or all of it."""
        top, left = (at.top, at.left) if at else (0, 0)
        return x[..., self.top - top : self.bottom - top, self.left - left : self.right - left]

    def scaled(self, size: Size, other: Size) -> Box:
        """Returns the same part of a map of size `other` as this one is of a map of `size`."""
        top, bottom = (row * other[0] // size[0] for row in (self.top, self.bottom))
        left, right = (column * other[1] // size[1] for column in (self.left, self.right))
        return Box(top, left, bottom, right)

    def grown(self, by: int, size: Size) -> Box:
        """Returns the box with `by` more cells at every side that is inside a map of `size`."""
        bottom, right = min(self.bottom + by, size[0]), min(self.right + by, size[1])
        return Box(max(self.top - by, 0), max(self.left - by, 0), bottom, right)


@dataclass(frozen=True, eq=False)
class Step:
    """One convolution with the normalisation before it, or one attention.

    `reads` and `writes` name the register: "x" is the main path, "h" the branch of a residual block. A step with a
    `skip` adds it, applied to x, to what it computes.
    """

    kind: str  # conv, up, down, attn
    module: nn.Module
    inputs: int
    outputs: int
    norm: nn.GroupNorm | None = None
    skip: nn.Module | None = None
    reads: str = "x"
    writes: str = "x"

    @property
    def in_place(self) -> bool:
        """Whether a part of the output depends on the main path in that part alone."""
        return self.skip is not None or self.kind == "attn"

    def size(self, size: Size) -> Size:
        """Returns the size of the output for an input of `size`."""
        if self.kind == "up":
            return size[0] * 2, size[1] * 2
        return (size[0] // 2, size[1] // 2) if self.kind == "down" else size

    def needs(self, box: Box, size: Size) -> Box:
        """Returns the part of an input of `size` that the part `box` of the output depends on."""
        if self.kind == "up":
            box = Box((box.top - 1) // 2, (box.left - 1) // 2, box.bottom // 2 + 1, box.right // 2 + 1)
            return box.grown(0, size)
        if self.kind == "down":
            return Box(box.top * 2, box.left * 2, box.bottom * 2 + 1, box.right * 2 + 1).grown(0, size)
        return box.grown(1, size)

    def run(self, x: Tensor, part: Box, box: Box) -> Tensor:
        """Returns the part `box` of the output from the part `part` of the (normalised) input, which contains `needs`.

        The module pads with zeros at every side: right at the borders of the map, and elsewhere what it makes wrong
        lies outside of `box`.
        """
        top, left = part.top, part.left
        if self.kind == "up":
            top, left = top * 2, left * 2
        elif self.kind == "down":
            top, left = top // 2, left // 2
        y: Tensor = self.module(x)
        return box.cut(y, Box(top, left, box.bottom, box.right))

    def work(self, size: Size) -> float:
        """Returns about how many multiplications the output for an input of `size` takes."""
        rows, columns = self.size(size)
        if self.kind == "attn":
            return rows * columns * (4.0 * self.inputs**2 + 2.0 * self.inputs * rows * columns)
        return rows * columns * 9.0 * self.inputs * self.outputs


def decoder_steps(decoder: Any) -> list[Step]:
    """Returns the steps of a decoder; ValueError where its layout is another."""
    levels = [(level, "up", getattr(level, "upsample", None)) for level in reversed(decoder.up)]
    return _checked([_first(decoder), *_middle(decoder), *_levels(levels), _last(decoder)], decoder)


def encoder_steps(encoder: Any) -> list[Step]:
    """Returns the steps of an encoder; ValueError where its layout is another."""
    levels = [(level, "down", getattr(level, "downsample", None)) for level in encoder.down]
    return _checked([_first(encoder), *_levels(levels), *_middle(encoder), _last(encoder)], encoder)


def sizes(steps: Sequence[Step], size: Size) -> list[Size]:
    """Returns the size of every step's input, and of the last one's output, for a first input of `size`."""
    found = [size]
    for step in steps:
        found.append(step.size(found[-1]))
    return found


def parts(steps: Sequence[Step], box: Box, limits: Sequence[Size]) -> list[Box]:
    """Returns the part of every step's input that the part `box` of the last output depends on, and `box`."""
    found = [box]
    for step, size in zip(reversed(steps), reversed(limits[:-1])):
        found.append(step.needs(found[-1], size))
    return found[::-1]


def grid(size: Size, side: int) -> list[Box]:
    """Returns boxes of nearly equal size, at most `side` long, that cover a map of `size` without overlap."""
    rows, columns = (-(-n // max(side, 1)) for n in size)
    ys = [size[0] * i // rows for i in range(rows + 1)]
    xs = [size[1] * i // columns for i in range(columns + 1)]
    return [Box(t, left, b, r) for t, b in pairwise(ys) for left, r in pairwise(xs)]


def activate(x: Tensor, norm: nn.GroupNorm | None, scale_shift: Tensor | None) -> Tensor:
    """Returns silu(x * scale + shift), x (B, C, H, W), scale_shift (2, C) of the normalisation; x without a norm."""
    if norm is None or scale_shift is None:
        return x
    return F.silu(normalise(x, scale_shift), inplace=True).to(x.dtype)


def normalise(x: Tensor, scale_shift: Tensor) -> Tensor:
    """Returns x * scale + shift in float32; x (B, C, H, W), scale_shift (2, C)."""
    scale, shift = scale_shift.to(x.device)[..., None, None]
    y: Tensor = x * scale
    return y.add_(shift)


def decode_bytes(steps: Sequence[Step], size: Size, itemsize: int) -> int:
    """Returns about how much memory the host's own run takes at its peak, beyond the weights, input `size`.

    Before a convolution the layout's forward holds the skip, the normalised map, its sigmoid and their product.
    """
    peak = 0
    for step, before, after in zip(steps, (limits := sizes(steps, size)), limits[1:]):
        entering = step.inputs * before[0] * before[1]
        leaving = step.outputs * after[0] * after[1]
        copies = 3 * entering + (entering if step.reads == "x" else leaving) if step.norm else entering
        peak = max(peak, copies, entering + leaving * (2 if step.kind in ("up", "attn") else 1))
    return peak * itemsize


def held_bytes(steps: Sequence[Step], size: Size, itemsize: int) -> int:
    """Returns what the maps of these steps take at their peak when each is held whole, input `size`.

    A residual block holds its input and its branch; what it adds up goes where its input was if that has its shape.
    """
    peak, held = 0, steps[0].inputs * size[0] * size[1] if steps else 0  # held: the main path
    for step, before, after in zip(steps, (limits := sizes(steps, size)), limits[1:]):
        entering, leaving = step.inputs * before[0] * before[1], step.outputs * after[0] * after[1]
        if step.writes == "h":
            peak = max(peak, held + leaving)
            continue
        branch = entering if step.reads == "h" else 0
        fresh = 0 if step.in_place and held == leaving else leaving
        peak, held = max(peak, held + branch + fresh), leaving
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
    """Returns the steps of the levels in the order given, each with the module that changes the size after it."""
    found: list[Step] = []
    for level, kind, resample in levels:
        attentions = list(getattr(level, "attn", ()))
        for index, block in enumerate(level.block):
            found += _block(block)
            found += _attention(attentions[index : index + 1])
        if resample is not None:
            channels = resample.conv.in_channels
            found.append(Step(kind, resample, channels, channels))
    return found


def _block(block: Any) -> list[Step]:
    if hasattr(block, "conv_shortcut"):
        raise ValueError("a residual block with a 3x3 shortcut")
    first, second = block.conv1, block.conv2
    skip = getattr(block, "nin_shortcut", None) or nn.Identity()
    return [
        Step("conv", first, first.in_channels, first.out_channels, block.norm1, writes="h"),
        Step("conv", second, second.in_channels, second.out_channels, block.norm2, skip=skip, reads="h"),
    ]


def _attention(modules: Sequence[Any]) -> list[Step]:
    """Returns the step of an attention; one that does nothing has none."""
    found = []
    for module in modules:
        if isinstance(module, nn.Identity):
            continue
        channels = module.q.in_channels
        found.append(Step("attn", module, channels, channels, module.norm))
    return found


def _checked(steps: list[Step], network: Any) -> list[Step]:
    """Returns the steps where every part of the network is one that they reproduce."""
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    if any(m.padding_mode != "zeros" or max(m.dilation) > 1 or max(m.kernel_size) > 3 for m in convolutions):
        raise ValueError("a convolution that does not pad with zeros, or a large one")
    if any(step.norm is not None and not isinstance(step.norm, nn.GroupNorm) for step in steps):
        raise ValueError("a normalisation that is not a group norm")
    if getattr(network, "give_pre_end", False):
        raise ValueError("a network without its end")
    return steps


def channel_scale_shift(norm: nn.GroupNorm, mean: Tensor, var: Tensor) -> Tensor:
    """Returns scale and shift (2, C) of a group norm from the mean and variance (C,) of every channel."""
    mean, var = mean.reshape(norm.num_groups, -1), var.reshape(norm.num_groups, -1)
    centre = mean.mean(1, keepdim=True)
    spread = (var + (mean - centre) ** 2).mean(1, keepdim=True)
    scale = (spread + norm.eps).rsqrt().expand_as(mean).flatten()
    shift = -centre.expand_as(mean).flatten() * scale
    if norm.weight is not None:
        weight, bias = norm.weight.detach().to(mean), norm.bias.detach().to(mean)
        scale, shift = scale * weight, shift * weight + bias
    return torch.stack([scale, shift]).float()
