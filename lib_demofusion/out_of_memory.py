"""Recognizes out-of-memory errors. After such an error, another attempt that needs less memory can succeed."""

from __future__ import annotations

import errno

import torch

MESSAGES = (
    # CUDA, HIP, MPS, XPU and NPU: "CUDA out of memory. Tried to allocate 2.00 GiB", "CUDA error: out of memory"
    "out of memory",
    # oneAPI, four codes such as "Native API returns: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)". In older versions, the
    # codes begin with PI_ERROR
    "out_of_device_memory",
    "out_of_host_memory",
    "error_out_of_resources",
    "mem_object_allocation_failure",
    # DirectML: "Could not allocate tensor with 1073741824 bytes. There is not enough GPU video memory available!"
    "not enough gpu video memory",
    # torch's CPU allocator: "DefaultCPUAllocator: can't allocate memory: you tried to allocate ..."
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    # MPS, if a single tensor exceeds the maximum size: "Invalid buffer size: 24.00 GB"
    "invalid buffer size",
    # the end of the error codes of cuBLAS, cuDNN, cuSOLVER and hipBLAS, such as CUBLAS_STATUS_ALLOC_FAILED
    "status_alloc_failed",
    # torch skips convolution algorithms that need too much memory; these are the messages if no algorithm is left
    "unable to find a valid cudnn algorithm",
    "unable to find an engine to execute this computation",
)
"""Parts of the messages of out-of-memory errors, in lower case.

A RuntimeError whose message contains one of them is an out-of-memory error. Most backends have no exception class for
these errors.
"""

WINDOWS_CODES = frozenset({8, 14, 1455})
"""Error codes of Windows: ERROR_NOT_ENOUGH_MEMORY, ERROR_OUTOFMEMORY and ERROR_COMMITMENT_LIMIT.

The last code means that the paging file is too small.
"""


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error means that the GPU or the computer has too little free memory."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM or getattr(error, "winerror", None) in WINDOWS_CODES
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(message in text for message in MESSAGES)
