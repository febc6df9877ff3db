"""Runs the checkpoint's VAE tile by tile if a whole image does not fit into memory.

In this file, a tile is a rectangle of a feature map, not a view of the latent.

Only the forward of the decoder and the encoder is replaced, inside a `with` block. The webui's own functions do
everything else: scaling, the retry in higher precision after NaN, moving models with medvram, and TAESD. The new
forward decides at each call whether to use tiles. The decision cannot be made earlier: before a call, the webui may
change the precision, or free memory by moving the UNet off the GPU.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from shutil import disk_usage
from typing import Any

import torch
from modules import devices, shared
from modules.paths_internal import data_path
from torch import Tensor

from lib_demofusion.host.common.memory import available_bytes, cuda_free_bytes
from lib_demofusion.out_of_memory import is_out_of_memory
from lib_demofusion.tiled_vae.feature_maps import Shelf, item_bytes
from lib_demofusion.tiled_vae.layers import Layer, decoder_layers, encoder_layers
from lib_demofusion.tiled_vae.memory import held_bytes, largest_bytes, largest_part_bytes, part_bytes, whole_bytes
from lib_demofusion.tiled_vae.tiling import ALWAYS, AUTOMATIC, NEVER, Options, decode_tiled, encode_tiled

TILES = (64, 32, 16)
"""Sides of tiles in latent cells, in the order in which they are tried.

Sides that probably need too much memory are left out, except the smallest.
"""
DEVICE_SHARE, MEMORY_SHARE, DISK_SHARE = 0.85, 0.6, 0.8
"""Maximum shares of the device's free memory, the computer's free memory and the free disk space that the VAE uses."""
LARGEST_TENSOR = {"mps": 1 << 32}
"""Size in bytes that every tensor must stay below, by type of device. On Apple's GPUs, larger ones end the process."""
UNKNOWN_FREE = 4 << 30
"""Assumed free memory in bytes of a device that does not report it."""

logger = logging.getLogger("DemoFusion")
Report = Callable[[float], None]
ReportOfSome = Callable[[float, int], None]
"""A progress callback for a part of a batch. The arguments are the completed share and the image count of this part.

In reForge and Forge Neo, a part can be several images of a batch. AUTOMATIC1111's webui decodes the images one by one.
"""


def of_all(report: Report, count: int) -> ReportOfSome:
    """Returns a ReportOfSome that calls `report` with the completed share of a batch of `count` images."""
    done = 0

    def of_some(share: float, images: int) -> None:
        nonlocal done
        report(min((done + share * images) / count, 1.0))
        done += images * (share > 1 - 1e-6)

    return of_some


@contextmanager
def in_parts(model: Any, mode: str = AUTOMATIC, report: ReportOfSome | None = None) -> Iterator[set[str]]:
    """Runs the model's VAE tile by tile inside the block, depending on `mode` (see MODES in `tiled_vae.tiling`).

    Yields the names of the networks whose forward is replaced: "decoder", "encoder", both or none. Only these networks
    call `report`.
    """
    first_stage = getattr(model, "first_stage_model", None)
    networks = (("decoder", decoder_layers, decode_tiled), ("encoder", encoder_layers, encode_tiled))
    ours: set[str] = set()
    with ExitStack() as stack:
        for name, layout, tiled in networks:
            network = getattr(first_stage, name, None)
            if mode == NEVER or network is None or is_replaced(network):
                continue
            try:
                layers = layout(network)
            except ValueError as problem:
                logger.info("the webui runs the VAE's %s without tiles, because this %s has %s", name, name, problem)
                continue
            forward = _Forward(network, layers, tiled, mode == ALWAYS, report)
            stack.enter_context(_forward(network, forward))
            ours.add(name)
        yield ours


def is_replaced(network: Any) -> bool:
    """Returns whether another extension, such as Tiled VAE, has replaced the network's forward.

    A `forward` in the instance's `__dict__` alone does not prove this: after Tiled VAE has been switched off, the
    `__dict__` contains the original method (tilevae.py).
    """
    own = network.__dict__.get("forward")
    return own is not None and getattr(own, "__func__", None) is not type(network).forward


@contextmanager
def _forward(network: Any, forward: Callable[..., Tensor]) -> Iterator[None]:
    """Replaces the forward of a module inside the block.

    Setting the attribute `forward` is enough, because the packages sgm and ldm call the module, and torch then calls
    this attribute.
    """
    before = network.__dict__.get("forward")
    network.forward = forward
    try:
        yield
    finally:
        if before is None:
            del network.forward
        else:
            network.forward = before


