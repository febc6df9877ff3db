"""Runs jobs of the stand-in for the webui on a simulated card, in four precisions of the webui's networks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from card.model import HostModel, TinyModel, decode_first_stage
from card.simulated import SimulatedCard
from in_process import Webui
from modules import devices, processing, sd_samplers_common, shared
from PIL import Image

from lib_demofusion.host.common import replaced


@dataclass(frozen=True)
class Precision:
    """The floating-point types of the networks. The webui chooses these types when it starts (modules/devices.py)."""

    unet: torch.dtype = torch.float32
    vae: torch.dtype = torch.float32
    upcast: bool = False
    """Whether the sampler runs outside autocast, and the UNet's output is converted to single precision."""

    @property
    def autocast(self) -> Any:
        """Returns the replacement of the webui's `devices.autocast`, for cards that support autocast."""
        single = self.unet == torch.float32

        def context(disable: bool = False) -> Any:
            return contextlib.nullcontext() if disable or single else torch.autocast("cuda", dtype=torch.float16)

        return context


SINGLE = Precision()
"""The precision with --no-half."""
HALF = Precision(torch.float16, torch.float16)
"""The precision without command-line options."""
HALF_BUT_VAE = Precision(torch.float16)
"""The precision with --no-half-vae. The webui also switches to it if decoding in half precision gives NaN."""
UPCAST = Precision(torch.float16, torch.float16, upcast=True)
"""The precision with --upcast-sampling."""


def without_autocast(disable: bool = False) -> Any:
    """Replaces the webui's `devices.without_autocast`: returns a context in which autocast is disabled.

    If `disable` is set, the context has no effect.
    """
    on = torch.is_autocast_enabled("cuda") and not disable
    return torch.autocast("cuda", enabled=False) if on else contextlib.nullcontext()


@contextlib.contextmanager
def on_device(model: TinyModel, card: SimulatedCard | None, precision: Precision) -> Iterator[None]:
    """Returns a context in which the stand-in and its model run on a card, or on the CPU if `card` is None."""
    device = devices.cpu if card is None else torch.device(card.device.type)
    # on Apple's GPUs the webui does not use autocast, but converts the inputs of each module
    no_autocast = card is not None and card.device.type == "mps"
    moved = model.on(card, precision.unet, precision.vae)
    with (
        replaced(
            devices,
            device=device,
            dtype=precision.unet,
            dtype_unet=precision.unet,
            dtype_vae=precision.vae,
            unet_needs_upcast=precision.upcast,
            autocast=(lambda disable=False: contextlib.nullcontext()) if no_autocast else precision.autocast,
            without_autocast=without_autocast,
        ),
        replaced(sd_samplers_common, decode_first_stage=decode_first_stage),
        replaced(shared, device=device, sd_model=HostModel(moved).eval()),
    ):
        yield


class CardWebui:
    """Runs jobs of the stand-in for the webui on a simulated card or on the CPU."""

    def __init__(self, webui: Webui, model: TinyModel):
        self._webui = webui
        self.model = model

    def job(
        self,
        settings: dict[str, Any],
        card: SimulatedCard | None = None,
        precision: Precision = SINGLE,
        **parameters: Any,
    ) -> processing.Processed:
        """Runs a job on a card, or on the CPU if `card` is None, and returns the result of the job.

        `settings` are the values of DemoFusion, which is enabled unless `settings` disables it. `parameters` are the
        other parameters of the job.
        """
        with card or contextlib.nullcontext(), on_device(self.model, card, precision):
            self._webui.small = shared.sd_model.small
            return self._webui.job({"enabled": True, **settings}, **parameters)


def psnr(a: Image.Image, b: Image.Image) -> float:
    """Returns the peak signal-to-noise ratio of two images in decibels, or infinity if the images are equal."""
    assert a.size == b.size
    error = ((np.asarray(a, np.float64) - np.asarray(b, np.float64)) ** 2).mean()
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))
