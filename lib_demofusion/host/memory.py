"""The device's memory, as the automatic view batch and the autoencoder need to know it."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from modules import devices

from lib_demofusion.method.batching import Memory, UnknownMemory

logger = logging.getLogger("DemoFusion")


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
