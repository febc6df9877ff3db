"""Reads the free memory of the device and of the computer.

If the view batch size is automatic, it depends on the free memory. The decoding in parts depends on it too.
"""

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
"""The files in which Linux stores the memory limits of control groups (cgroups), such as the limit of a container.

The first entry is for cgroup version 2, and the second entry for version 1. Each entry has the root folder, the name of
the file with the memory limit, the name of the file with the memory use, and a key in the file `memory.stat`. The value
of this key is the number of bytes of cached files that the kernel can release.
"""


def cuda_free_bytes(device: torch.device) -> int | None:
    """Returns the free bytes of a CUDA device, including torch's cache, or None if the driver does not report them."""

    def ask() -> int:
        # torch before 2.5 requires an index here, and the webui's device has none without --device-id
        index = torch.cuda.current_device() if device.index is None else device.index
        free, _ = torch.cuda.mem_get_info(index)
        return int(free + torch.cuda.memory_reserved(index) - torch.cuda.memory_allocated(index))

    return _query(ask, device)


def _query(ask: Callable[[], int], device: torch.device) -> int | None:
    """Calls `ask`, which queries the driver of `device`, and returns the result. Returns None if `ask` raises an error.

    Some drivers do not report the memory, such as drivers for AMD devices (see memmon.py of the webui). A job must not
    fail for this reason.
    """
    try:
        return ask()
    except Exception as error:
        logger.warning("%s does not report its memory: %s", device, error)
        return None


class CudaMemory:
    """Reads the memory of a CUDA device. The cache of torch counts as free memory.

    `reserve` bytes count as used, because other tasks, such as the live preview, need them while the model runs.
    """

    def __init__(self, device: torch.device, reserve: int = 0):
        self._device = device
        self._reserve = reserve

    def free(self) -> int | None:
        """Returns the free memory in bytes minus `reserve`, or None if the driver does not report the memory."""
        free = cuda_free_bytes(self._device)
        return None if free is None else max(free - self._reserve, 0)

    def begin(self) -> None:
        """Starts to measure the peak of torch's memory."""

        def reset() -> int:
            torch.cuda.reset_peak_memory_stats(self._device)
            return 0

        _query(reset, self._device)

    def peak(self) -> int:
        """Returns the peak of torch's memory since `begin` minus the memory in use now, in bytes.

        Returns 0 if the driver does not report the memory.
        """

        def ask() -> int:
            return int(torch.cuda.max_memory_allocated(self._device) - torch.cuda.memory_allocated(self._device))

        return _query(ask, self._device) or 0

    def release(self) -> None:
        """Empties torch's cache."""
        devices.torch_gc()


def device_memory(reserve: int = 0) -> Memory:
    """Returns an object that reads the memory of the webui's device.

    `reserve` bytes count as used (see `CudaMemory`). Only the memory of CUDA devices is read.
    """
    return CudaMemory(devices.device, reserve) if devices.device.type == "cuda" else UnknownMemory()


def available_bytes() -> int:
    """Returns the available memory of the computer in bytes.

    If the process runs in a container that allows less memory, returns the number of bytes that the container still
    allows.
    """
    return min([int(psutil.virtual_memory().available), *_left_in_groups()])


def _left_in_groups() -> Iterator[int]:
    """Yields, for each control group of this process that has a memory limit, the bytes that the group may still use.

    psutil does not read the limits of control groups.
    """
    for root, limit, used, cache in CONTROL_FILES:
        for folder in _groups(root):
            with suppress(OSError, ValueError):
                most, taken = (int((folder / name).read_text()) for name in (limit, used))
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                yield max(most - taken + int(stat.get(cache, 0)), 0)


def _groups(root: Path) -> list[Path]:
    """Returns the folders in `root` of this process's control group and of the parent groups of that group."""
    try:
        own = OWN_GROUPS.read_text().splitlines()
    except OSError:
        return []
    controller = "" if root == CGROUPS else root.name
    paths = [path for _, names, path in (line.split(":", 2) for line in own) if controller in names.split(",")]
    found = [root / path.lstrip("/") for path in paths]
    # in a container, a path can be that of the host machine, and then does not exist. The caller ignores such folders
    return [folder for path in found for folder in (path, *path.parents) if folder == root or root in folder.parents]
