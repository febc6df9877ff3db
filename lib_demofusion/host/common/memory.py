"""Reads how much memory the device and the computer have, for the automatic view batch and the autoencoder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import torch
from modules import devices

from lib_demofusion.method.batching import Memory, UnknownMemory

logger = logging.getLogger("DemoFusion")

CGROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
CONTROL_FILES = (
    (CGROUPS, "memory.max", "memory.current", "inactive_file"),
    (CGROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""For cgroup versions 2 and 1: the files with a container's memory limit and use, and the key of reclaimable cache."""


def cuda_free_bytes(device: torch.device) -> int | None:
    """Returns the free bytes of a CUDA device, including torch's cache, or None if the driver does not report them."""

    def ask() -> int:
        # torch before 2.5 requires an index here, and the webui's device has none without --device-id
        index = torch.cuda.current_device() if device.index is None else device.index
        free, _ = torch.cuda.mem_get_info(index)
        return int(free + torch.cuda.memory_reserved(index) - torch.cuda.memory_allocated(index))

    return _answer(ask, device)


def _answer(ask: Callable[[], int], device: torch.device) -> int | None:
    """Returns the result of `ask`, which queries a driver, or None if the driver raises an error.

    Some drivers do not report their memory (the webui's own memmon.py mentions "AMD or whatever"). This must not end
    the job.
    """
    try:
        return ask()
    except Exception as error:
        logger.warning("%s does not report its memory: %s", device, error)
        return None


class CudaMemory:
    """Memory of the webui's CUDA device. Torch's cache counts as free.

    `reserve` bytes are kept free for other tasks that run at the same time as the model.
    """

    def __init__(self, device: torch.device, reserve: int = 0):
        self._device = device
        self._reserve = reserve

    def free(self) -> int | None:
        """Returns the free bytes, or None if the driver does not report them."""
        free = cuda_free_bytes(self._device)
        return None if free is None else max(free - self._reserve, 0)

    def begin(self) -> None:
        """Starts a new measurement of the peak."""

        def reset() -> int:
            torch.cuda.reset_peak_memory_stats(self._device)
            return 0

        _answer(reset, self._device)

    def peak(self) -> int:
        """Returns the peak since `begin` in bytes, minus the memory in use now, or 0 if unknown."""

        def ask() -> int:
            return int(torch.cuda.max_memory_allocated(self._device) - torch.cuda.memory_allocated(self._device))

        return _answer(ask, self._device) or 0

    def release(self) -> None:
        """Empties torch's cache."""
        devices.torch_gc()


def device_memory(reserve: int = 0) -> Memory:
    """Returns the memory of the webui's device. `reserve` bytes are kept free for other tasks."""
    return CudaMemory(devices.device, reserve) if devices.device.type == "cuda" else UnknownMemory()


def available_bytes() -> int:
    """Returns the available bytes of the computer's memory, within the limits of a container."""
    return min([int(psutil.virtual_memory().available), *_left_in_groups()])


def _left_in_groups() -> Iterator[int]:
    """Yields the bytes that each control group of this process still allows. psutil does not read these limits."""
    for root, limit, used, cache in CONTROL_FILES:
        for folder in _groups(root):
            with suppress(OSError, ValueError):
                most, taken = (int((folder / name).read_text()) for name in (limit, used))
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                yield max(most - taken + int(stat.get(cache, 0)), 0)


def _groups(root: Path) -> list[Path]:
    """Returns the folders of the process's control group and of its parents."""
    try:
        own = OWN_GROUPS.read_text().splitlines()
    except OSError:
        return []
    controller = "" if root == CGROUPS else root.name
    paths = [path for _, names, path in (line.split(":", 2) for line in own) if controller in names.split(",")]
    found = [root / path.lstrip("/") for path in paths]
    # inside a container, this can be a path of the host machine, which does not exist in the container
    return [folder for path in found for folder in (path, *path.parents) if folder == root or root in folder.parents]
