"""Tensors of a simulated graphics card.

They report the card as their device, and store their numbers in the CPU's memory. CardTensor is a wrapper subclass of
torch.Tensor. The dispatch keys of a wrapper subclass contain its device, so torch's own autocast works with it.

Before some operations, torch selects the card or looks up the number of the card. A torch without CUDA cannot do this.
This module therefore replaces indexing, `copy_`, `contiguous`, and functions that receive a device without a number.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

CPU = torch.device("cpu")


class Current:
    """Contains the simulated card in use. `card` is None outside of the `with` block of a SimulatedCard."""

    card: Any = None


class CardTensor(torch.Tensor):
    """A tensor on the simulated card. The CPU tensor `stored` contains its numbers."""

    stored: Tensor

    @staticmethod
    def __new__(cls, stored: Tensor, device: torch.device) -> CardTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            stored.shape,
            strides=stored.stride(),
            storage_offset=stored.storage_offset(),
            dtype=stored.dtype,
            layout=stored.layout,
            device=device,
        )
        made.stored = stored
        return made

    def __repr__(self, **_: Any) -> str:
        return f"CardTensor({tuple(self.shape)}, {self.dtype}, {self.device})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if Current.card is None:
            raise RuntimeError(f"{func} on a tensor of a simulated card that no longer exists")
        return Current.card.handle(func, args, kwargs or {})

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __getitem__(self, index: Any) -> Any:
        return torch.Tensor.__getitem__(_unguarded(self), mapped(_unguarded, index))

    def __setitem__(self, index: Any, value: Any) -> None:
        torch.Tensor.__setitem__(_unguarded(self), mapped(_unguarded, index), _unguarded(value))

    def copy_(self, source: Tensor, non_blocking: bool = False) -> Tensor:
        torch.Tensor.copy_(_unguarded(self), _unguarded(source), non_blocking)
        return self

    def contiguous(self, *, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
        if self.is_contiguous(memory_format=memory_format):
            return self
        return torch.Tensor.contiguous(_unguarded(self), memory_format=memory_format)

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        return int(self.item())

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def new_tensor(self, data: Any, dtype: torch.dtype | None = None, device: Any = None) -> Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype, device=device or self.device)


class UnguardedTensor(CardTensor):
    """A tensor of the card that reports the CPU as its device. Otherwise, torch would try to select the card."""


def mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """Applies the function to a value. If the value is a list, tuple or dict, applies it to every item, recursively.

    torch.utils._pytree.tree_map does the same, but takes about ten times as long.
    """
    kind = type(value)
    if kind is list or kind is tuple:
        return kind([mapped(function, each) for each in value])
    if kind is dict:
        return {key: mapped(function, each) for key, each in value.items()}
    return function(value)


def leaves(*values: Any) -> list[Any]:
    """Returns the values in a flat list. Lists, tuples and dicts are replaced by their items, recursively."""
    found: list[Any] = []
    for value in values:
        mapped(found.append, value)
    return found


def _unguarded(value: Any) -> Any:
    return UnguardedTensor(value.stored, CPU) if isinstance(value, CardTensor) else value


def numbered(device: Any) -> Any:
    """Returns the card's device with its number if `device` has the card's type. Returns other values unchanged."""
    if isinstance(device, (str, torch.device)):
        found = torch.device(device)
        if Current.card is not None and found.type == Current.card.device.type:
            return Current.card.device
    return device


def _with_number(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that calls `function` with the card's number added to devices in the arguments."""

    def called(*args: Any, **kwargs: Any) -> Any:
        # of the positional arguments, only the second one can be the name of a device
        args = tuple(
            numbered(arg) if index == 1 or isinstance(arg, torch.device) else arg for index, arg in enumerate(args)
        )
        if "device" in kwargs:
            kwargs["device"] = numbered(kwargs["device"])
        return function(*args, **kwargs)

    return called


class SimulatedGenerator(torch.Generator):
    """A generator that registers itself at the simulated card if `device` is the card."""

    def __new__(cls, device: Any = "cpu") -> SimulatedGenerator:
        made = super().__new__(cls)
        if Current.card is not None and torch.device(device).type == Current.card.device.type:
            Current.card.own_generator(made)
        return made


NEEDS_NUMBER = ("tensor", "as_tensor", "empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like")
"""Functions of torch to which the device is passed with its number. Some of them fail with "cuda" alone."""


@contextlib.contextmanager
def simulating(card: Any) -> Iterator[None]:
    """Returns a context in which functions of torch are replaced, so that they work with the simulated card.

    The replaced functions are those of torch.cuda, attention, generators, and functions that receive a device.
    """
    functions = torch.nn.functional
    real_attention, real_to = functions.scaled_dot_product_attention, torch.Tensor.to

    def attention(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if isinstance(q, CardTensor):
            return card.attention(real_attention, (q, k, v), *args, **kwargs)
        return real_attention(q, k, v, *args, **kwargs)

    replacements: list[tuple[Any, str, Any]] = [
        (functions, "scaled_dot_product_attention", attention),
        (torch, "Generator", SimulatedGenerator),
        *((torch, name, _with_number(getattr(torch, name))) for name in NEEDS_NUMBER),
        (torch.Tensor, "to", _with_number(real_to)),
        (torch.Tensor, "cuda", lambda self, device=None: self.to("cuda")),
        *((torch.cuda, name, function) for name, function in card.driver().items()),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in replacements]
    Current.card = card
    # this setting makes torch.tensor create its tensor on the CPU and then move it to the card, as with a real card
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        for owner, name, value in replacements:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
        torch._C._set_only_lift_cpu_tensors(False)
        Current.card = None
