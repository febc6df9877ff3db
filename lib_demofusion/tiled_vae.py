"""Decoding and encoding of pictures of any size in parts, with the group norms' statistics shared by all parts.

As far as feature maps fit `room`, they are held whole and every convolution runs on them part by part, with its one
cell of surroundings: the result is exact and no work is done twice. Where they do not fit, tiles go through the rest
of the network with as much surroundings as its convolutions reach, and with statistics from a sample of the picture.
Either way the same numbers are computed on both sides of an edge between parts, so that there is no seam.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib_demofusion.vae_sample import block_features, choose
from lib_demofusion.vae_steps import (
    Box,
    Size,
    Step,
    activate,
    channel_scale_shift,
    decoder_steps,
    encoder_steps,
    grid,
    held_bytes,
    normalise,
    parts,
    sizes,
)

# Side of a sampled block in latent cells, the share of the blocks that is sampled, and the bounds of their number.
BLOCK = 8
SHARE = 0.1
FEWEST, MOST = 48, 512


@dataclass(frozen=True)
class Options:
    """How a picture is taken apart, and who is told."""

    # Side of a tile in latent cells.
    tile: int
    # Bytes that the maps held whole may take; None is no limit, and exact.
    room: int | None = None
    # Where they are held, and the result is put; None is the input's device.
    keep: torch.device | None = None
    # Called with the share done, after every part.
    report: Callable[[float], None] | None = None
    # Called before every part; what it raises ends the run.
    check: Callable[[], None] | None = None


def decode_tiled(decoder: Any, z: Tensor, options: Options) -> Tensor:
    """Returns what decoder(z) returns, (B, C, H, W) -> (B, 3, 8 H, 8 W), on the device `options.keep`.

    z is what the decoder takes, after post_quant_conv. A result that would hold NaN is NaN everywhere.
    """
    steps = decoder_steps(decoder)
    pictures = _each(steps, z, options, _Run.decode)
    return pictures.tanh_() if getattr(decoder, "tanh_out", False) else pictures


def encode_tiled(encoder: Any, x: Tensor, options: Options) -> Tensor:
    """Returns what encoder(x) returns, the moments before quant_conv, (B, 3, 8 H, 8 W) -> (B, 2 C, H, W)."""
    return _each(encoder_steps(encoder), x, options, _Run.encode)


@torch.no_grad()
def _each(steps: list[Step], x: Tensor, options: Options, way: Callable[[_Run], Tensor]) -> Tensor:
    """Returns the outputs for the pictures of x, one after the other: each has its own statistics."""
    return torch.cat([way(_Run(steps, x[i : i + 1], options, i / len(x), 1 / len(x))) for i in range(len(x))])


class _NotFinite(Exception):
    """A feature map holds NaN or infinity, so that the whole result would be NaN."""


class _Moments:
    """Mean and variance of every channel over parts, each counted by its area and weight."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []
        self._areas: list[float] = []

    def add(self, x: Tensor, weight: float = 1.0) -> None:
        """Adds a part x (1, C, h, w)."""
        self._parts.append(torch.stack(torch.var_mean(x.float(), dim=(0, 2, 3), correction=0)))
        self._areas.append(x.shape[2] * x.shape[3] * weight)

    def scale_shift(self, norm: nn.GroupNorm) -> Tensor:
        """Returns what a group norm over all parts multiplies by and adds, (2, C)."""
        var, mean = torch.stack(self._parts, 2).cpu().double()  # (C, parts) each
        share = torch.tensor(self._areas, dtype=torch.double)
        share /= share.sum()
        centre = mean @ share
        found = channel_scale_shift(norm, centre, (var + (mean - centre[:, None]) ** 2) @ share)
        if not found.isfinite().all():
            raise _NotFinite
        return found


class _Piece:
    """A part of the picture on its way through steps, with as much around it as each step needs."""

    def __init__(self, x: Tensor, steps: Sequence[Step], box: Box, limits: Sequence[Size], weight: float = 1.0):
        self.steps = steps
        self.weight = weight
        # of every step's input, and the output
        self.needed = parts(steps, box, limits)
        self.core = [box.scaled(limits[-1], size) for size in limits]
        self._held = {"x": (self.needed[0].cut(x), self.needed[0])}

    def middle(self, index: int, register: str) -> Tensor:
        """Returns what the piece stands for in the input of step `index`, without what is around it."""
        x, at = self._held[register]
        return self.core[index].cut(x, at)

    def advance(self, index: int, scale_shift: Tensor | None, device: torch.device, keep: torch.device) -> None:
        """Runs step `index` on the device."""
        step, after = self.steps[index], self.needed[index + 1]
        x, part = self._held[step.reads]
        y = step.run(activate(x.to(device), step.norm, scale_shift), part, after)
        if step.skip is not None:
            y = y + step.skip(after.cut(*self._held["x"]).to(device))
            del self._held["h"]
        self._held[step.writes] = (y.to(keep), after)


