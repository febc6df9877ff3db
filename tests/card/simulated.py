"""Simulates a graphics card on the CPU.

Like a real card, the simulated card raises an error if devices or types do not match, and its memory is limited. It
also records each operation for which the CPU of a real computer would wait.
"""

from __future__ import annotations

import sys
import warnings
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from card.kernels import TAKES_NUMBERS, computed, on_cpu, writes
from card.tensors import CPU, CardTensor, leaves, mapped, simulating
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

GIB = 1 << 30
ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(__file__).resolve().parent
NOT_A_CAUSE = (str(Path(torch.__file__).parent), str(FOLDER / "simulated.py"), str(FOLDER / "tensors.py"), "<")
"""Prefixes of file names. If the code that waits for the card is in such a file, its caller is recorded instead.

Code without a file has a name such as "<string>".
"""

ACROSS_DEVICES = frozenset(["_to_copy", "copy_", "lift_fresh"])
"""Operations whose input and output may be on different devices."""

READS = frozenset(["nonzero", "unique", "_unique2", "equal", "masked_select", "_local_scalar_dense"])
"""Operations for which the CPU waits, because it needs their result or the size of their result."""


@dataclass(frozen=True)
class Wait:
    """An operation for which the CPU waited."""

    kind: str
    """What the CPU waited for, such as "read" for a number, "copy from the card", or the name of the operation."""
    place: str
    """File, line and function of the innermost caller outside of torch and the simulation."""

    @property
    def ours(self) -> bool:
        """Whether code of the extension caused the wait."""
        return self.place.startswith("lib_demofusion")


