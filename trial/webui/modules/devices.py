"""Stand-in: one device, the CPU, in single precision."""

import contextlib
from typing import Any

import torch
from torch import Tensor

cpu = torch.device("cpu")
device = cpu
dtype = dtype_vae = dtype_unet = torch.float32
unet_needs_upcast = False


class NansException(Exception):
    """A model returned NaN."""


def autocast(disable: bool = False) -> Any:
    """Returns a context without effect, because single precision needs no casts."""
    return contextlib.nullcontext()


def without_autocast(disable: bool = False) -> Any:
    """Returns a context without effect, because single precision needs no casts."""
    return contextlib.nullcontext()


def torch_gc() -> None:
    """Does nothing, because a CPU has no cache of free memory."""


def test_for_nans(x: Tensor, where: str) -> None:
    """Raises NansException if the first value of x is NaN. Like the webui, checks no other value."""
    if torch.isnan(x.reshape(-1)[0]):
        raise NansException(f"A tensor with NaNs was produced in {where}.")
