"""Feature maps that are held whole while they are worked on part by part: in memory or in a file, exact or packed."""

from __future__ import annotations

import mmap
import sys
import tempfile
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from lib_demofusion.tiled_vae.steps import Box, Size, Step

LEAST, GREATEST = -32768, 32767

MMAP_EXTENDS = sys.platform == "win32"
"""Whether mapping a file makes it as long as the map. `truncate` would write every byte of it there (_chsize_s), which
takes minutes for the maps of a large image; elsewhere it writes none."""


@dataclass(frozen=True)
class Shelf:
    """Where and how maps are held."""

    device: torch.device
    packed: bool = False
    """Holds 32-bit numbers in 16 bits: every channel of every part between its least and its greatest value."""
    folder: Path | None = None
    """Holds maps in temporary files in this folder, which the system keeps in memory as far as there is any."""

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Returns a tensor that is not filled in."""
        if self.folder is None:
            return torch.empty(shape, dtype=dtype, device=self.device)
        count = torch.Size(shape).numel()
        length = count * item_bytes(dtype)
        with tempfile.TemporaryFile(dir=self.folder) as file:
            if not MMAP_EXTENDS:
                file.truncate(length)
            return torch.frombuffer(mmap.mmap(file.fileno(), length), dtype=dtype, count=count).reshape(shape)


class Map:
    """A map (1, C, H, W) that is written part by part and read in any part."""

    def __init__(self, shelf: Shelf, channels: int, size: Size, side: int, dtype: torch.dtype):
        self.channels, self.size, self._dtype = channels, size, dtype
        self._rows, self._columns = _edges(size[0], side), _edges(size[1], side)
        packed = shelf.packed and dtype == torch.float32
        self.cells = shelf.empty((1, channels, *size), torch.int16 if packed else dtype)
        # value of zero and step of every channel in every part
        self._scales: dict[Box, Tensor] | None = {} if packed else None

    @classmethod
    def of(cls, x: Tensor) -> Map:
        """Returns x as a map, to be read only."""
        size = (x.shape[2], x.shape[3])
        found = cls(Shelf(torch.device("meta")), x.shape[1], size, max(size), x.dtype)
        found.cells = x
        return found

    @property
    def boxes(self) -> list[Box]:
        """The parts that are written."""
        return _boxes(self._rows, self._columns)

    def write(self, box: Box, y: Tensor) -> None:
        """Writes one of `boxes`, y (1, C, h, w)."""
        if self._scales is not None:
            self._scales[box], y = _pack(y)
        box.cut(self.cells).copy_(y)

    def read(self, box: Box, device: torch.device) -> Tensor:
        """Returns any part, on the device."""
        if self._scales is None:
            return box.cut(self.cells).to(device)
        out = torch.empty((1, self.channels, *box.size), dtype=self._dtype, device=device)
        for part in _boxes(_within(self._rows, box.top, box.bottom), _within(self._columns, box.left, box.right)):
            common = part.common(box)
            values = _unpack(common.cut(self.cells).to(device), self._scales[part])
            common.cut(out, box).copy_(values)
        return out


class Raised:
    """The map that a step makes of another, never held: every part is computed when it is read."""

    def __init__(self, source: Map, step: Step):
        self._source, self._step = source, step
        self.channels, self.size = step.outputs, step.size(source.size)

    def read(self, box: Box, device: torch.device) -> Tensor:
        """Returns any part, on the device."""
        part = self._step.needs(box, self._source.size)
        return self._step.run(self._source.read(part, device), part, box)


def grid(size: Size, side: int) -> list[Box]:
    """Returns boxes of nearly equal size, at most `side` long, that cover a map of `size` without overlap."""
    return _boxes(_edges(size[0], side), _edges(size[1], side))


def item_bytes(dtype: torch.dtype) -> int:
    """Returns the size of one number (torch 2.0 has no dtype.itemsize)."""
    return torch.empty((), dtype=dtype).element_size()


def _edges(length: int, side: int) -> list[int]:
    count = -(-length // side)
    return [length * i // count for i in range(count + 1)]


def _boxes(rows: list[int], columns: list[int]) -> list[Box]:
    return [Box(t, left, b, r) for t, b in pairwise(rows) for left, r in pairwise(columns)]


def _within(edges: list[int], first: int, last: int) -> list[int]:
    """Returns the edges of the parts that the cells first..last lie in."""
    return edges[bisect_right(edges, first) - 1 : bisect_left(edges, last) + 1]


def _pack(y: Tensor) -> tuple[Tensor, Tensor]:
    """Returns value of zero and step of every channel (2, 1, C, 1, 1), and y (1, C, h, w) in steps from there."""
    least, greatest = torch.aminmax(y.flatten(2), dim=2)
    step = ((greatest - least) / (GREATEST - LEAST)).clamp_min(1e-30)
    scales = torch.stack([least - LEAST * step, step])[..., None, None]
    cells = (y - scales[0]).div_(scales[1]).round_().clamp_(LEAST, GREATEST)
    return scales, cells.to(torch.int16)


def _unpack(cells: Tensor, scales: Tensor) -> Tensor:
    return torch.addcmul(scales[0], cells.float(), scales[1])
