"""The device's memory, as the automatic view batch needs to know it."""

from __future__ import annotations

import torch
from modules import devices

from lib_demofusion.batching import Memory, UnknownMemory


class CudaMemory:
    """Memory of the CUDA device that the webui runs on; what torch has cached counts as free."""

    def __init__(self, device: torch.device):
        self._device = device
        self._before = 0

    def free(self) -> int | None:
        """Returns the bytes that the driver and torch's cache can still give."""
        free, _ = torch.cuda.mem_get_info(self._device)
        cached = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return int(free + cached)

    def begin(self) -> None:
        """Begins to watch the peak."""
        torch.cuda.reset_peak_memory_stats(self._device)
        self._before = torch.cuda.memory_allocated(self._device)

    def peak(self) -> int:
        """Returns the bytes taken beyond those in use at `begin`."""
        return int(torch.cuda.max_memory_allocated(self._device) - self._before)

    def release(self) -> None:
        """Empties torch's cache."""
        devices.torch_gc()


def device_memory() -> Memory:
    """Returns the memory of the webui's device."""
    return CudaMemory(devices.device) if devices.device.type == "cuda" else UnknownMemory()
