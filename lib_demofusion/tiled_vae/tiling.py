"""Decodes and encodes images of any size tile by tile. Except for rounding, the result is the same as without tiles.

In this folder, a tile is a rectangle of a feature map, not a view of the latent.

Two kinds of layers prevent an autoencoder from processing each tile on its own. A group norm needs the mean and the
variance of the whole feature map, and an attention needs every cell. Therefore the outer loop runs over the layers, and
the inner loop runs over the tiles. Each convolution processes the whole map tile by tile, with a margin of one cell. It
also accumulates the mean and the variance for the next group norm.

The result has no seams, and a convolution needs memory for only one tile at a time. Apart from the margins of the
tiles, only the last upsampling of a decoder is computed twice (see `Layer.lazy`). The feature maps between the layers
can be stored outside the GPU and packed into 16 bits (see `feature_maps.Shelf`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib_demofusion.out_of_memory import is_out_of_memory
from lib_demofusion.tiled_vae.feature_maps import ComputedMap, Map, Shelf, grid
from lib_demofusion.tiled_vae.layers import (
    Box,
    Layer,
    activate,
    channel_scale_shift,
    decoder_layers,
    encoder_layers,
    normalise,
    part_side,
    sizes,
)

AUTOMATIC, ALWAYS, NEVER = MODES = ("automatic", "always", "never")
"""When to process an image tile by tile. "automatic" means only if the image does not fit into memory without tiles."""

MATRIX_ELEMENTS = 1 << 26
"""Maximum number of elements of the attention matrix that are computed at once on devices other than CUDA.

These devices may have no fused attention kernel, and then need memory for the whole matrix.
"""


@dataclass(frozen=True)
class Options:
    """Tile size, storage and progress callback of a tiled run."""

    tile: int
    """Side of a tile of the largest map, in latent cells. The tiles of all other maps need about the same memory."""
    shelf: Shelf | None = None
    """Where and how feature maps are stored. With None, they are stored on the device of the input without packing."""
    report: Callable[[float], None] | None = None
    """A function that is called after every tile with the completed share of the work (0 to 1).

    If this function raises an exception, the run ends with this exception.
    """


def decode_tiled(decoder: Any, z: Tensor, options: Options) -> Tensor:
    """Returns decoder(z) (B, 3, 8 H, 8 W) for z (B, C, H, W), computed tile by tile.

    z is the output of post_quant_conv. The result is on the device of the shelf. The shelf can be on the CPU, because
    the webui moves decoded images to the computer's memory. If the input of a group norm contains NaN or infinity, all
    values of the image are NaN.
    """
    pictures = _image_by_image(decoder_layers(decoder), z, options)
    return pictures.tanh_() if getattr(decoder, "tanh_out", False) else pictures


def encode_tiled(encoder: Any, x: Tensor, options: Options) -> Tensor:
    """Returns encoder(x) (B, 2 C, H, W) for x (B, 3, 8 H, 8 W), computed tile by tile.

    The result is on the device of x, because it is small, and it is the input of quant_conv, which runs on this device.
    """
    return _image_by_image(encoder_layers(encoder), x, options).to(x.device)


@torch.no_grad()
def _image_by_image(layers: list[Layer], x: Tensor, options: Options) -> Tensor:
    """Runs the layers for each image of x separately, because a group norm has separate statistics for each image."""
    return torch.cat([_Run(layers, x[i : i + 1], options, i / len(x), 1 / len(x)).result() for i in range(len(x))])


class _NotFiniteError(Exception):
    """Raised if the input of a group norm contains NaN or infinity.

    The run ends early, because the group norm would spread NaN over the whole image.
    """


class _Moments:
    """Accumulates the mean and variance of every channel over the tiles of a feature map."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []
        self._areas: list[int] = []

    def add(self, x: Tensor) -> None:
        """Adds the values of a tile x (1, C, h, w)."""
        self._parts.append(torch.stack(torch.var_mean(x.float(), dim=(0, 2, 3), correction=0)))
        self._areas.append(x.shape[2] * x.shape[3])

    def scale_shift(self, norm: nn.GroupNorm) -> Tensor:
        """Returns the scale and shift (2, C) of a group norm for the whole feature map.

        Raises _NotFiniteError if one of them is NaN or infinite.
        """
        # the shape of var and of mean is (C, number of tiles)
        var, mean = torch.stack(self._parts, 2).cpu().double()
        share = torch.tensor(self._areas, dtype=torch.double) / sum(self._areas)
        centre = mean @ share
        found = channel_scale_shift(norm, centre, (var + (mean - centre[:, None]) ** 2) @ share)
        if not found.isfinite().all():
            raise _NotFiniteError
        return found


