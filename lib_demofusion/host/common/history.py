"""Detects whether a function of another extension keeps data from one call to the next.

Some functions that replace or wrap the model keep such data. They assume that each call of the model is a step of the
sampler, and reuse results of earlier calls. The stages call the model once for every batch of views. Such a function
would therefore compute a view from the results for other views.
"""

from __future__ import annotations

import dis
import functools
from collections.abc import Iterator
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

STEP_CACHE = "%s: it computes a step from earlier steps, but here each call shows other tiles; switch it off"
"""The reason for the refusal of such a function. The placeholder is the name of its extension."""

FIXED = (int, float, complex, str, bytes, bool, type(None), Tensor, nn.Module, ModuleType, type)


def keeps_history(wrapper: Any) -> bool:
    """Returns whether a callable changes a variable of its own, or references an object that it could change.

    The callable is inspected but never called. Objects and lists count as mutable. Numbers, texts and tensors do not.
    """
    return _keeps(wrapper, set())


def _keeps(value: Any, seen: set[int]) -> bool:
    if id(value) in seen or isinstance(value, FIXED):
        return False
    seen.add(id(value))
    if isinstance(value, (tuple, frozenset)):
        return any(_keeps(entry, seen) for entry in value)
    if isinstance(value, functools.partial):
        return any(_keeps(part, seen) for part in (value.func, *value.args, *value.keywords.values()))
    if isinstance(value, FunctionType):
        cells = (cell.cell_contents for cell in value.__closure__ or ())
        return _stores(value.__code__) or any(_keeps(content, seen) for content in cells)
    if isinstance(value, MethodType):
        owner, names = value.__self__, set(_names(value.__func__.__code__))
        held = (content for name, content in vars(owner).items() if name in names) if hasattr(owner, "__dict__") else ()
        return _keeps(value.__func__, seen) or any(_keeps(content, seen) for content in held)
    call = getattr(type(value), "__call__", None)  # noqa: B004 (the code is needed)
    return not isinstance(call, FunctionType) or _keeps(MethodType(call, value), seen)


def _stores(code: CodeType) -> bool:
    """Returns whether a function assigns to an attribute, a global, or a variable of the enclosing function."""
    for step in dis.get_instructions(code):
        if step.opname in ("STORE_ATTR", "STORE_GLOBAL"):
            return True
        if step.opname == "STORE_DEREF" and step.argval in code.co_freevars:
            return True
    return any(_stores(inner) for inner in code.co_consts if isinstance(inner, CodeType))


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names(inner)
