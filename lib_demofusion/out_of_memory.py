"""Recognizes out-of-memory errors. After such an error, another attempt that needs less memory can succeed."""

from __future__ import annotations

import errno

import torch

SIGNS = (
    # CUDA, HIP, MPS, XPU and NPU: "CUDA out of memory. Tried to allocate 2.00 GiB", "CUDA error: out of memory"
    "out of memory",
    # oneAPI: "Native API returns: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)", PI_ERROR_... in older versions
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
    # MPS, for a single tensor above its limit: "Invalid buffer size: 24.00 GB"
    "invalid buffer size",
    # workspaces of the libraries: CUBLAS_, CUDNN_, CUSOLVER_, HIPBLAS_...
    "status_alloc_failed",
    # torch skips algorithms whose workspace does not fit; this is the message if none is left
    "unable to find a valid cudnn algorithm",
    "unable to find an engine to execute this computation",
)
"""Lower-case parts of the text of a RuntimeError. Most backends have no exception class for out-of-memory errors."""

WINDOWS_CODES = frozenset({8, 14, 1455})
"""ERROR_NOT_ENOUGH_MEMORY, ERROR_OUTOFMEMORY, ERROR_COMMITMENT_LIMIT (the paging file is too small)."""


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error means that the GPU or the computer has too little free memory."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM or getattr(error, "winerror", None) in WINDOWS_CODES
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in SIGNS)
