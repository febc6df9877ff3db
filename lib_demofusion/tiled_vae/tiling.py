"""Decoding and encoding of images of any size in parts, with the same result as at once.

What keeps an autoencoder from working in tiles is that its group norms need the mean and variance of a whole map, and
its attention every cell. So the layers, not the tiles, are the outer loop: each convolution runs over the whole map
part by part, with one cell around each part, and the statistics that the next norm needs are gathered on the way.
Hardly anything is computed twice, there is no edge to be seen, and only a few parts have to be where the work is done.
The maps between are held elsewhere, packed if need be (`maps`).
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
from lib_demofusion.tiled_vae.maps import Map, Raised, Shelf, grid
from lib_demofusion.tiled_vae.steps import (
    Box,
    Step,
    activate,
    channel_scale_shift,
    decoder_steps,
    encoder_steps,
    normalise,
    part_side,
    sizes,
)

MATRIX_CELLS = 1 << 26
"""Cells of the attention's matrix at once, where there is no kernel that does without it."""


@dataclass(frozen=True)
class Options:
    """How an image is taken apart, and who is told."""

    tile: int
    """Side of a tile in latent cells: parts take as much memory as one of the largest map has in such a tile."""
    shelf: Shelf | None = None
    """Where maps are held; None is the input's device, and exact."""
    report: Callable[[float], None] | None = None
    """Called with the share done, after every part; what it raises ends the run."""


def decode_tiled(decoder: Any, z: Tensor, options: Options) -> Tensor:
    """Returns what decoder(z) returns, (B, C, H, W) -> (B, 3, 8 H, 8 W), on the shelf's device: an image is large, and
    is wanted in the computer's memory next.

    z is what the decoder takes, after post_quant_conv. A result that would hold NaN is NaN everywhere.
    """
    pictures = _each(decoder_steps(decoder), z, options)
    return pictures.tanh_() if getattr(decoder, "tanh_out", False) else pictures


def encode_tiled(encoder: Any, x: Tensor, options: Options) -> Tensor:
    """Returns what encoder(x) returns, the moments before quant_conv, (B, 3, 8 H, 8 W) -> (B, 2 C, H, W).

    They are small, and lie where x does, whatever the shelf: quant_conv takes them next.
    """
    return _each(encoder_steps(encoder), x, options).to(x.device)


@torch.no_grad()
def _each(steps: list[Step], x: Tensor, options: Options) -> Tensor:
    """Returns the outputs for the images of x, one after the other: each has its own statistics."""
    return torch.cat([_Run(steps, x[i : i + 1], options, i / len(x), 1 / len(x)).result() for i in range(len(x))])


class _NotFiniteError(Exception):
    """A map holds NaN or infinity, so that the whole result would be NaN."""


