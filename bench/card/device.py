"""Represents the measured card: its clock, its memory, and the functions with which the host layer queries it."""

from __future__ import annotations

import gc
import platform
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from bench.peak_bytes import PeakBytes


@dataclass(frozen=True)
class Measured:
    """The cost of an action on the card."""

    seconds: float
    peak: int
    """Maximum bytes in use, minus those before."""
    waits: int | None
    """The number of times that the CPU waited for the card, or None if torch does not count them."""


class Card:
    """A device of torch."""

    def __init__(self, kind: str) -> None:
        self.device = torch.device(kind)
        # on a CPU, half precision is many times as slow
        self.half = torch.float32 if kind == "cpu" else torch.float16
        self.repeats = 1 if kind == "cpu" else 3
        """The number of measurements of a quick action."""
        self._torch = getattr(torch, kind, None)

    @property
    def name(self) -> str:
        """The name of the card or of the CPU."""
        told = getattr(self._torch, "get_device_name", None)
        return str(told()) if told else platform.processor() or platform.machine()

    @property
    def memory(self) -> int | None:
        """The card's total memory in bytes, or None if torch does not report it."""
        if self.device.type == "cuda":
            return int(torch.cuda.mem_get_info()[1])
        told = getattr(self._torch, "get_device_properties", None)
        return getattr(told(0), "total_memory", None) if told else None

    def release(self) -> None:
        """Frees unreferenced memory and torch's cache of the device."""
        gc.collect()
        getattr(self._torch, "empty_cache", lambda: None)()

    def synchronize(self) -> None:
        """Waits until the device is idle."""
        getattr(self._torch, "synchronize", lambda: None)()

    def seconds(self, action: Callable[[], object]) -> float:
        """Returns the duration of an action on the device."""
        self.synchronize()
        begin = time.perf_counter()
        action()
        self.synchronize()
        return time.perf_counter() - begin

    def measure(self, action: Callable[[], object]) -> Measured:
        """Measures an action. If torch does not count the device's memory, the action runs twice."""
        counts = self._torch if hasattr(self._torch, "max_memory_allocated") else None
        if counts is None:
            with PeakBytes() as bytes_:
                action()
            return Measured(self.seconds(action), bytes_.peak, None)
        waits: list[Any] = []
        before = counts.memory_allocated()
        counts.reset_peak_memory_stats()
        seconds = self.seconds(lambda: _noting_waits(action, waits) if self.device.type == "cuda" else action())
        peak = counts.max_memory_allocated() - before
        return Measured(seconds, peak, len(waits) if self.device.type == "cuda" else None)

    @contextmanager
    def limited(self, size: int) -> Iterator[None]:
        """Limits torch to `size` bytes within the block, and makes the driver report no more."""
        real, total = torch.cuda.mem_get_info, torch.cuda.mem_get_info()[1]
        self.release()
        torch.cuda.set_per_process_memory_fraction(size / total)
        torch.cuda.mem_get_info = lambda device=None: (max(size - torch.cuda.memory_reserved(), 0), size)
        try:
            yield
        finally:
            torch.cuda.mem_get_info = real
            torch.cuda.set_per_process_memory_fraction(1.0)


def _noting_waits(action: Callable[[], object], waits: list[Any]) -> None:
    """Runs an action, and adds an entry to `waits` for each of torch's warnings about a wait for the card."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            action()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits += [each for each in warned if str(each.message).startswith("called a synchronizing")]


def find_card(tiny: bool) -> Card | None:
    """Returns the card that torch can use. Without one, returns the CPU if `tiny` is set."""
    available = {
        "cuda": torch.cuda.is_available,
        "xpu": getattr(getattr(torch, "xpu", None), "is_available", lambda: False),
        "mps": torch.backends.mps.is_available,
        "cpu": lambda: tiny,
    }
    return next((Card(kind) for kind, is_there in available.items() if is_there()), None)


def stand_in_webui(card: Card) -> None:
    """Puts a stand-in for the webui's modules into sys.modules, so that you can import lib_demofusion.host."""
    parts = {
        "devices": {"device": card.device, "cpu": torch.device("cpu"), "torch_gc": card.release},
        "shared": {"opts": SimpleNamespace(temp_dir="")},
        "paths_internal": {"data_path": ""},
    }
    made = {name: _module(f"modules.{name}", values) for name, values in parts.items()}
    _module("modules", made)


def _module(name: str, values: dict[str, Any]) -> types.ModuleType:
    module = sys.modules[name] = types.ModuleType(name)
    vars(module).update(values)
    return module
