"""The memory of the device and of the computer, as the automatic view batch and the autoencoder need to know it."""

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
"""Where Linux keeps a container's limit and use, in versions 2 and 1, and how memory.stat names cache that it drops."""


def cuda_free_bytes(device: torch.device) -> int | None:
    """Returns the bytes of a CUDA device that the driver and torch's cache can still give, None where it is silent."""

    def ask() -> int:
        # torch before 2.5 wants a number here, and the webui's device has none without --device-id
        index = torch.cuda.current_device() if device.index is None else device.index
        free, _ = torch.cuda.mem_get_info(index)
        return int(free + torch.cuda.memory_reserved(index) - torch.cuda.memory_allocated(index))

    return _told(ask, device)


def _told(ask: Callable[[], int], device: torch.device) -> int | None:
    """Returns what a driver says of its memory.

    Not all of them do (the webui's own memmon.py meets "AMD or whatever"), and no image shall be lost for that.
    """
    try:
        return ask()
    except Exception as error:
        logger.warning("%s does not tell of its memory: %s", device, error)
        return None


class CudaMemory:
    """Memory of the CUDA device that the webui runs on; what torch has cached counts as free.

    `reserve` bytes of it are left to others, who take them now and then while the model runs.
    """

    def __init__(self, device: torch.device, reserve: int = 0):
        self._device = device
        self._reserve = reserve

    def free(self) -> int | None:
        """Returns the bytes that can still be taken, None where the driver does not say."""
        free = cuda_free_bytes(self._device)
        return None if free is None else max(free - self._reserve, 0)

    def begin(self) -> None:
        """Begins to watch the peak."""

        def reset() -> int:
            torch.cuda.reset_peak_memory_stats(self._device)
            return 0

        _told(reset, self._device)

    def peak(self) -> int:
        """Returns the most bytes in use since `begin`, beyond those in use now; 0 where that is not known."""

        def ask() -> int:
            return int(torch.cuda.max_memory_allocated(self._device) - torch.cuda.memory_allocated(self._device))

        return _told(ask, self._device) or 0

    def release(self) -> None:
        """Empties torch's cache."""
        devices.torch_gc()


def device_memory(reserve: int = 0) -> Memory:
    """Returns the memory of the webui's device, of which `reserve` bytes are left to others."""
    return CudaMemory(devices.device, reserve) if devices.device.type == "cuda" else UnknownMemory()


def available_bytes() -> int:
    """Returns the bytes of the computer's memory that can still be taken, within the limit of a container."""
    return min([int(psutil.virtual_memory().available), *_left_in_groups()])


def _left_in_groups() -> Iterator[int]:
    """Yields the bytes that each control group of this process still allows; psutil knows the whole machine only."""
    for root, limit, used, cache in CONTROL_FILES:
        for folder in _groups(root):
            with suppress(OSError, ValueError):
                most, taken = (int((folder / name).read_text()) for name in (limit, used))
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                yield max(most - taken + int(stat.get(cache, 0)), 0)


def _groups(root: Path) -> list[Path]:
    """Returns the folders of the process's own control group and of those around it."""
    try:
        own = OWN_GROUPS.read_text().splitlines()
    except OSError:
        return []
    controller = "" if root == CGROUPS else root.name
    paths = [path for _, names, path in (line.split(":", 2) for line in own) if controller in names.split(",")]
    found = [root / path.lstrip("/") for path in paths]
    # inside a container the path may be that of the machine, which is not there
    return [folder for path in found for folder in (path, *path.parents) if folder == root or root in folder.parents]
