"""How long a checkpoint's model and decoder take on this machine, learned from the runs that it has seen."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from modules import devices
from torch import Tensor

from lib_demofusion.host.backends import loaded_model as loaded_model
from lib_demofusion.host.common import storage

FILE = "demofusion-timings.json"
MODEL, DECODER, BUSIER = "model", "decoder", "DPM adaptive"
"""Seconds for a latent cell of an image: of a view that is evaluated, or of an image that is decoded. And how much more
often than in the base pass DPM adaptive calls the model in a stage, a factor.
"""
TOO_MUCH = {MODEL: 1.0, DECODER: 1.0, BUSIER: 20.0}
"""What was not measured but came about by an accident to the file."""

ASSUMED_DECODER = 2.0
"""The decoder's rate in units of the model's, where they were not measured: for SDXL and SD 1.5 the decoder needs about
as many operations for an image as the UNet does for cond and uncond of its latent, often at twice the precision."""


def known(model: Any, kind: str) -> float | None:
    """Returns a rate of one of the host's models, or None; of a decoder never seen that of the last one, if any.

    The autoencoders of nearly all checkpoints are of one size, their UNets are not.
    """
    kept = storage.read_if_possible(FILE)
    rates = (kept.get(key) for key in _keys(model, kind))
    return next((float(rate) for rate in rates if isinstance(rate, (int, float)) and 0 < rate < TOO_MUCH[kind]), None)


def learn(model: Any, kind: str, rate: float | None) -> None:
    """Keeps a rate, if there is one."""
    if rate:
        learned = dict.fromkeys(_keys(model, kind), float(f"{rate:.4g}"))
        storage.write_if_possible(FILE, {**storage.read_if_possible(FILE), **learned})


@contextmanager
def decoding(p: Any, latent: Tensor) -> Iterator[None]:
    """Measures a block that decodes a latent (B, C, H, W), and keeps the rate; a block that fails teaches nothing."""
    begin = time.perf_counter()
    yield
    learn(p.sd_model, DECODER, (time.perf_counter() - begin) / latent[:, 0].numel())


def seconds(cells: float) -> float | None:
    """Returns about how long the loaded checkpoint takes for latent cells of views and images, None where unknown."""
    rate = known(loaded_model(), MODEL)
    return None if rate is None else rate * cells


def _keys(model: Any, kind: str) -> list[str]:
    """Returns under what a rate is kept and looked for, the nearest first."""
    name = getattr(getattr(model, "sd_checkpoint_info", None), "name_for_extra", None)
    device = torch.cuda.get_device_name(devices.device) if devices.device.type == "cuda" else devices.device.type
    return [f"{name} on {device}: {kind}", *[f"* on {device}: {kind}"] * (kind == DECODER)]
