"""The device's memory, as the automatic view batch needs to know it."""

from __future__ import annotations

import logging

import torch
from modules import devices

from lib_demofusion.method.batching import Memory, UnknownMemory

logger = logging.getLogger("DemoFusion")


def cuda_free_bytes(device: torch.device) -> int:
    """Returns the bytes of a CUDA device that the driver and torch's cache can still give."""
    # torch before 2.5 wants a number here, and the webui's device has none without --device-id
    index = torch.cuda.current_device() if device.index is None else device.index
    free, _ = torch.cuda.mem_get_info(index)
    return int(free + torch.cuda.memory_reserved(index) - torch.cuda.memory_allocated(index))


class CudaMemory:
    """Memory of the CUDA device that the webui runs on; what torch has cached counts as free."""

    def __init__(self, device: torch.device):
        self._device = device

    def free(self) -> int | None:
        """Returns the bytes that can still be taken, None where the driver does not say."""
        try:
            return cuda_free_bytes(self._device)
        except RuntimeError as error:
            logger.warning("the free memory of %s is not known: %s", self._device, error)
            return None

    def begin(self) -> None:
        """Begins to watch the peak."""
        torch.cuda.reset_peak_memory_stats(self._device)

    def peak(self) -> int:
        """Returns the most bytes in use since `begin`, beyond those in use now."""
        return int(torch.cuda.max_memory_allocated(self._device) - torch.cuda.memory_allocated(self._device))

    def release(self) -> None:
        """Empties torch's cache."""
        devices.torch_gc()


def device_memory() -> Memory:
    """Returns the memory of the webui's device."""
    return CudaMemory(devices.device) if devices.device.type == "cuda" else UnknownMemory()