class _Forward:
    """The new forward of a decoder or encoder. Computes the output with or without tiles, as the memory allows."""

    def __init__(self, network: Any, layers: list[Layer], tiled: Callable[..., Tensor], always: bool, report: Any):
        self._network, self._layers, self._tiled = network, layers, tiled
        self._whole = network.forward
        self._always, self._report = always, report
        self._thread = threading.get_ident()

    def __call__(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Computes the output. If memory is not sufficient, tries again with smaller and smaller tiles."""
        if threading.get_ident() != self._thread:
            # another thread of the webui decodes live previews, which are small and do not count as progress
            return self._whole(x, **kwargs)
        failure: BaseException | None = None
        for options in self._attempts(x):
            try:
                if options is None:
                    return self._at_once(x, **kwargs)
                return self._tiled(self._network, x, options)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                # with its traceback, the error would keep the intermediate tensors in memory
                failure = error.with_traceback(None)
            logger.warning("%s: trying again in smaller parts", str(failure).splitlines()[0][:200])
            devices.torch_gc()
        raise failure or MemoryError("the VAE does not fit into the memory, even with the smallest tiles")

    def _at_once(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Computes the output without tiles. Reports 0.5 before and 1 after, because nothing can report in between."""
        report = self._report_of(x)
        report(0.5)
        output: Tensor = self._whole(x, **kwargs)
        report(1.0)
        return output

    def _report_of(self, x: Tensor) -> Report:
        return lambda share: self._report and self._report(share, len(x))

    def _attempts(self, x: Tensor) -> Iterator[Options | None]:
        """Yields the options of each attempt, or None for one without tiles. Reads the free memory before each one."""
        size, bytes_each = (x.shape[2], x.shape[3]), x.element_size()
        limit = LARGEST_TENSOR.get(x.device.type, sys.maxsize)
        needed = whole_bytes(self._layers, size, bytes_each) * len(x)
        on_device = largest_bytes(self._layers, size, bytes_each) < limit
        if not self._always and on_device and needed <= free_bytes(x.device) * DEVICE_SHARE:
            yield None
        for tile in TILES:
            if largest_part_bytes(self._layers, size, bytes_each, tile) >= limit:
                if tile == TILES[-1]:
                    raise MemoryError(
                        f"at this size, the VAE needs tensors of {limit} bytes or more, which the device "
                        f"{x.device.type} does not support; choose a smaller size"
                    )
                continue
            needed = part_bytes(self._layers, size, bytes_each, tile)
            room = int(free_bytes(x.device) * DEVICE_SHARE) - needed
            if room < 0 and tile != TILES[-1]:
                continue
            shelf = choose_shelf(self._layers, size, x, room if on_device else 0)
            logger.info("running the VAE in tiles of %d latent cells, with the feature maps in %s", tile, shelf)
            yield Options(tile, shelf, self._report_of(x))
            on_device = False


def choose_shelf(layers: list[Layer], size: tuple[int, int], x: Tensor, room: int) -> Shelf:
    """Returns where to store the feature maps: on the device, in the computer's memory, or in temporary files.

    `size` is the height and width of the network's input: latent cells for a decoder, and pixels for an encoder. `x` is
    a tensor with the device and the dtype of the maps. The device is chosen if `room` bytes are enough. If the
    computer's memory is too small for 32-bit maps, they are packed into 16 bits. 32-bit maps in files are always
    packed. Raises MemoryError if no place is large enough.
    """
    held = held_bytes(layers, size, x.element_size())
    packed = held_bytes(layers, size, item_bytes(torch.int16)) if x.dtype == torch.float32 else held
    if held <= room:
        return Shelf(x.device)
    memory = available_bytes() * MEMORY_SHARE
    if packed <= memory:
        return Shelf(devices.cpu, packed=held > memory)
    folder = temporary_folder()
    # the free disk space is only read if necessary: a disk that sleeps is slow, and a network disk may not answer
    if folder is not None and packed <= disk_usage(folder).free * DISK_SHARE:
        return Shelf(devices.cpu, packed=True, folder=folder)
    disk = f"temporary files go to {folder}" if folder is not None else "there is no folder for temporary files"
    raise MemoryError(f"the VAE needs {packed / 2**30:.1f} GiB of memory or disk space at this size; {disk}")


def temporary_folder() -> Path | None:
    """Returns a folder for the files with feature maps, or None if none of the following folders is writable.

    This is the first writable folder of: the webui's folder for temporary images, the webui's data folder, and the
    system's temporary folder.
    """
    folders = (shared.opts.temp_dir, data_path, tempfile.gettempdir())
    return next((Path(name) for name in folders if name and os.access(name, os.W_OK) and Path(name).is_dir()), None)


def free_bytes(device: torch.device) -> int:
    """Returns the free memory of a device in bytes, including torch's cache, or UNKNOWN_FREE if it is unknown."""
    if device.type == "cuda":
        free = cuda_free_bytes(device)
        return UNKNOWN_FREE if free is None else free
    if device.type in ("cpu", "mps"):
        return available_bytes()
    return UNKNOWN_FREE
