"""The checkpoint's autoencoder, run in parts where the webui's own way would not fit.

The webui's own functions stay in charge: the scaling, the retry in higher precision when an image is NaN, the moving
of models under medvram and TAESD are theirs. For the length of a `with` block only the forward of the decoder and the
encoder is ours, which chooses a way when it is called: by then the precision is known and the UNet is out of the way.
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
from lib_demofusion.tiled_vae.largest import largest_bytes, largest_part_bytes
from lib_demofusion.tiled_vae.maps import Shelf, item_bytes
from lib_demofusion.tiled_vae.steps import Step, decoder_steps, encoder_steps, held_bytes, part_bytes, whole_bytes
from lib_demofusion.tiled_vae.tiling import ALWAYS, AUTOMATIC, NEVER, Options, decode_tiled, encode_tiled

TILES = (64, 32, 16)
"""Sides of tiles in latent cells, tried from the first that should fit."""
DEVICE_SHARE, MEMORY_SHARE, DISK_SHARE = 0.85, 0.6, 0.8
"""Of the memory that is free on the device, of the computer's memory and of the disk, what may be counted on."""
LARGEST_TENSOR = {"mps": 1 << 32}
"""Bytes of a tensor that a kind of device has none of; Apple's GPUs end the process."""
UNKNOWN_FREE = 4 << 30
"""Taken to be free on a device that does not say."""

logger = logging.getLogger("DemoFusion")
Report = Callable[[float], None]
ReportOfSome = Callable[[float, int], None]
"""Of a share of so many images: Forge's family decodes all images of a batch together, the webui one by one."""


def of_all(report: Report, count: int) -> ReportOfSome:
    """Returns what to tell the share of images that are worked on together, for `count` of them in all."""
    done = 0

    def of_some(share: float, images: int) -> None:
        nonlocal done
        report(min((done + share * images) / count, 1.0))
        done += images * (share > 1 - 1e-6)

    return of_some


@contextmanager
def in_parts(model: Any, mode: str = AUTOMATIC, report: ReportOfSome | None = None) -> Iterator[set[str]]:
    """Lets the model's autoencoder work in parts inside the block: `always`, `never`, or `automatic`ally if need be.

    Yields which of "decoder" and "encoder" do so; the others, such as Forge's, report nothing.
    """
    first_stage = getattr(model, "first_stage_model", None)
    ways = (("decoder", decoder_steps, decode_tiled), ("encoder", encoder_steps, encode_tiled))
    ours: set[str] = set()
    with ExitStack() as stack:
        for name, layout, tiled in ways:
            network = getattr(first_stage, name, None)
            if mode == NEVER or network is None or is_replaced(network):
                continue
            try:
                steps = layout(network)
            except ValueError as problem:
                logger.info("the VAE's %s is left to the webui: it has %s", name, problem)
                continue
            forward = _Forward(network, steps, tiled, mode == ALWAYS, report)
            stack.enter_context(_forward(network, forward))
            ours.add(name)
        yield ours


def is_replaced(network: Any) -> bool:
    """Returns whether someone else runs the network in their own way, as the Tiled VAE extension does.

    Switched off again, it leaves the original method behind as an attribute of the instance (tilevae.py).
    """
    own = network.__dict__.get("forward")
    return own is not None and getattr(own, "__func__", None) is not type(network).forward