class _Moments:
    """Mean and variance of every channel over the parts of a map."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []
        self._areas: list[int] = []

    def add(self, x: Tensor) -> None:
        """Adds a part x (1, C, h, w)."""
        self._parts.append(torch.stack(torch.var_mean(x.float(), dim=(0, 2, 3), correction=0)))
        self._areas.append(x.shape[2] * x.shape[3])

    def scale_shift(self, norm: nn.GroupNorm) -> Tensor:
        """Returns what a group norm over all parts multiplies by and adds, (2, C)."""
        var, mean = torch.stack(self._parts, 2).cpu().double()  # (C, parts) each
        share = torch.tensor(self._areas, dtype=torch.double) / sum(self._areas)
        centre = mean @ share
        found = channel_scale_shift(norm, centre, (var + (mean - centre[:, None]) ** 2) @ share)
        if not found.isfinite().all():
            raise _NotFiniteError
        return found


class _Run:
    """One image's way through the network."""

    def __init__(self, steps: list[Step], x: Tensor, options: Options, done: float, share: float):
        self._steps, self._options = steps, options
        self._sizes = sizes(steps, (x.shape[2], x.shape[3]))
        self._device, self._dtype = x.device, x.dtype
        self._shelf = options.shelf or Shelf(x.device)
        self._done, self._share = done, share
        self._work = sum(step.work(size) for step, size in zip(steps, self._sizes))
        self._maps: dict[str, Map | Raised] = {"x": Map.of(x)}
        self._moments: dict[str, _Moments] = {}

    def result(self) -> Tensor:
        """Returns the network's output."""
        try:
            for index, step in enumerate(self._steps):
                scale_shift = None if step.norm is None else self._moments[step.reads].scale_shift(step.norm)
                if step.kind == "attn":
                    self._attend(index, scale_shift)
                elif step.lazy:
                    self._raise(index)
                else:
                    self._convolve(index, scale_shift)
            return self._held("x").cells
        except _NotFiniteError:
            shape = (1, self._steps[-1].outputs, *self._sizes[-1])
            return torch.full(shape, torch.nan, dtype=self._dtype, device=self._shelf.device)

    def _held(self, register: str) -> Map:
        found = self._maps[register]
        if isinstance(found, Raised):
            raise TypeError(f"the map {register} is not held")
        return found

    def _new(self, index: int, channels: int) -> Map:
        """Returns a map for what step `index` puts out."""
        shelf = self._shelf if index < len(self._steps) - 1 else Shelf(self._shelf.device)
        return Map(shelf, channels, self._sizes[index + 1], self._side(index), self._dtype)

    def _side(self, index: int) -> int:
        """Returns the side of parts of a step's output that take as much memory as a tile of the largest map."""
        return part_side(self._steps, self._sizes, index, self._options.tile)

    def _paced(self, boxes: list[Box], index: int) -> Iterator[Box]:
        """Returns the boxes one by one and says after each how much is done."""
        work = self._steps[index].work(self._sizes[index]) * self._share / self._work
        for box in boxes:
            yield box
            self._done += work * box.area / math.prod(self._sizes[index + 1])
            if self._options.report is not None:
                self._options.report(min(self._done, 1.0))

    def _convolve(self, index: int, scale_shift: Tensor | None) -> None:
        """Runs a convolution over the whole map.

        The first of a residual block also puts the block's shortcut in the place of the main path, where the second
        then adds its output.
        """
        step, x = self._steps[index], self._maps["x"]
        source = self._maps[step.reads]
        shortcut = None if step.aside is None else self._new(index, step.outputs)
        target = self._held("x") if step.adds else self._new(index, step.outputs)
        moments = _Moments()
        for box in self._paced(target.boxes, index):
            part = step.needs(box, source.size)
            here = source.read(part, self._device)
            if step.aside is not None and shortcut is not None:
                shortcut.write(box, step.aside(box.cut(here, part)))
            y = step.run(activate(here, scale_shift), part, box)
            if step.adds:
                y = y + x.read(box, self._device)
            moments.add(y)
            target.write(box, y)
        if shortcut is not None:
            self._maps["x"] = shortcut
        if step.adds:
            del self._maps["h"]
        self._maps[step.writes], self._moments[step.writes] = target, moments

    def _raise(self, index: int) -> None:
        """Measures the output of a step that is computed again when it is read, because it would be the largest map."""
        raised, moments = Raised(self._held("x"), self._steps[index]), _Moments()
        for box in self._paced(grid(raised.size, self._side(index)), index):
            moments.add(raised.read(box, self._device))
        self._maps["x"], self._moments["x"] = raised, moments

    def _attend(self, index: int, scale_shift: Tensor | None) -> None:
        """Runs an attention: all keys at once, and the queries part by part."""
        x, moments, module = self._held("x"), _Moments(), self._steps[index].module
        shape = (1, 1, math.prod(x.size), x.channels)
        keys, values = (torch.empty(shape, dtype=self._dtype, device=self._device) for _ in range(2))
        start = 0
        for box in x.boxes:
            normal = normalise(x.read(box, self._device), scale_shift).to(self._dtype)
            keys[0, 0, start : start + box.area] = _tokens(module.k(normal))
            values[0, 0, start : start + box.area] = _tokens(module.v(normal))
            start += box.area
        for box in self._paced(x.boxes, index):
            here = x.read(box, self._device)
            queries = _tokens(module.q(normalise(here, scale_shift).to(self._dtype)))
            found = attend(queries[None, None], keys, values)[0, 0]
            y = here + module.proj_out(found.T.reshape(here.shape))
            moments.add(y)
            x.write(box, y)
        self._moments["x"] = moments


def _tokens(y: Tensor) -> Tensor:
    return y[0].flatten(1).T  # (1, C, h, w) -> (h w, C)


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Returns softmax(q k^T / sqrt(C)) v for (1, 1, N, C) and (1, 1, M, C), in as many turns as the memory needs."""
    rows, most = queries.shape[2], queries.shape[2]
    if queries.device.type != "cuda":
        most = max(MATRIX_CELLS // keys.shape[2], 1)
    while True:
        try:
            turns = [F.scaled_dot_product_attention(some, keys, values) for some in queries.split(most, 2)]
            return torch.cat(turns, 2)
        except Exception as error:
            if not is_out_of_memory(error) or most <= 64:
                raise
        most = min(most, rows) // 2