class _Run:
    """One picture's way through the network."""

    def __init__(self, steps: list[Step], x: Tensor, options: Options, done: float, share: float):
        self._steps, self._x, self._options = steps, x, options
        self._keep = options.keep or x.device
        self._sizes = sizes(steps, (x.shape[2], x.shape[3]))
        self._cells = min(rows * columns for rows, columns in self._sizes)
        # what each step's normalisation multiplies by and adds
        self._norms: dict[int, Tensor] = {}
        self._done, self._share = done, share
        self._work = sum(step.work(size) for step, size in zip(steps, self._sizes))

    def decode(self) -> Tensor:
        """Returns the output: exact up to a step, after every attention and as late as fits, and then in tiles."""
        end = len(self._steps)
        least = max((i + 1 for i, step in enumerate(self._steps) if step.kind == "attn"), default=1)
        cuts = [i for i in range(least, end) if self._steps[i].reads == "x"]
        cut = next((cut for cut in (end, *reversed(cuts)) if self._fits(0, cut)), cuts[0])
        try:
            x, moments = self._whole(self._x, _Moments(), 0, cut)
            return self._tiles(x, moments, cut, end)[0]
        except _NotFinite:
            return self._nan()

    def encode(self) -> Tensor:
        """Returns the output: in tiles up to a step, before every attention and as early as fits, and then exact."""
        end = len(self._steps)
        most = min((i for i, step in enumerate(self._steps) if step.kind == "attn"), default=end - 1)
        cuts = [i for i in range(most + 1) if self._steps[i].reads == "x"]
        cut = next((cut for cut in cuts if self._fits(cut, end)), cuts[-1])
        try:
            x, moments = self._tiles(self._x, None, 0, cut)
            return self._whole(x, moments, cut, end)[0]
        except _NotFinite:
            return self._nan()

    def _nan(self) -> Tensor:
        shape = (1, self._steps[-1].outputs, *self._sizes[-1])
        return torch.full(shape, torch.nan, dtype=self._x.dtype, device=self._keep)

    def _fits(self, first: int, last: int) -> bool:
        room = self._options.room
        needed = held_bytes(self._steps[first:last], self._sizes[first], self._x.element_size())
        return room is None or needed <= room

    def _begin(self) -> None:
        if self._options.check is not None:
            self._options.check()

    def _end(self, work: float) -> None:
        self._done += work / self._work * self._share
        if self._options.report is not None:
            self._options.report(min(self._done, 1.0))

    def _whole(self, x: Tensor, moments: _Moments, first: int, last: int) -> tuple[Tensor, _Moments]:
        """Returns the map after the steps first..last, each run over the whole map, and its moments."""
        maps, found = {"x": x}, {"x": moments}
        for index in range(first, last):
            step = self._steps[index]
            if step.norm is not None:
                self._norms[index] = found[step.reads].scale_shift(step.norm)
            run = self._attention if step.kind == "attn" else self._convolution
            result = run(index, maps)
            if step.skip is not None:
                del maps["h"]
            maps[step.writes], found[step.writes] = result
        return maps["x"], found["x"]

    def _target(self, index: int, x: Tensor) -> Tensor:
        """Returns where step `index` puts its output: over the main path x where that is no more needed."""
        step, size = self._steps[index], self._sizes[index + 1]
        if step.in_place and x.shape[1:] == (step.outputs, *size):
            return x
        return torch.empty((1, step.outputs, *size), dtype=x.dtype, device=self._keep)

    def _convolution(self, index: int, maps: dict[str, Tensor]) -> tuple[Tensor, _Moments]:
        """Returns the output of a step for whole maps, and its moments."""
        step, size, after = self._steps[index], self._sizes[index], self._sizes[index + 1]
        out, moments, device = self._target(index, maps["x"]), _Moments(), self._x.device
        for box in grid(after, self._side(index)):
            self._begin()
            part = step.needs(box, size)
            y = step.run(activate(part.cut(maps[step.reads]).to(device), step.norm, self._norms.get(index)), part, box)
            if step.skip is not None:
                y = y + step.skip(box.cut(maps["x"]).to(device))
            moments.add(y)
            box.cut(out).copy_(y)
            self._end(step.work(size) * box.area / (after[0] * after[1]))
        return out, moments

    def _attention(self, index: int, maps: dict[str, Tensor]) -> tuple[Tensor, _Moments]:
        """Returns the output of an attention for the whole map, and its moments: queries in parts, all keys at once."""
        step, size, x, device = self._steps[index], self._sizes[index], maps["x"], self._x.device
        module: Any = step.module
        boxes = grid(size, self._side(index))

        def normal(box: Box) -> Tensor:
            return normalise(box.cut(x).to(device), self._norms[index]).to(x.dtype)

        def tokens(y: Tensor) -> Tensor:
            return y.flatten(2).transpose(1, 2)  # (1, C, h, w) -> (1, h w, C)

        keys = torch.cat([tokens(module.k(normal(box))) for box in boxes], 1)
        values = torch.cat([tokens(module.v(normal(box))) for box in boxes], 1)
        moments = _Moments()
        for box in boxes:
            self._begin()
            found = attend(tokens(module.q(normal(box))), keys, values)
            here = box.cut(x)
            y = here.to(device) + module.proj_out(found.transpose(1, 2).reshape(here.shape))
            moments.add(y)
            here.copy_(y)
            self._end(step.work(size) * box.area / (size[0] * size[1]))
        return x, moments

    def _side(self, index: int) -> int:
        """Returns the side of parts of a step's output, for parts no larger in bytes than the largest step's tile."""

        def elements(i: int) -> float:
            (top, left), (bottom, right), step = self._sizes[i], self._sizes[i + 1], self._steps[i]
            return float(max(step.inputs * top * left, step.outputs * bottom * right))

        growth = max(elements(i) for i in range(len(self._steps))) / elements(index)
        return max(int(self._options.tile * math.sqrt(growth) * self._scale(index + 1)), 1)

    def _scale(self, index: int) -> int:
        """Returns the side of a latent cell in the input of step `index`."""
        rows, columns = self._sizes[index]
        return max(round(math.sqrt(rows * columns / self._cells)), 1)

    def _tiles(self, x: Tensor, moments: _Moments | None, first: int, last: int) -> tuple[Tensor, _Moments]:
        """Returns the map after the steps first..last, tile by tile, and its moments; x is the map before them."""
        if first == last:
            return x, moments or _Moments()
        steps, limits, device = self._steps[first:last], self._sizes[first : last + 1], self._x.device
        self._sample(x, moments, first, last)
        out = torch.empty((1, steps[-1].outputs, *limits[-1]), dtype=x.dtype, device=self._keep)
        found = _Moments()
        for box in grid(limits[-1], self._options.tile * self._scale(last)):
            piece = _Piece(x, steps, box, limits)
            for index in range(len(steps)):
                self._begin()
                piece.advance(index, self._norms.get(first + index), device, device)
            y = piece.middle(len(steps), "x")
            if y.isnan().any():
                raise _NotFinite
            found.add(y)
            box.cut(out).copy_(y)
            work = sum(step.work(size) for step, size in zip(steps, limits))
            self._end(work * box.area / (limits[-1][0] * limits[-1][1]))
        return out, found

    def _sample(self, x: Tensor, moments: _Moments | None, first: int, last: int) -> None:
        """Finds the statistics of the norms of the steps first..last; x is the map before them.

        The sampled blocks go through the steps side by side, so that each norm is measured before it is applied.
        """
        steps, limits = self._steps[first:last], self._sizes[first : last + 1]
        pieces = self._pieces(x, steps, limits)
        normed = [index for index, step in enumerate(steps) if step.norm is not None]
        for index in range(max(normed, default=-1) + 1):
            step = steps[index]
            if step.norm is not None:
                if index or moments is None:
                    moments = _Moments()
                    for piece in pieces:
                        moments.add(piece.middle(index, step.reads).to(self._x.device), piece.weight)
                self._norms[first + index] = moments.scale_shift(step.norm)
            if index < normed[-1]:
                for piece in pieces:
                    self._begin()
                    piece.advance(index, self._norms.get(first + index), self._x.device, self._keep)

    def _pieces(self, x: Tensor, steps: Sequence[Step], limits: Sequence[Size]) -> list[_Piece]:
        """Returns the sampled blocks of the map x before the steps."""
        scale = self._scale(len(self._sizes) - 1)
        boxes = grid(limits[-1], BLOCK * scale)
        features = block_features(x, [box.scaled(limits[-1], limits[0]) for box in boxes], self._x.device)
        count = min(max(round(len(boxes) * SHARE), FEWEST), MOST)
        areas = torch.tensor([float(box.area) for box in boxes], dtype=torch.double)
        return [_Piece(x, steps, boxes[i], limits, w) for i, w in choose(features, areas, count)]


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Returns softmax(q k^T / sqrt(C)) v for (1, N, C) and (1, M, C); in halves where the memory does not suffice."""
    try:
        return F.scaled_dot_product_attention(queries, keys, values)
    except RuntimeError as error:
        if "out of memory" not in str(error).lower() or queries.shape[1] < 64:
            raise
    half = queries.shape[1] // 2
    return torch.cat([attend(queries[:, :half], keys, values), attend(queries[:, half:], keys, values)], 1)
