"""Tests the functions that read the free memory of a GPU and of the computer, and the automatic size of view batches.

The automatic size is the number of views in a model call. It depends on the free memory of the GPU.

Torch's CUDA functions and the webui's `devices` are replaced by imitations.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_demofusion.method.batching import UnknownMemory, ViewBatches
from lib_demofusion.method.views import LocalView

NAME = "lib_demofusion.host.common.memory"
GIB = 1 << 30


class Cards:
    """Imitates torch 2.1's memory functions for two GPUs. The second GPU is the current device."""

    def __init__(self) -> None:
        self.driver_free = [1 * GIB, 6 * GIB]
        self.reserved = [5 * GIB, 4 * GIB]
        self.allocated = [5 * GIB, 3 * GIB]
        self.most = list(self.allocated)
        self.current = 1

    def current_device(self) -> int:
        return self.current

    def index(self, device: Any, optional: bool = True) -> int:
        if isinstance(device, int):
            return device
        if device.index is None and not optional:
            raise ValueError(f"Expected a torch.device with a specified index or an integer, but got:{device}")
        return self.current if device.index is None else device.index

    def mem_get_info(self, device: Any) -> tuple[int, int]:
        return self.driver_free[self.index(device, optional=False)], 24 * GIB

    def memory_reserved(self, device: Any) -> int:
        return self.reserved[self.index(device)]

    def memory_allocated(self, device: Any) -> int:
        return self.allocated[self.index(device)]

    def max_memory_allocated(self, device: Any) -> int:
        return self.most[self.index(device)]

    def reset_peak_memory_stats(self, device: Any) -> None:
        self.most[self.index(device)] = self.allocated[self.index(device)]


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> Cards:
    simulated = Cards()
    for name in ("current_device", "mem_get_info", "memory_reserved", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, getattr(simulated, name))
    for name in ("max_memory_allocated", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, getattr(simulated, name))
    return simulated


