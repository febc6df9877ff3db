"""Tensors of a simulated graphics card.

They report the card as their device, and store their numbers in the CPU's memory. A wrapper subclass has the device in
its dispatch keys, so torch's own autocast affects it. Before torch dispatches, it sets a guard for the device and looks
up the number of the current one. A build for CPUs cannot do this. This module does it in Python, for indexed tensors
and for devices that are named without a number.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

CPU = torch.device("cpu")


class Current:
    """The card in use, None outside of `PlayedCard`."""

    card: Any = None


class CardTensor(torch.Tensor):
    """A tensor on the simulated card. `cells` holds its numbers."""

    cells: Tensor

    @staticmethod
    def __new__(cls, cells: Tensor, device: torch.device) -> CardTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            cells.shape,
            strides=cells.stride(),
            storage_offset=cells.storage_offset(),
            dtype=cells.dtype,
            layout=cells.layout,
            device=device,
        )
        made.cells = cells
        return made

    def __repr__(self, **_: Any) -> str:
        return f"CardTensor({tuple(self.shape)}, {self.dtype}, {self.device})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if Current.card is None:
            raise RuntimeError(f"{func} on a tensor of a card that is not there any more")
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
    """A tensor of the card that reports the CPU as its device, so that torch needs no guard for the card."""


def mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """Applies the function to a value, or to every item of its lists, tuples and dicts.

    Torch's own function is half as fast.
    """
    kind = type(value)
    if kind is list or kind is tuple:
        return kind([mapped(function, each) for each in value])
    if kind is dict:
        return {key: mapped(function, each) for key, each in value.items()}
    return function(value)


def leaves(*values: Any) -> list[Any]:
    """Returns all items of the values, including those in their lists, tuples and dicts."""
    found: list[Any] = []
    for value in values:
        mapped(found.append, value)
    return found


def _unguarded(value: Any) -> Any:
    return UnguardedTensor(value.cells, CPU) if isinstance(value, CardTensor) else value


def numbered(device: Any) -> Any:
    """Adds the number to a device of the card's kind, as torch does. Other devices are returned unchanged."""
    if isinstance(device, (str, torch.device)):
        found = torch.device(device)
        if Current.card is not None and found.type == Current.card.device.type:
            return Current.card.device
    return device


def _with_number(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps the function so that its devices have a number."""

    def called(*args: Any, **kwargs: Any) -> Any:
        # a string need not be a device, except where a device is expected
        args = tuple(
            numbered(arg) if index == 1 or isinstance(arg, torch.device) else arg for index, arg in enumerate(args)
        )
        if "device" in kwargs:
            kwargs["device"] = numbered(kwargs["device"])
        return function(*args, **kwargs)

    return called


class PlayedGenerator(torch.Generator):
    """A generator that registers itself with the card if it is created for the card."""

    def __new__(cls, device: Any = "cpu") -> PlayedGenerator:
        made = super().__new__(cls)
        if Current.card is not None and torch.device(device).type == Current.card.device.type:
            Current.card.own_generator(made)
        return made


MAKERS = ("tensor", "as_tensor", "empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like")
"""Functions that fail if a device has no number. torch.zeros and similar functions do not."""


@contextlib.contextmanager
def believing_in_the_card(card: Any) -> Iterator[None]:
    """Replaces functions of torch that use the card directly instead of tensors on it."""
    functions = torch.nn.functional
    real_attention, real_to = functions.scaled_dot_product_attention, torch.Tensor.to

    def attention(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if isinstance(q, CardTensor):
            return card.attention(real_attention, (q, k, v), *args, **kwargs)
        return real_attention(q, k, v, *args, **kwargs)

    replacements: list[tuple[Any, str, Any]] = [
        (functions, "scaled_dot_product_attention", attention),
        (torch, "Generator", PlayedGenerator),
        *((torch, name, _with_number(getattr(torch, name))) for name in MAKERS),
        (torch.Tensor, "to", _with_number(real_to)),
        (torch.Tensor, "cuda", lambda self, device=None: self.to("cuda")),
        *((torch.cuda, name, function) for name, function in card.driver().items()),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in replacements]
    Current.card = card
    # torch.tensor now creates its tensor on the CPU and moves it then, as with a real card
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
