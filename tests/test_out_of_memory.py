"""Tests that the out-of-memory errors of all backends are recognized, and that other errors are not."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fusing import fuse
from torch import Tensor

from lib_demofusion.method.batching import ViewBatches
from lib_demofusion.method.views import View, local_views
from lib_demofusion.out_of_memory import is_out_of_memory
from lib_demofusion.tiled_vae import tiling

OUT_OF_MEMORY = [
    "CUDA out of memory. Tried to allocate 2.00 GiB (GPU 0; 8.00 GiB total capacity; 6.2 GiB already allocated)",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
    "CUDA driver error: out of memory",
    "HIP out of memory. Tried to allocate 1.50 GiB",
    "XPU out of memory. Tried to allocate 4.00 GiB",
    "NPU out of memory. Tried to allocate 512.00 MiB",
    "MPS backend out of memory (MPS allocated: 17.98 GB, other allocations: 39.94 MB, max allowed: 18.13 GB)",
    "Invalid buffer size: 24.00 GB",
    "Could not allocate tensor with 4915840000 bytes. There is not enough GPU video memory available!",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "Unable to find a valid cuDNN algorithm to run convolution",
    "FIND was unable to find an engine to execute this computation",
    "GET was unable to find an engine to execute this computation",
    "[enforce fail at alloc_cpu.cpp:83] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "17179869184 bytes. Error code 12 (Cannot allocate memory)",
    "[enforce fail at alloc_cpu.cpp:72] data. DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes.",
    "Native API failed. Native API returns: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)",
    "Native API failed. Native API returns: 40 (UR_RESULT_ERROR_OUT_OF_RESOURCES)",
    "Native API failed. Native API returns: -5 (PI_ERROR_OUT_OF_RESOURCES) -5 (PI_ERROR_OUT_OF_RESOURCES)",
    "Native API failed. Native API returns: -4 (PI_ERROR_MEM_OBJECT_ALLOCATION_FAILURE)",
]

OTHERS = [
    "mat1 and mat2 shapes cannot be multiplied (154x768 and 2048x640)",
    "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!",
    "expected scalar type Half but found Float",
    "CUDA error: an illegal memory access was encountered",
    "CUDA error: device-side assert triggered",
    "CUDA error: misaligned address",
    "CUDA error: no kernel image is available for execution on the device",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`",
    "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a non-contiguous input.",
    "cuDNN error: CUDNN_STATUS_MAPPING_ERROR",
    "shape '[2, 4, 64, 64]' is invalid for input of size 16384",
    "Adaptive pool MPS: input sizes must be divisible by output sizes.",
    "Native API failed. Native API returns: 20 (UR_RESULT_ERROR_DEVICE_LOST)",
    "A tensor with all NaNs was produced in Unet.",
    "",
]


@pytest.mark.parametrize("message", OUT_OF_MEMORY)
def test_out_of_memory_errors_of_every_backend_are_recognized(message: str) -> None:
    assert is_out_of_memory(RuntimeError(message))


@pytest.mark.parametrize("message", OTHERS)
def test_other_errors_do_not_count_as_out_of_memory(message: str) -> None:
    assert not is_out_of_memory(RuntimeError(message))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.cuda.OutOfMemoryError("x"), True),
        (MemoryError(), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "out of memory.png"), False),
        (ValueError("a prompt of a robot that is out of memory"), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_errors_are_also_recognized_by_their_class(error: BaseException, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


@pytest.mark.parametrize("code", [8, 14, 1455])
def test_out_of_memory_errors_of_windows_are_recognized_by_their_code(code: int) -> None:
    error = OSError(errno.EINVAL, "The paging file is too small for this operation to complete")
    error.winerror = code  # type: ignore[attr-defined]
    assert is_out_of_memory(error)
    error.winerror = 2  # type: ignore[attr-defined]
    assert not is_out_of_memory(error)


def test_real_errors_of_torch_and_numpy_are_recognized() -> None:
    for allocate in (lambda: torch.empty(1 << 60), lambda: np.empty(1 << 58)):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            allocate()
        assert is_out_of_memory(caught.value)


@pytest.mark.parametrize("message", OUT_OF_MEMORY)
def test_a_view_batch_shrinks_after_every_kind_of_out_of_memory_error(message: str) -> None:
    sizes = []

    def evaluate(crops: Tensor, views: Sequence[View], rows: slice) -> Tensor:
        sizes.append(len(views))
        if len(views) > 2:
            raise RuntimeError(message)
        return crops

    x = torch.ones(1, 4, 16, 16)
    out = fuse(evaluate, x, local_views((16, 16), (8, 8), (4, 4)), [], 0.0, lambda z: z, 1.0, ViewBatches(8))
    torch.testing.assert_close(out, x)
    assert sizes[:3] == [8, 4, 2]


@pytest.mark.parametrize("error", [*map(RuntimeError, OUT_OF_MEMORY), MemoryError()])
def test_the_vaes_attention_uses_smaller_chunks_after_every_kind_of_out_of_memory_error(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = torch.randn(1, 1, 256, 8, generator=torch.Generator().manual_seed(0))
    expected = tiling.attend(tokens, tokens, tokens)
    real = torch.nn.functional.scaled_dot_product_attention
    rows = []

    def scarce(queries: Tensor, *rest: Any) -> Tensor:
        rows.append(queries.shape[2])
        if queries.shape[2] > 64:
            raise error
        return real(queries, *rest)

    monkeypatch.setattr(tiling.F, "scaled_dot_product_attention", scarce)
    torch.testing.assert_close(tiling.attend(tokens, tokens, tokens), expected)
    assert rows == [256, 128, 64, 64, 64, 64]


def test_only_one_file_examines_the_text_of_errors() -> None:
    folder = Path(tiling.__file__).parents[1]
    found = [path.name for path in sorted(folder.rglob("*.py")) if "def is_out_of_memory" in path.read_text("utf-8")]
    assert found == ["out_of_memory.py"]
    words = [path.name for path in sorted(folder.rglob("*.py")) if '"out of memory"' in path.read_text("utf-8")]
    assert words == ["out_of_memory.py"]
