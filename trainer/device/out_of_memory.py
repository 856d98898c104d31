"""Tells whether an error means that memory ran out, on whatever device and in whichever library.

Only CUDA has an error of its own for it. On a CPU torch's allocator raises a RuntimeError, Python a
MemoryError, the loader of shared libraries an ImportError or OSError. Nothing heavy is imported.
"""

from __future__ import annotations

import errno
import gc
import sys
from typing import Any

MEMORY_ERRORS = (RuntimeError, MemoryError)
"""What such errors are while a model computes; `is_out_of_memory` tells them from others."""

# Texts of a RuntimeError or ImportError: torch's CPU allocator, CUDA's libraries and bitsandbytes,
# C++'s own, oneDNN where it lacks memory for a product, and the loader of shared libraries.
_TEXTS = (
    "can't allocate memory", "cannot allocate memory", "out of memory", "alloc_failed",
    "bad_alloc", "failed to map segment", "could not create a memory",
    "can't start new thread",
)  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether `error` is one of memory that ran out: of a card, of the host, of a limit."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError | ImportError | OSError) and any(
        one in text for one in _TEXTS
    )


def give_memory_back() -> None:
    """Return what is no longer used: to the card's driver if there is a card, else to the system.

    An error that is being handled keeps the tensors of its frames alive: call it after the handler.
    """
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim_heap()


def trim_heap() -> None:
    """Let the C library return its free pages, where it can; glibc keeps them otherwise."""
    if (trim := _of_c_library("malloc_trim")) is not None:
        trim(0)


def return_memory_at_once() -> None:
    """Let the C library return every freed tensor to the system, where it can.

    glibc keeps what is freed in a heap with holes, and takes ever larger pieces from it: a pass of
    SmolLM2-135M on a CPU (8 rows, 352 tokens) took 860 MB beside the model, and 504 MB so. Values
    do not depend on it.
    """
    if (set_option := _of_c_library("mallopt")) is not None:
        set_option(_M_MMAP_THRESHOLD, MAPPED_BYTES_MIN)
        set_option(_M_TRIM_THRESHOLD, 4 * MAPPED_BYTES_MIN)


MAPPED_BYTES_MIN = 1 << 15
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def _of_c_library(name: str) -> Any:
    """Return a function of the C library, None where there is none of that name (musl, macOS)."""
    if sys.platform != "linux":
        return None
    import ctypes

    return getattr(ctypes.CDLL(None), name, None)
