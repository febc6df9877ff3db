"""How long a checkpoint's views and decoder take on this machine, learned from the runs that it has seen."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from modules import devices, sd_models
from torch import Tensor

from lib_demofusion.host import storage
from lib_demofusion.method.views import Size
from lib_demofusion.progress.costs import decoder_work, reckoned_decoding

FILE = "demofusion-timings.json"
WARM_UP = 1
"""Model calls of a stage that do not count: kernels are chosen and the size of the view batches is found in them."""

logger = logging.getLogger("DemoFusion")


class Stopwatch:
    """Measures one stage from call to call of the sampler's model, in seconds per latent cell of a view and image.

    From batch to batch would not do: a GPU is handed work ahead of time, and only the next call waits for it.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter):
        self._now = now
        self._calls = 0
        self._begun = 0.0
        self._cells = 0
        self._current = 0
        self.rate: float | None = None
        """None until enough was seen."""

    def begin_call(self, cells: int) -> None:
        """Takes note of a call that begins, in which `cells` latent cells (of all views and images) are evaluated."""
        now = self._now()
        if self._calls == WARM_UP:
            self._begun = now
        elif self._calls > WARM_UP:
            self._cells += self._current
            if self._cells and now > self._begun:
                self.rate = (now - self._begun) / self._cells
        self._current = cells
        self._calls += 1


class Rates:
    """The latest rate of every checkpoint, in memory and in a file."""

    def __init__(self) -> None:
        self._known: dict[str, float] | None = None

    def of(self, checkpoint: str, guided: bool) -> float | None:
        """Returns seconds per cell and image; without guidance (CFG scale 1) the model may be asked half as often.

        The webui itself asks as often; where only the other kind was seen, that one is returned.
        """
        known = self._read()
        return known.get(_key(checkpoint, guided), known.get(_key(checkpoint, not guided)))

    def learn(self, checkpoint: str, guided: bool, rate: float) -> None:
        """Keeps a rate; one that cannot be written to the file lasts until the webui ends."""
        self._keep(_key(checkpoint, guided), rate)

    def of_decoder(self, checkpoint: str, size: Size) -> float | None:
        """Returns seconds per image and unit of `costs.decoder_work`, as they were for the nearest size.

        They differ with the size: what does not fit is decoded in parts, and those may lie in slower memory.
        """
        known = self._read()
        classes = {name: known[key] for name in range(SIZE_CLASSES) if (key := _decoder_key(checkpoint, name)) in known}
        return classes[min(classes, key=lambda name: abs(name - _size_class(size)))] if classes else None

    def learn_decoder(self, checkpoint: str, size: Size, rate: float) -> None:
        """Keeps a decoder's rate for a size."""
        self._keep(_decoder_key(checkpoint, _size_class(size)), rate)

    def _keep(self, key: str, rate: float) -> None:
        known = {**self._read(), key: float(f"{rate:.4g}")}
        self._known = known
        try:
            storage.write(FILE, known)
        except storage.StorageError as error:
            logger.warning("%s", error)

    def _read(self) -> dict[str, float]:
        if self._known is None:
            try:
                stored = storage.read(FILE)
            except storage.StorageError as error:
                logger.warning("%s", error)
                stored = {}
            numbers = ((key, value) for key, value in stored.items() if isinstance(value, (int, float)))
            self._known = {key: float(value) for key, value in numbers if 0 < value < 1}
        return self._known


RATES = Rates()


def _key(checkpoint: str, guided: bool) -> str:
    device = torch.cuda.get_device_name(devices.device) if devices.device.type == "cuda" else devices.device.type
    return f"{checkpoint} on {device}" + ("" if guided else " at CFG scale 1")


SIZE_CLASSES = 40
"""More than any picture needs."""


def _size_class(size: Size) -> int:
    """Returns the power of two next to the number of cells."""
    return round(math.log2(math.prod(size)))


def _decoder_key(checkpoint: str, size_class: int) -> str:
    return f"{_key(checkpoint, True)}, decoding 2^{size_class} cells"


@contextmanager
def measured(p: Any, now: Callable[[], float] | None = None) -> Iterator[Stopwatch]:
    """Gives a stage a stopwatch and learns from it, also where the stage is stopped or fails."""
    watch = Stopwatch() if now is None else Stopwatch(now)
    try:
        yield watch
    finally:
        if watch.rate is not None:
            RATES.learn(_name(p), p.cfg_scale != 1, watch.rate)


@contextmanager
def decoding(p: Any, latent: Tensor, now: Callable[[], float] = time.perf_counter) -> Iterator[None]:
    """Learns from decoding a latent (B, C, H, W), which the block ends with the pictures of in hand."""
    begin = now()
    yield
    size = latent.shape[-2], latent.shape[-1]
    taken = now() - begin
    if taken > 0:
        RATES.learn_decoder(_name(p), size, taken / (len(latent) * decoder_work(size)))


def decoding_cells(p: Any, size: Size) -> float:
    """Returns how many cells the model evaluates in the time that decoding a latent of `size` takes."""
    decoder, model = RATES.of_decoder(_name(p), size), RATES.of(_name(p), p.cfg_scale != 1)
    if decoder is None or model is None:
        return reckoned_decoding(size)
    return decoder * decoder_work(size) / model


def _name(p: Any) -> str:
    return str(p.sd_model.sd_checkpoint_info.name_for_extra)


def loaded_model() -> Any:
    """Returns the checkpoint in memory or None; `shared.sd_model` would load one."""
    return getattr(sd_models.model_data, "sd_model", None)


def seconds(cells: float, guided: bool) -> float | None:
    """Returns about how long the loaded checkpoint takes for latent cells of views and images, None where unknown."""
    info = getattr(loaded_model(), "sd_checkpoint_info", None)
    rate = RATES.of(info.name_for_extra, guided) if info is not None else None
    return None if rate is None else rate * cells
