"""Stores feature maps in memory or in temporary files, unchanged or packed into 16 bits.

`tiling.py` runs a decoder or encoder tile by tile (a tiled run), and stores the maps between the layers here.
"""

from __future__ import annotations

import errno
import mmap
import os
import sys
import tempfile
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from lib_demofusion.tiled_vae.layers import Box, Layer, Size

LEAST, GREATEST = -32768, 32767
"""The range of 16-bit integers."""

MMAP_RESERVES = sys.platform == "win32"
"""Whether `mmap.mmap` also extends the file and reserves space on the disk.

On Windows, this is the case, and no other function should extend the file. `truncate` would write every byte of the
file (_chsize_s), which takes minutes for a large image.
"""

NO_FALLOCATE = (None, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
"""Error numbers of `posix_fallocate` if the file system does not support it.

None stands for the AttributeError on macOS, where Python has no `posix_fallocate`.
"""

ZEROS = bytes(1 << 24)
"""A block of zeros. If `posix_fallocate` is not supported, such blocks are written to reserve space on the disk."""


@dataclass(frozen=True)
class Shelf:
    """Describes where and how feature maps are stored."""

    device: torch.device
    packed: bool = False
    """Whether float32 maps are quantised to 16 bits. The quantisation uses the range of each channel in each tile."""
    folder: Path | None = None
    """If set, maps are stored in temporary files in this folder.

    As long as memory is free, the operating system keeps the contents of these files in memory.
    """

    def __str__(self) -> str:
        place = "the computer's memory" if self.device.type == "cpu" else "the GPU's memory"
        return ("a file" if self.folder else place) + (", packed" if self.packed else "")

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Returns an uninitialised tensor in memory or in a mapped file.

        Raises OSError if the disk has no space for the file.
        """
        if self.folder is None:
            return torch.empty(shape, dtype=dtype, device=self.device)
        count = torch.Size(shape).numel()
        length = count * item_bytes(dtype)
        with tempfile.TemporaryFile(dir=self.folder) as file:
            if not MMAP_RESERVES:
                self._reserve(file.fileno(), length)
            return torch.frombuffer(mmap.mmap(file.fileno(), length), dtype=dtype, count=count).reshape(shape)

    def _reserve(self, file: int, length: int) -> None:
        """Reserves disk space for an empty file. Raises OSError if the disk is full.

        The reservation is necessary because writing to a mapped file on a full disk ends the process with SIGBUS.
        """
        try:
            try:
                os.posix_fallocate(file, 0, length)
            except (AttributeError, OSError) as error:
                if getattr(error, "errno", None) not in NO_FALLOCATE:
                    raise
                for start in range(0, length, len(ZEROS)):
                    os.pwrite(file, ZEROS[: length - start], start)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            message = f"{self.folder} has no space for {length / 2**30:.1f} GiB of temporary files of the VAE"
            raise OSError(errno.ENOSPC, message) from error


class Map:
    """A feature map (1, C, H, W), which is written tile by tile.

    After all tiles are written, any rectangle of the map can be read. `side` is the maximum side of a tile.
    """

    def __init__(self, shelf: Shelf, channels: int, size: Size, side: int, dtype: torch.dtype):
        self.channels, self.size, self._dtype = channels, size, dtype
        self._rows, self._columns = _edges(size[0], side), _edges(size[1], side)
        packed = shelf.packed and dtype == torch.float32
        self.cells = shelf.empty((1, channels, *size), torch.int16 if packed else dtype)
        # in a packed map, the offset and the step size of every channel for each tile; in other maps None
        self._scales: dict[Box, Tensor] | None = {} if packed else None

    @classmethod
    def of(cls, x: Tensor) -> Map:
        """Returns a map with the values of x (1, C, H, W), without copying x and without packing."""
        size = (x.shape[2], x.shape[3])
        found = cls(Shelf(torch.device("meta")), x.shape[1], size, max(size), x.dtype)
        found.cells = x
        return found

    @property
    def boxes(self) -> list[Box]:
        """The tiles of this map. Before the map is read, each tile must be written."""
        return _boxes(self._rows, self._columns)

    def write(self, box: Box, y: Tensor) -> None:
        """Writes y (1, C, h, w) to the tile `box`, which must be one of `boxes`."""
        if self._scales is not None:
            self._scales[box], y = _pack(y)
        box.cut(self.cells).copy_(y)

    def read(self, box: Box, device: torch.device) -> Tensor:
        """Returns the values (1, C, h, w) in the rectangle `box` on the device."""
        if self._scales is None:
            return box.cut(self.cells).to(device)
        out = torch.empty((1, self.channels, *box.size), dtype=self._dtype, device=device)
        for part in _boxes(_within(self._rows, box.top, box.bottom), _within(self._columns, box.left, box.right)):
            common = part.common(box)
            values = _unpack(common.cut(self.cells).to(device), self._scales[part])
            common.cut(out, box).copy_(values)
        return out


class ComputedMap:
    """A feature map that is not stored: the output of `layer` for the stored map `source`.

    A rectangle is computed again every time that it is read.
    """

    def __init__(self, source: Map, layer: Layer):
        self._source, self._layer = source, layer
        self.channels, self.size = layer.outputs, layer.size(source.size)

    def read(self, box: Box, device: torch.device) -> Tensor:
        """Computes the values (1, C, h, w) in the rectangle `box` on the device."""
        part = self._layer.needs(box, self._source.size)
        return self._layer.run(self._source.read(part, device), part, box)


def grid(size: Size, side: int) -> list[Box]:
    """Splits a map of `size` into boxes without overlap. Their sizes are nearly equal, and at most `side` x `side`."""
    return _boxes(_edges(size[0], side), _edges(size[1], side))


def item_bytes(dtype: torch.dtype) -> int:
    """Returns the number of bytes of one element."""
    return torch.empty((), dtype=dtype).element_size()


def _edges(length: int, side: int) -> list[int]:
    count = -(-length // side)
    return [length * i // count for i in range(count + 1)]


def _boxes(rows: list[int], columns: list[int]) -> list[Box]:
    return [Box(t, left, b, r) for t, b in pairwise(rows) for left, r in pairwise(columns)]


def _within(edges: list[int], first: int, last: int) -> list[int]:
    """Returns the edges of the tiles that contain at least one of the cells `first` to `last` - 1.

    `edges` are the edges of all tiles along one axis.
    """
    return edges[bisect_right(edges, first) - 1 : bisect_left(edges, last) + 1]


def _pack(y: Tensor) -> tuple[Tensor, Tensor]:
    """Quantises y (1, C, h, w) to 16 bits.

    Returns the offsets and step sizes of all channels in one tensor (2, 1, C, 1, 1), and the quantised values.
    """
    least, greatest = torch.aminmax(y.flatten(2), dim=2)
    step = ((greatest - least) / (GREATEST - LEAST)).clamp_min(1e-30)
    scales = torch.stack([least - LEAST * step, step])[..., None, None]
    cells = (y - scales[0]).div_(scales[1]).round_().clamp_(LEAST, GREATEST)
    return scales, cells.to(torch.int16)


def _unpack(cells: Tensor, scales: Tensor) -> Tensor:
    return torch.addcmul(scales[0], cells.float(), scales[1])
