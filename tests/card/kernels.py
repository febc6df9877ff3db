"""Computes the operations of a simulated card on the CPU, in the precision that a real card uses."""

from __future__ import annotations

from typing import Any

import torch
from card.tensors import CardTensor, leaves, mapped
from torch import Tensor

HALVES = (torch.float16, torch.bfloat16)

TAKES_NUMBERS = frozenset(
    [
        "add",
        "sub",
        "mul",
        "div",
        "pow",
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
        "maximum",
        "minimum",
        "where",
        "rsub",
        "true_divide",
        "remainder",
        "fmod",
        "floor_divide",
        "atan2",
        "hypot",
        "logical_and",
        "logical_or",
        "bitwise_and",
        "bitwise_or",
        "clamp",
        "fill",
        "masked_fill",
        "index_put",
    ]
)
"""Operations on a card that accept a CPU tensor without dimensions, because they treat it as a number."""

IN_SINGLE = frozenset(
    [
        "convolution",
        "mm",
        "addmm",
        "bmm",
        "baddbmm",
        "native_group_norm",
        "native_layer_norm",
        "std_mean",
        "var_mean",
        "_softmax",
        "mean",
        "sum",
        "std",
        "var",
        "gelu",
        "silu",
        "upsample_bicubic2d",
        "upsample_bilinear2d",
        "_upsample_bilinear2d_aa",
        "_upsample_bicubic2d_aa",
        "upsample_nearest2d",
        "_adaptive_avg_pool2d",
        "avg_pool2d",
        "reflection_pad2d",
        "exp",
        "log",
        "cos",
        "sin",
        "sigmoid",
        "tanh",
        "linalg_vector_norm",
    ]
)
"""Operations that a card computes in single precision for inputs in half precision. The result is rounded to half."""

NEEDS_ONE_TYPE = frozenset(["convolution", "mm", "addmm", "bmm", "baddbmm"])
"""Operations that fail if their inputs have different floating-point types."""


def on_cpu(value: Any) -> Any:
    """Returns the CPU tensor that stores the numbers of a card's tensor. Returns other values unchanged."""
    return value.stored if isinstance(value, CardTensor) else value


def writes(func: Any) -> bool:
    """Returns whether an operation writes its result into one of its arguments."""
    returns = func._schema.returns
    return bool(returns) and returns[0].alias_info is not None and returns[0].alias_info.is_write


def computed(func: Any, name: str, args: Any, kwargs: Any) -> Any:
    """Computes an operation on CPU tensors in the precision that a card uses. `name` is the operation's name.

    Raises RuntimeError if an operation in NEEDS_ONE_TYPE receives different floating-point types.
    """
    floats = [value for value in leaves(args, kwargs) if isinstance(value, Tensor) and value.is_floating_point()]
    if name in NEEDS_ONE_TYPE and len({value.dtype for value in floats}) > 1:
        raise RuntimeError(
            f"Input type and weight type should be the same ({name}: {[value.dtype for value in floats]})"
        )
    halves = [value.dtype for value in floats if value.dtype in HALVES]
    if name.rstrip("_") not in IN_SINGLE or not halves or kwargs.get("dtype") == torch.float32:
        return func(*args, **kwargs)
    if name == "_softmax":
        # the third argument of _softmax is half_to_float, which the CPU does not support
        args = (*args[:2], False)
    single_args, single_kwargs = mapped(_single, args), mapped(_single, kwargs)
    out = func(*single_args, **single_kwargs)
    if writes(func):
        args[0].copy_(out)
        return args[0]
    return mapped(
        lambda value: value.to(halves[0]) if isinstance(value, Tensor) and value.dtype == torch.float32 else value, out
    )


def _single(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype in HALVES:
        return value.float()
    return torch.float32 if value in HALVES and isinstance(value, torch.dtype) else value
