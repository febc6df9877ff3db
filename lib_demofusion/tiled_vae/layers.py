"""Converts the decoder or encoder of an AutoencoderKL to a list of layers, which can run tile by tile.

The names of the modules (conv_in, mid, up or down, norm_out, conv_out) are defined in
ldm/modules/diffusionmodules/model.py. sgm uses the same names. The code finds the modules by these names and calls them
unchanged, so the host's patches of these modules still work.
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
    """A rectangle of cells in a feature map. The row `bottom` and the column `right` do not belong to the rectangle."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def area(self) -> int:
        """The number of cells in the box."""
        return math.prod(self.size)

    def cut(self, x: Tensor, at: Box | None = None) -> Tensor:
        """Returns the values of x (B, C, h, w) in this box without copying.

        x contains the values of the box `at`, or of the whole map if `at` is None.
        """
        top, left = (at.top, at.left) if at else (0, 0)
        return x[..., self.top - top : self.bottom - top, self.left - left : self.right - left]

    @property
    def size(self) -> Size:
        """The number of rows and the number of columns in the box."""
        return self.bottom - self.top, self.right - self.left

    def common(self, other: Box) -> Box:
        """Returns the intersection of this box and another box, which must overlap."""
        top, left = max(self.top, other.top), max(self.left, other.left)
        return Box(top, left, min(self.bottom, other.bottom), min(self.right, other.right))

    def grown(self, by: int, size: Size) -> Box:
        """Returns a box that is larger by `by` cells on every side, but does not exceed a map of `size`."""
        bottom, right = min(self.bottom + by, size[0]), min(self.right + by, size[1])
        return Box(max(self.top - by, 0), max(self.left - by, 0), bottom, right)