@contextmanager
def _forward(network: Any, forward: Callable[..., Tensor]) -> Iterator[None]:
    """Gives one module another forward for a while; decoders of sgm and ldm are called, never their forward."""
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
    """What a decoder or encoder does instead of its forward: the same, as a whole or in parts, whichever fits."""

    def __init__(self, network: Any, steps: list[Step], tiled: Callable[..., Tensor], always: bool, report: Any):
        self._network, self._steps, self._tiled = network, steps, tiled
        self._whole = network.forward
        self._always, self._report = always, report
        self._thread = threading.get_ident()

    def __call__(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Returns the output, after smaller and smaller attempts where memory does not suffice."""
        if threading.get_ident() != self._thread:
            # a live preview, which the page has decoded meanwhile in a thread of its own
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
                # without its frames, which hold what was computed so far
                failure = error.with_traceback(None)
            logger.warning("%s: trying in smaller parts", str(failure).splitlines()[0][:200])
            devices.torch_gc()
        raise failure or MemoryError("no way to run the VAE fits")

    def _at_once(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Tells half before, as nothing can be told in between: what is told is never wrong by more than half."""
        report = self._report_of(x)
        report(0.5)
        output: Tensor = self._whole(x, **kwargs)
        report(1.0)
        return output

    def _report_of(self, x: Tensor) -> Report:
        return lambda share: self._report and self._report(share, len(x))

    def _attempts(self, x: Tensor) -> Iterator[Options | None]:
        """Returns what to try, None for the whole at once; the free memory is looked at before each attempt."""
        size, bytes_each = (x.shape[2], x.shape[3]), x.element_size()
        limit = LARGEST_TENSOR.get(x.device.type, sys.maxsize)
        needed = whole_bytes(self._steps, size, bytes_each) * len(x)
        on_device = largest_bytes(self._steps, size, bytes_each) < limit
        if not self._always and on_device and needed <= free_bytes(x.device) * DEVICE_SHARE:
            yield None
        for tile in TILES:
            if largest_part_bytes(self._steps, size, bytes_each, tile) >= limit:
                if tile == TILES[-1]:
                    raise MemoryError(
                        f"{x.device.type} has no tensors of {limit} bytes, which the VAE needs at this size"
                    )
                continue
            needed = part_bytes(self._steps, size, bytes_each, tile)
            room = int(free_bytes(x.device) * DEVICE_SHARE) - needed
            if room < 0 and tile != TILES[-1]:
                continue
            shelf = choose_shelf(self._steps, size, x, room if on_device else 0)
            logger.info("VAE in tiles of %d, maps in %s", tile, shelf)
            yield Options(tile, shelf, self._report_of(x))
            on_device = False


def choose_shelf(steps: list[Step], size: tuple[int, int], x: Tensor, room: int) -> Shelf:
    """Returns where the maps are held: on the device if its `room` suffices, in memory, packed, or in a file.

    MemoryError where none of them has the room.
    """
    held = held_bytes(steps, size, x.element_size())
    packed = held_bytes(steps, size, item_bytes(torch.int16)) if x.dtype == torch.float32 else held
    if held <= room:
        return Shelf(x.device)
    memory = available_bytes() * MEMORY_SHARE
    if packed <= memory:
        return Shelf(devices.cpu, packed=held > memory)
    folder = temporary_folder()
    # a disk is asked only where it is needed: one that sleeps answers late, one of the network perhaps not at all
    if folder is not None and packed <= disk_usage(folder).free * DISK_SHARE:
        return Shelf(devices.cpu, packed=True, folder=folder)
    disk = f"disk in {folder}" if folder is not None else "disk, where no folder for temporary files is"
    raise MemoryError(f"the VAE needs {packed / 2**30:.1f} GiB of memory, or of {disk}, at this size")


def temporary_folder() -> Path | None:
    """Returns where maps may lie as files: the host's folder for such, else that of its data, else the system's."""
    folders = (shared.opts.temp_dir, data_path, tempfile.gettempdir())
    return next((Path(name) for name in folders if name and os.access(name, os.W_OK) and Path(name).is_dir()), None)


def free_bytes(device: torch.device) -> int:
    """Returns the memory of a device that is not in use, with what torch keeps for itself."""
    if device.type == "cuda":
        free = cuda_free_bytes(device)
        return UNKNOWN_FREE if free is None else free
    if device.type in ("cpu", "mps"):
        return available_bytes()
    return UNKNOWN_FREE