class _Run:
    """Runs the layers of a network for one image.

    `done` is the share of the work that is complete before this image, and `share` is the share of this image.
    """

    def __init__(self, layers: list[Layer], x: Tensor, options: Options, done: float, share: float):
        self._layers, self._options = layers, options
        self._sizes = sizes(layers, (x.shape[2], x.shape[3]))
        self._device, self._dtype = x.device, x.dtype
        self._shelf = options.shelf or Shelf(x.device)
        self._done, self._share = done, share
        self._work = sum(layer.work(size) for layer, size in zip(layers, self._sizes))
        self._maps: dict[str, Map | ComputedMap] = {"x": Map.of(x)}
        self._moments: dict[str, _Moments] = {}

    def result(self) -> Tensor:
        """Runs all layers and returns the output of the network."""
        try:
            for index, layer in enumerate(self._layers):
                scale_shift = None if layer.norm is None else self._moments[layer.reads].scale_shift(layer.norm)
                if layer.kind == "attn":
                    self._attend(index, scale_shift)
                elif layer.lazy:
                    self._accumulate(index)
                else:
                    self._convolve(index, scale_shift)
            return self._stored("x").cells
        except _NotFiniteError:
            shape = (1, self._layers[-1].outputs, *self._sizes[-1])
            return torch.full(shape, torch.nan, dtype=self._dtype, device=self._shelf.device)

    def _stored(self, name: str) -> Map:
        """Returns the feature map with this name. Raises TypeError if it is a ComputedMap."""
        found = self._maps[name]
        if isinstance(found, ComputedMap):
            raise TypeError(f"the feature map {name} is not stored")
        return found

    def _new(self, index: int, channels: int) -> Map:
        """Allocates a map for the output of layer `index`. The output of the last layer is not packed or in a file."""
        shelf = self._shelf if index < len(self._layers) - 1 else Shelf(self._shelf.device)
        return Map(shelf, channels, self._sizes[index + 1], self._side(index), self._dtype)

    def _side(self, index: int) -> int:
        """Returns the side of the tiles for the output of layer `index`."""
        return part_side(self._layers, self._sizes, index, self._options.tile)

    def _with_progress(self, boxes: list[Box], index: int) -> Iterator[Box]:
        """Yields the boxes of the output of layer `index`, and reports the progress after each box."""
        work = self._layers[index].work(self._sizes[index]) * self._share / self._work
        for box in boxes:
            yield box
            self._done += work * box.area / math.prod(self._sizes[index + 1])
            if self._options.report is not None:
                self._options.report(min(self._done, 1.0))

    def _convolve(self, index: int, scale_shift: Tensor | None) -> None:
        """Runs layer `index`, a convolution, over the whole map.

        The map "x" contains the input of a residual block, and at the end of the block its output. If the block has a
        shortcut, this function runs the shortcut together with the first convolution of the block, and "x" becomes the
        output of the shortcut. The second convolution adds its output to "x".
        """
        layer, x = self._layers[index], self._maps["x"]
        source = self._maps[layer.reads]
        main = None if layer.shortcut is None else self._new(index, layer.outputs)
        target = self._stored("x") if layer.adds else self._new(index, layer.outputs)
        moments = _Moments()
        for box in self._with_progress(target.boxes, index):
            part = layer.needs(box, source.size)
            here = source.read(part, self._device)
            if layer.shortcut is not None and main is not None:
                main.write(box, layer.shortcut(box.cut(here, part)))
            y = layer.run(activate(here, scale_shift), part, box)
            if layer.adds:
                y = y + x.read(box, self._device)
            moments.add(y)
            target.write(box, y)
        if main is not None:
            self._maps["x"] = main
        if layer.adds:
            del self._maps["h"]
        self._maps[layer.writes], self._moments[layer.writes] = target, moments

    def _accumulate(self, index: int) -> None:
        """Runs the lazy layer `index` once, only to accumulate the mean and variance of its output.

        The output itself is not stored, because it would be the largest map. Later layers read a ComputedMap.
        """
        computed, moments = ComputedMap(self._stored("x"), self._layers[index]), _Moments()
        for box in self._with_progress(grid(computed.size, self._side(index)), index):
            moments.add(computed.read(box, self._device))
        self._maps["x"], self._moments["x"] = computed, moments

    def _attend(self, index: int, scale_shift: Tensor | None) -> None:
        """Runs layer `index`, an attention. All keys and values, but only the queries of one tile, are in memory."""
        x, moments, module = self._stored("x"), _Moments(), self._layers[index].module
        shape = (1, 1, math.prod(x.size), x.channels)
        keys, values = (torch.empty(shape, dtype=self._dtype, device=self._device) for _ in range(2))
        start = 0
        for box in x.boxes:
            normal = normalise(x.read(box, self._device), scale_shift).to(self._dtype)
            keys[0, 0, start : start + box.area] = _tokens(module.k(normal))
            values[0, 0, start : start + box.area] = _tokens(module.v(normal))
            start += box.area
        for box in self._with_progress(x.boxes, index):
            here = x.read(box, self._device)
            queries = _tokens(module.q(normalise(here, scale_shift).to(self._dtype)))
            found = attend(queries[None, None], keys, values)[0, 0]
            y = here + module.proj_out(found.T.reshape(here.shape))
            moments.add(y)
            x.write(box, y)
        self._moments["x"] = moments


def _tokens(y: Tensor) -> Tensor:
    """Converts y (1, C, h, w) to (h * w, C)."""
    return y[0].flatten(1).T


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Computes softmax(q k^T / sqrt(C)) v for queries (1, 1, N, C), and keys and values (1, 1, M, C).

    If memory runs out, the queries are divided into smaller chunks, which are computed one after the other.
    """
    rows, most = queries.shape[2], queries.shape[2]
    if queries.device.type != "cuda":
        most = max(MATRIX_ELEMENTS // keys.shape[2], 1)
    while True:
        try:
            turns = [F.scaled_dot_product_attention(some, keys, values) for some in queries.split(most, 2)]
            return torch.cat(turns, 2)
        except Exception as error:
            if not is_out_of_memory(error) or most <= 64:
                raise
        most = min(most, rows) // 2