@dataclass(frozen=True, eq=False)
class Layer:
    """A convolution or an attention, together with the group norm before it if there is one.

    `inputs` and `outputs` are numbers of channels. `reads` and `writes` are the names of the input and output feature
    maps. The map "x" is the main path, and "h" is the branch of a residual block.
    """

    kind: str
    """One of conv, up (upsampling and a convolution), down (a convolution with stride 2) and attn."""
    module: Any
    inputs: int
    outputs: int
    norm: nn.GroupNorm | None = None
    reads: str = "x"
    writes: str = "x"
    shortcut: nn.Module | None = None
    """The module nin_shortcut of a residual block. Only the layer of the first convolution of a block can have it."""
    adds: bool = False
    """Whether the layer adds its output to the main path."""
    lazy: bool = False
    """Whether the output is computed again on every read instead of being stored (see `ComputedMap`)."""

    def size(self, size: Size) -> Size:
        """Returns the output size for an input of `size`."""
        if self.kind == "up":
            return size[0] * 2, size[1] * 2
        return (size[0] // 2, size[1] // 2) if self.kind == "down" else size

    def needs(self, box: Box, size: Size) -> Box:
        """Returns the box of the input that is needed to compute the output in `box`. `size` is the size of the input.

        This does not apply to an attention, which needs the whole input.
        """
        if self.kind == "up":
            box = Box((box.top - 1) // 2, (box.left - 1) // 2, box.bottom // 2 + 1, box.right // 2 + 1)
            return box.grown(0, size)
        if self.kind == "down":
            return Box(box.top * 2, box.left * 2, box.bottom * 2 + 1, box.right * 2 + 1).grown(0, size)
        return box.grown(1, size)

    def run(self, x: Tensor, part: Box, box: Box) -> Tensor:
        """Computes the output in `box` from x, the values of the input in the box `part`.

        If the layer has a group norm, x must already be normalised and activated (see `activate`). `part` must contain
        the result of `needs` for `box`. The module pads x with zeros: on every side, or only at the bottom and right if
        the kind is "down". At the borders of the map, this is correct. At the other sides of x, the padding affects
        only cells outside of `box`.
        """
        top, left = part.top, part.left
        if self.kind == "up":
            top, left = top * 2, left * 2
        elif self.kind == "down":
            top, left = top // 2, left // 2
        y: Tensor = self.module(x)
        return box.cut(y, Box(top, left, box.bottom, box.right))

    def work(self, size: Size) -> float:
        """Estimates the number of multiplications for an input of `size`.

        A lazy layer counts twice, because it is computed once for the next group norm and once for the next layer.
        """
        cells = math.prod(self.size(size))
        if self.kind == "attn":
            return cells * (4.0 * self.inputs**2 + 2.0 * self.inputs * cells)
        return cells * 9.0 * self.inputs * self.outputs * (2 if self.lazy else 1)

    def elements(self, size: Size) -> int:
        """Returns the number of elements of the input or of the output, whichever is larger.

        `size` is the size of the input.
        """
        return max(self.inputs * math.prod(size), self.outputs * math.prod(self.size(size)))


def decoder_layers(decoder: Any) -> list[Layer]:
    """Returns the layers of a decoder in their order. Raises ValueError if the decoder cannot run tile by tile."""
    _require(decoder, ("conv_in", "mid", "up", "norm_out", "conv_out"))
    levels = [(level, "up", getattr(level, "upsample", None)) for level in reversed(decoder.up)]
    layers = _checked([_first(decoder), *_middle(decoder), *_levels(levels), _last(decoder)], decoder)
    last = max((index for index, layer in enumerate(layers) if layer.kind == "up"), default=None)
    if last is not None and layers[last + 1].shortcut is not None:
        # the output of the last upsampling is not stored, because it is the largest map: all later maps have the same
        # size and fewer channels. A block without a shortcut needs the stored map, because it adds its output to it
        layers[last] = replace(layers[last], lazy=True)
    return layers


def encoder_layers(encoder: Any) -> list[Layer]:
    """Returns the layers of an encoder in their order. Raises ValueError if the encoder cannot run tile by tile."""
    _require(encoder, ("conv_in", "mid", "down", "norm_out", "conv_out"))
    levels = [(level, "down", getattr(level, "downsample", None)) for level in encoder.down]
    return _checked([_first(encoder), *_levels(levels), *_middle(encoder), _last(encoder)], encoder)


def sizes(layers: Sequence[Layer], size: Size) -> list[Size]:
    """Returns the input size of every layer, and finally the output size of the last layer.

    `size` is the input size of the first layer.
    """
    found = [size]
    for layer in layers:
        found.append(layer.size(found[-1]))
    return found


def part_side(layers: Sequence[Layer], limits: Sequence[Size], index: int, tile: int) -> int:
    """Returns the side of the tiles in which the output of layer `index` is computed.

    The side is chosen so that all layers need about the same memory for a tile. At the layer with the largest map, a
    tile covers `tile` x `tile` cells of the latent. `limits` is the result of `sizes`.
    """
    largest = max(layer.elements(size) for layer, size in zip(layers, limits))
    cells = min(math.prod(size) for size in limits)
    growth = largest / layers[index].elements(limits[index]) * math.prod(limits[index + 1]) / cells
    return max(int(tile * math.sqrt(growth)), 1)


def activate(x: Tensor, scale_shift: Tensor | None) -> Tensor:
    """Computes silu(x * scale + shift) for x (B, C, H, W) and scale_shift (2, C), in the dtype of x.

    Returns x if scale_shift is None.
    """
    if scale_shift is None:
        return x
    return F.silu(normalise(x, scale_shift), inplace=True).to(x.dtype)


def normalise(x: Tensor, scale_shift: Tensor | None) -> Tensor:
    """Computes x * scale + shift in float32 for x (B, C, H, W) and scale_shift (2, C).

    Returns x in float32 if scale_shift is None.
    """
    if scale_shift is None:
        return x.float()
    scale, shift = scale_shift.to(x.device)[..., None, None]
    y: Tensor = x * scale
    return y.add_(shift)


def _first(network: Any) -> Layer:
    return Layer("conv", network.conv_in, network.conv_in.in_channels, network.conv_in.out_channels)


def _last(network: Any) -> Layer:
    conv = network.conv_out
    return Layer("conv", conv, conv.in_channels, conv.out_channels, network.norm_out)


def _middle(network: Any) -> list[Layer]:
    middle = network.mid
    return [*_block(middle.block_1), *_attention([middle.attn_1]), *_block(middle.block_2)]


def _levels(levels: Sequence[tuple[Any, str, Any]]) -> list[Layer]:
    """Returns the layers of all levels in the given order.

    A level consists of the module with its blocks, the kind of its last layer ("up" or "down"), and the module of its
    last layer, which resizes the map. The last module can be None.
    """
    found: list[Layer] = []
    for level, kind, resample in levels:
        attentions = list(getattr(level, "attn", ()))
        for index, block in enumerate(level.block):
            found += _block(block)
            found += _attention(attentions[index : index + 1])
        if resample is not None:
            _require(resample, ("conv",))
            channels = resample.conv.in_channels
            found.append(Layer(kind, resample, channels, channels))
    return found


def _block(block: Any) -> list[Layer]:
    _require(block, ("norm1", "conv1", "norm2", "conv2"))
    if hasattr(block, "conv_shortcut"):
        raise ValueError("a residual block with a 3x3 shortcut")
    first, second = block.conv1, block.conv2
    shortcut = getattr(block, "nin_shortcut", None)
    return [
        Layer("conv", first, first.in_channels, first.out_channels, block.norm1, writes="h", shortcut=shortcut),
        Layer("conv", second, second.in_channels, second.out_channels, block.norm2, reads="h", adds=True),
    ]


def _attention(modules: Sequence[Any]) -> list[Layer]:
    """Returns one layer for each attention module. Modules of the class nn.Identity are left out."""
    found = []
    for module in modules:
        if isinstance(module, nn.Identity):
            continue
        _require(module, ("norm", "q", "k", "v", "proj_out"))
        channels = module.q.in_channels
        found.append(Layer("attn", module, channels, channels, module.norm))
    return found


def _require(module: Any, names: tuple[str, ...]) -> None:
    missing = [name for name in names if not hasattr(module, name)]
    if missing:
        raise ValueError(f"a {type(module).__name__} without {', '.join(missing)}")


def _checked(layers: list[Layer], network: Any) -> list[Layer]:
    """Returns `layers`. Raises ValueError if the result of a tiled run would differ from the result of the network."""
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    if any(m.padding_mode != "zeros" or max(m.dilation) > 1 or max(m.kernel_size) > 3 for m in convolutions):
        raise ValueError("a convolution that is dilated, larger than 3x3 or not padded with zeros")
    if any(layer.norm is not None and not isinstance(layer.norm, nn.GroupNorm) for layer in layers):
        raise ValueError("a normalisation that is not a group norm")
    if getattr(network, "give_pre_end", False):
        raise ValueError("a network that omits its last layers (give_pre_end)")
    return layers


def channel_scale_shift(norm: nn.GroupNorm, mean: Tensor, var: Tensor) -> Tensor:
    """Computes the scale and shift (2, C) of a group norm from the mean and variance (C,) of every channel."""
    mean, var = mean.reshape(norm.num_groups, -1), var.reshape(norm.num_groups, -1)
    centre = mean.mean(1, keepdim=True)
    spread = (var + (mean - centre) ** 2).mean(1, keepdim=True)
    scale = (spread + norm.eps).rsqrt().expand_as(mean).flatten()
    shift = -centre.expand_as(mean).flatten() * scale
    if norm.weight is not None:
        # first moved from the GPU, then converted to double precision, which Apple's GPUs do not have
        weight, bias = (own.detach().to(mean.device).to(mean.dtype) for own in (norm.weight, norm.bias))
        scale, shift = scale * weight, shift * weight + bias
    return torch.stack([scale, shift]).float()
