"""Measures the progress and the speed of a stage, and stores how fast a checkpoint is on this machine."""

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
from lib_demofusion.method.costs import CallsAhead, cells_ahead
from lib_demofusion.method.stage import StageRun

FILE = "demofusion-timings.json"
MODEL, DECODER, ADAPTIVE_RATIO = "model", "decoder", "DPM adaptive"
"""The kinds of stored rates. MODEL is the number of seconds that the model needs to evaluate one latent cell of one
image. DECODER is the number of seconds that the decoder needs for one cell. ADAPTIVE_RATIO is the number of model calls
that DPM adaptive would make in a stage at denoising strength 1, divided by the number in the base pass."""
UPPER_LIMITS = {MODEL: 1.0, DECODER: 1.0, ADAPTIVE_RATIO: 20.0}
"""Upper limits of plausible rates. A larger value in the file is ignored, because the file is probably damaged."""

ASSUMED_DECODER = 2.0
"""The decoder's rate divided by the model's rate, as long as one of them is not measured. Decoding takes about
as many operations as one evaluation (cond and uncond together) of SDXL or SD 1.5, but often in a slower precision."""


def known(model: Any, kind: str) -> float | None:
    """Returns a stored rate of a checkpoint, or None. `kind` is MODEL, DECODER or ADAPTIVE_RATIO.

    If the decoder of this checkpoint is not measured, returns the rate of the decoder that was measured last on this
    device, because almost all checkpoints have a VAE of the same size. The rate of a model is never used for another
    checkpoint, because the sizes of their UNets differ.
    """
    kept = storage.read_if_possible(FILE)
    rates = (kept.get(key) for key in _keys(model, kind))
    return next(
        (float(rate) for rate in rates if isinstance(rate, (int, float)) and 0 < rate < UPPER_LIMITS[kind]), None
    )


def learn(model: Any, kind: str, rate: float | None) -> None:
    """Stores a rate of a checkpoint in the file, unless the rate is None or 0."""
    if rate:
        learned = dict.fromkeys(_keys(model, kind), float(f"{rate:.4g}"))
        storage.write_if_possible(FILE, {**storage.read_if_possible(FILE), **learned})


@contextmanager
def decoding(p: Any, latent: Tensor) -> Iterator[None]:
    """Measures a block that decodes a latent (B, C, h, w), and stores the decoder's rate unless there is an error."""
    begin = time.perf_counter()
    yield
    learn(p.sd_model, DECODER, (time.perf_counter() - begin) / latent[:, 0].numel())


def seconds(cells: float) -> float | None:
    """Estimates the seconds in which the loaded checkpoint evaluates `cells` cells. None if its rate is unknown."""
    rate = known(loaded_model(), MODEL)
    return None if rate is None else rate * cells


def _keys(model: Any, kind: str) -> list[str]:
    """Returns the keys of a rate in the file. A decoder also has a key with `*` in place of the checkpoint's name."""
    name = getattr(getattr(model, "sd_checkpoint_info", None), "name_for_extra", None)
    device = torch.cuda.get_device_name(devices.device) if devices.device.type == "cuda" else devices.device.type
    return [f"{name} on {device}: {kind}", *[f"* on {device}: {kind}"] * (kind == DECODER)]


class StageProgress:
    """Counts the cells that a stage has evaluated (`done`) and the cells that remain (`ahead`).

    The numbers are for one image. Evaluating cond and uncond counts as one evaluation.
    """

    def __init__(self, run: StageRun, calls_ahead: CallsAhead):
        self.done = self.ahead = 0.0
        self.rate: float | None = None
        """Seconds per cell and image without the first call, which is slower. None before the third call begins."""
        self.images = len(run.anchor)
        self._run, self._calls_ahead, self._call = run, calls_ahead, -1
        self._before = self._cells = self._evaluated = self._left = 0.0
        self._warm = (0.0, 0.0)
        # how often the webui evaluates each view in a call: twice if it evaluates cond and uncond one after the other
        self._rounds = 1.0

    def before_batch(self, cells: float) -> None:
        """Records that a batch of views is about to run. `cells` is the argument of `StageParts.before_batch`."""
        if self._run.call != self._call:
            self._begin_call()
        self._set(min(self._evaluated / (self._rounds * self._cells), 1.0))
        self._evaluated += cells

    def after_call(self) -> None:
        """Records that all cells of the current call are evaluated. The sampler's callback calls this after a step."""
        self._set(1.0)

    def _set(self, share: float) -> None:
        self.done, self.ahead = self._before + share * self._cells, max(self._left - share * self._cells, 0.0)

    def _begin_call(self) -> None:
        run, now = self._run, time.perf_counter()
        self._before += self._cells
        if self._call == 0:
            self._warm = now, self._before
        elif self._call > 0:
            # measured from the beginning of one call to the beginning of the next one: when a call returns, the GPU may
            # still be working, and the next call waits for it
            self.rate = (now - self._warm[0]) / ((self._before - self._warm[1]) * self.images)
        if self._call >= 0:
            self._rounds = max(self._evaluated / self._cells, 1.0)
        self._call, self._evaluated = run.call, 0.0
        self._cells = run.stage.cells_at(run.weights.dilated)
        calls = 1 + self._calls_ahead(run.call, run.level)
        self._left = cells_ahead(run.stage, run.settings, run.timestep, calls)