@pytest.fixture
def memory(cards: Cards, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Imports and returns the module under test. `devices.device` of this module is the webui's device."""
    devices = ModuleType("modules.devices")
    devices.__dict__.update(device=torch.device("cuda"), torch_gc=lambda: None)
    package = ModuleType("modules")
    package.__dict__["devices"] = devices
    for name, module in (("modules", package), ("modules.devices", devices)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    yield importlib.import_module(NAME)
    sys.modules.pop(NAME, None)


@pytest.mark.parametrize(("device", "free"), [("cuda", 7 * GIB), ("cuda:0", 1 * GIB), ("cuda:1", 7 * GIB)])
def test_free_memory_includes_torchs_cache(memory: Any, device: str, free: int) -> None:
    """With --device-id, the webui's device has an index. A device without an index means torch's current device."""
    memory.devices.device = torch.device(device)
    assert memory.device_memory().free() == free
    assert memory.cuda_free_bytes(torch.device(device)) == free


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_the_memory_of_devices_without_cuda_is_unknown(memory: Any, device: str) -> None:
    memory.devices.device = torch.device(device)
    assert isinstance(memory.device_memory(), UnknownMemory)


@pytest.mark.parametrize(("taken", "views"), [(GIB, 4), (3 * GIB, 1), (GIB // 4, 16), (20 * GIB, 1)])
def test_the_batch_fits_into_the_free_memory(memory: Any, cards: Cards, taken: int, views: int) -> None:
    """80 % of 7 GiB, divided by the memory of one view, is rounded down to a power of two from 1 to 16."""
    batches = evaluated(memory, cards, taken)
    assert batches.views == views


@pytest.mark.parametrize("name", ["mem_get_info", "memory_reserved", "memory_allocated", "current_device"])
@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA error: operation not supported"), AttributeError("no such thing")]
)
def test_batches_have_one_view_if_the_driver_does_not_report_the_memory(
    memory: Any, cards: Cards, monkeypatch: pytest.MonkeyPatch, name: str, error: Exception
) -> None:
    make_fail(monkeypatch, name, error)
    assert evaluated(memory, cards, GIB).views == 1
    assert memory.cuda_free_bytes(torch.device("cuda")) is None


@pytest.mark.parametrize(("name", "views"), [("reset_peak_memory_stats", 4), ("max_memory_allocated", 1)])
def test_a_view_is_evaluated_even_if_the_driver_cannot_reset_or_report_the_peak(
    memory: Any, cards: Cards, monkeypatch: pytest.MonkeyPatch, name: str, views: int
) -> None:
    """If the driver cannot reset the peak, the batch size is still computed from the reported peak.

    If the driver cannot report the peak, batches have one view.
    """
    make_fail(monkeypatch, name, RuntimeError("invalid argument to memory stats"))
    assert evaluated(memory, cards, GIB).views == views


def make_fail(monkeypatch: pytest.MonkeyPatch, name: str, error: Exception) -> None:
    """Replaces a function of torch.cuda with a function that raises `error`."""

    def fail(*args: Any) -> Any:
        raise error

    monkeypatch.setattr(torch.cuda, name, fail)


def test_memory_that_the_caller_reserves_does_not_count_as_free(memory: Any, cards: Cards) -> None:
    assert memory.device_memory(3 * GIB).free() == 4 * GIB
    assert memory.device_memory(8 * GIB).free() == 0


@pytest.mark.parametrize(("weights", "views"), [(0, 8), (2, 8), (5, 8), (8, 4), (12, 2)])
def test_weights_loaded_at_the_first_call_do_not_count_as_memory_of_a_view(
    memory: Any, cards: Cards, weights: int, views: int
) -> None:
    """With --medvram, the UNet moves to the GPU at its first call.

    Later batches can use 80 % of the remaining memory, which is 16 GiB minus the weights. Each view needs 1 GiB.
    """
    cards.driver_free[1], cards.reserved[1], cards.allocated[1] = 16 * GIB, 0, 0
    assert evaluated(memory, cards, GIB, weights * GIB).views == views


def test_weights_do_not_count_as_memory_of_a_view_if_other_memory_is_in_use(memory: Any, cards: Cards) -> None:
    cards.driver_free[1], cards.reserved[1], cards.allocated[1] = 15 * GIB, GIB, GIB
    assert evaluated(memory, cards, GIB, 4 * GIB).views == 8


def write_group(folder: Path, limit: str, used: int, cache: int, version: int = 2) -> None:
    """Writes the memory files of a control group, in the format of Linux. `version` is the version of cgroups.

    `limit` is a number of bytes or "max". `used` is the number of bytes in use, and `cache` is the part of them that is
    file cache.
    """
    names = ("memory.max", "memory.current", "inactive_file")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {cache}\n")


@pytest.fixture
def groups(memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Creates the folder of the control groups and returns it.

    The process is in the group /box/inner, and the machine has 64 GiB of free memory.
    """
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    files = ((tmp_path, *memory.CONTROL_FILES[0][1:]), (tmp_path / "memory", *memory.CONTROL_FILES[1][1:]))
    monkeypatch.setattr(memory, "CONTROL_FILES", files)
    monkeypatch.setattr(memory, "OWN_GROUPS", tmp_path / "cgroup")
    (tmp_path / "cgroup").write_text("4:memory:/box/inner\n0::/box/inner\n")
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=64 * GIB))
    return tmp_path


def test_without_a_limit_all_free_memory_of_the_computer_is_available(memory: Any, groups: Path) -> None:
    assert memory.available_bytes() == 64 * GIB
    write_group(groups / "box" / "inner", "max", 3 * GIB, 0)
    assert memory.available_bytes() == 64 * GIB


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("place", ["box/inner", "box", "."])
def test_the_limits_of_the_control_group_and_of_its_parents_apply(
    memory: Any, groups: Path, place: str, version: int
) -> None:
    """The file cache counts as available, because the system drops this cache when a process needs memory."""
    root = groups / "memory" if version == 1 else groups
    write_group(root / place, str(8 * GIB), 5 * GIB, 2 * GIB, version)
    assert memory.available_bytes() == 5 * GIB
    write_group(root / place, str(8 * GIB), 9 * GIB, 0, version)
    assert memory.available_bytes() == 0


def evaluated(memory: Any, cards: Cards, taken: int, weights: int = 0) -> ViewBatches:
    """Evaluates one view on the second GPU, and returns the ViewBatches object with the resulting batch size.

    The evaluation allocates `taken` bytes temporarily, and `weights` bytes that stay allocated.
    """

    def evaluate(crops: Tensor, views: Any, rows: slice) -> Tensor:
        cards.allocated[1] += weights
        cards.driver_free[1] -= max(cards.allocated[1] + taken - cards.reserved[1], 0)
        cards.reserved[1] = max(cards.reserved[1], cards.allocated[1] + taken)
        cards.most[1] = cards.allocated[1] + taken
        return crops

    batches = ViewBatches(0, memory.device_memory())
    work = [(LocalView(0, 0, 8, 8), torch.zeros(2, 4, 8, 8))]
    assert len(list(batches.predictions(evaluate, work, 2))) == 1
    return batches


def test_the_simulated_gpus_need_a_device_index_like_torch_2_1(cards: Cards) -> None:
    with pytest.raises(ValueError, match="specified index"):
        torch.cuda.mem_get_info(torch.device("cuda"))