class SimulatedCard(TorchDispatchMode):
    """Simulates the device `cuda:0` or `mps:0` inside a `with` block. `memory` is the card's memory in bytes."""

    def __init__(self, kind: str = "cuda", memory: int = 24 * GIB):
        super().__init__()
        self.device = torch.device(kind, 0)
        self.memory = memory
        self.reserve = memory
        """Number of bytes that tensors may use. A value below `memory` simulates fragmented memory."""
        self.allocated = self.peak = 0
        self.waits: list[Wait] = []
        self.warns = False
        """Whether each wait also issues torch's warning about waits."""
        self.operations = 0
        self.fail_in: int | None = None
        """If set, this number of allocations succeeds, and the next one fails."""
        self.failures = 0
        """The number of failed allocations."""
        self.largest = (1 << 32) if kind == "mps" else sys.maxsize
        """Maximum size of one tensor in bytes. On a real Apple GPU, a larger tensor ends the process."""
        self._stores: dict[int, list[int]] = {}
        # the keys are addresses, because torch creates several Python objects for the same generator
        self._generators: dict[int, torch.Generator] = {}
        self._patches = ExitStack()

    def __enter__(self) -> SimulatedCard:
        self._patches.enter_context(simulating(self))
        super().__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)
        self._patches.close()

    def driver(self) -> dict[str, Callable[..., Any]]:
        """Returns the functions that replace the functions of torch.cuda with the same names."""
        there = self.device.type == "cuda"

        def reset(device: Any = None) -> None:
            self.peak = self.allocated

        def warn(mode: str) -> None:
            self.warns = mode == "warn"

        def limit(share: float, device: Any = None) -> None:
            self.reserve = int(share * self.memory)

        return {
            "_lazy_init": lambda: None,
            "is_available": lambda: there,
            "current_device": lambda: 0,
            "get_device_name": lambda device=None: "Simulated GPU",
            "get_device_capability": lambda device=None: (8, 9),
            "mem_get_info": lambda device=None: (self.memory - self.allocated, self.memory),
            "memory_reserved": lambda device=None: self.allocated,
            "memory_allocated": lambda device=None: self.allocated,
            "max_memory_allocated": lambda device=None: self.peak,
            "reset_peak_memory_stats": reset,
            "empty_cache": lambda: None,
            "synchronize": lambda device=None: None,
            "set_sync_debug_mode": warn,
            "set_per_process_memory_fraction": limit,
            "get_rng_state": lambda device=None: torch.get_rng_state(),
            "set_rng_state": lambda state, device=None: None,
            "is_bf16_supported": lambda *_, **__: True,
        }

    def own_generator(self, generator: torch.Generator) -> None:
        """Registers a generator as a generator of this card."""
        self._generators[generator._cdata] = generator

    def put(self, stored: Any) -> Any:
        """Returns a tensor on the card that stores its numbers in the given CPU tensor.

        Other objects, and tensors that are on the card already, are returned unchanged.
        """
        if not isinstance(stored, Tensor) or isinstance(stored, CardTensor):
            return stored
        made = CardTensor(stored, self.device)
        self._take(made, stored.untyped_storage())
        return made

    def put_module(self, module: torch.nn.Module, dtype: torch.dtype | None = None) -> None:
        """Moves a module's weights and buffers to the card. Converts floating-point numbers to `dtype` if given."""

        def moved(own: Tensor) -> Tensor:
            return self.put(own.detach().to(dtype if own.is_floating_point() else None, copy=True))

        for part in module.modules():
            for name, own in part._parameters.items():
                if own is not None:
                    part._parameters[name] = torch.nn.Parameter(moved(own), requires_grad=False)
            for name, buffer in part._buffers.items():
                if buffer is not None:
                    part._buffers[name] = moved(buffer)

    def _take(self, made: CardTensor, store: Any) -> None:
        """Counts the memory of a tensor until the tensor and all tensors that share its memory are freed."""
        key, size = store.data_ptr(), store.nbytes()
        if size == 0:
            return
        if key not in self._stores:
            self._allocate(size)
            self._stores[key] = [0, size]
        self._stores[key][0] += 1
        weakref.finalize(made, self._give_back, key)

    def _allocate(self, size: int) -> None:
        if size > self.largest:
            raise RuntimeError(f"a buffer of {size} bytes would end the process, {self.largest} are allowed")
        if self.fail_in is not None:
            self.fail_in -= 1
        if self.fail_in == -1 or self.allocated + size > self.reserve:
            self.fail_in = None if self.fail_in == -1 else self.fail_in
            self.failures += 1
            raise torch.cuda.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size / 2**20:.2f} MiB.")
        self.allocated += size
        self.peak = max(self.peak, self.allocated)

    def _give_back(self, key: int) -> None:
        users = self._stores[key]
        users[0] -= 1
        if users[0] == 0:
            self.allocated -= users[1]
            del self._stores[key]

    def _wait(self, kind: str) -> None:
        frame: Any = sys._getframe(1)
        while frame.f_code.co_filename.startswith(NOT_A_CAUSE):
            frame = frame.f_back
        place = Path(frame.f_code.co_filename)
        shown = place.relative_to(ROOT).as_posix() if place.is_relative_to(ROOT) else place.as_posix()
        self.waits.append(Wait(kind, f"{shown}:{frame.f_lineno} {frame.f_code.co_name}"))
        if self.warns:
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.handle(func, args, kwargs or {})

    def handle(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Runs one operation of torch.

        The operation is simulated if an argument is on the card, or if the result belongs on the card. Otherwise, it
        runs unchanged.
        """
        name = func._schema.name.split("::")[1]
        flat = leaves(args, kwargs)
        ours = any(isinstance(value, CardTensor) for value in flat)
        device = kwargs.get("device")
        to_card = ours if device is None else torch.device(device).type == self.device.type
        self._check_generator(flat, to_card)
        if not ours and not to_card:
            return func(*args, **kwargs)
        self.operations += 1
        others = [value for value in flat if isinstance(value, Tensor) and not isinstance(value, CardTensor)]
        if self.device.type == "mps":
            self._check_mps(name, args, kwargs, flat, to_card)
        self._check_devices(name, args, others)
        self._note_waits(name, args, kwargs, others, to_card)
        plain_args, plain_kwargs = mapped(on_cpu, args), mapped(on_cpu, kwargs)
        if device is not None:
            plain_kwargs["device"] = CPU
        plain_kwargs.pop("pin_memory", None)
        out = computed(func, name, plain_args, plain_kwargs)
        if writes(func):
            return kwargs.get("out", args[0])
        return mapped(self.put, out) if to_card else out

    def attention(self, real: Callable[..., Tensor], qkv: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Computes attention with the function `real` of torch. The attention matrix does not count as used memory.

        A real card never stores the whole matrix.
        """
        if torch.is_autocast_enabled("cuda"):
            qkv = [value.to(torch.get_autocast_dtype("cuda")) for value in qkv]
        if not all(isinstance(value, CardTensor) for value in qkv) or len({value.dtype for value in qkv}) > 1:
            raise RuntimeError(f"Expected query, key and value of one device and dtype, but got {qkv}")
        self.operations += 1
        with _disable_current_modes():
            plain = [value.stored.float() for value in qkv]
            found = real(*plain, *mapped(on_cpu, args), **mapped(on_cpu, kwargs)).to(qkv[0].dtype)
        return self.put(found)

    def _check_generator(self, flat: list[Any], to_card: bool) -> None:
        for value in flat:
            if isinstance(value, torch._C.Generator) and (value._cdata in self._generators) != to_card:
                wanted = self.device.type if to_card else "cpu"
                raise RuntimeError(f"Expected a '{wanted}' device type for generator but found another")

    def _check_devices(self, name: str, args: Any, others: list[Tensor]) -> None:
        """Raises the error of torch if an argument is on the CPU although the operation needs it on the card."""
        if name in ACROSS_DEVICES or name.endswith("_like") or name.startswith("new_") or not others:
            return
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            if not isinstance(args[0], CardTensor):
                raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
            others = [value for value in others if all(value is not index for index in args[1])]
        allowed = name.rstrip("_") in TAKES_NUMBERS
        if any(value.dim() > 0 or not allowed for value in others):
            both = f"{self.device} and cpu"
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, {both}! ({name})"
            )

    def _note_waits(self, name: str, args: Any, kwargs: Any, others: list[Tensor], to_card: bool) -> None:
        if name in READS:
            self._wait("read" if name == "_local_scalar_dense" else name)
        elif name == "_to_copy" and isinstance(args[0], CardTensor) != to_card:
            # a copy from the card always waits, and a copy to the card waits unless it is non-blocking
            if not (to_card and kwargs.get("non_blocking")):
                self._wait("copy to the card" if to_card else "copy from the card")
        elif name == "copy_" and isinstance(args[0], CardTensor) != isinstance(args[1], CardTensor):
            self._wait("copy")
        elif name.startswith(("index", "_index_put")) and any(isinstance(each, (list, tuple)) for each in args[1:2]):
            indices = [index for index in args[1] if isinstance(index, Tensor)]
            if others or any(index.dtype in (torch.bool, torch.uint8) for index in indices):
                self._wait("index")

    def _check_mps(self, name: str, args: Any, kwargs: Any, flat: list[Any], to_card: bool) -> None:
        """Raises the errors of Apple's GPUs for double precision and for pooling areas of different sizes."""
        doubles = any(isinstance(value, Tensor) and value.dtype == torch.float64 for value in flat)
        to_double = kwargs.get("dtype") == torch.float64
        from_card = name == "_to_copy" and not to_card
        if to_card and ((doubles and name != "_to_copy") or to_double or (doubles and kwargs.get("dtype") is None)):
            raise TypeError(f"Cannot convert a MPS Tensor to float64 dtype as the MPS framework has none. ({name})")
        if to_double and from_card:
            # the GPU converts the tensor to double precision before the tensor is moved to the CPU
            raise TypeError(f"Cannot convert a MPS Tensor to float64 dtype as the MPS framework has none. ({name})")
        if name == "_adaptive_avg_pool2d" and any(a % b for a, b in zip(args[0].shape[-2:], args[1])):
            raise RuntimeError("Adaptive pool MPS: input sizes must be divisible by output sizes.")
