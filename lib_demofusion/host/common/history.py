"""Detects whether a function of another extension keeps data from one call to the next.

Such a function can be a step cache. A step cache replaces or wraps the model and reuses the results of earlier model
calls. It assumes that each model call is a step of the sampler. The stages call the model once for every batch of
views. A step cache would therefore compute a view from the results for other views.
"""

from __future__ import annotations

import dis
import functools
from collections.abc import Iterator
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

STEP_CACHE = "%s: it computes a step from earlier steps, but in a stage each call evaluates other tiles; switch it off"
"""The reason for refusing a step cache. The placeholder is the name of the extension or module that contains it."""

FIXED = (int, float, complex, str, bytes, bool, type(None), Tensor, nn.Module, ModuleType, type)
"""Types of values that do not count as data from earlier calls, even if a function could change them."""


def keeps_history(wrapper: Any) -> bool:
    """Returns whether a callable can keep data from one call to the next. Inspects the callable, but does not call it.

    The result is True if the code of the callable assigns to an attribute, a global or a variable of the enclosing
    function. The result is also True if its closure contains an object that it can change, such as a list. For a
    method, and for an object with the method `__call__`, the result is also True if the method uses an attribute of
    `self` that contains such an object. Values of the types in FIXED do not count.
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
    """Returns whether the code assigns to an attribute, a global or a variable of the enclosing function.

    Also checks the functions that the code defines.
    """
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
