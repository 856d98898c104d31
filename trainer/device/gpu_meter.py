"""Measures after each step what a CUDA card held in memory, and how busy it was."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch

MEASURED = ("seconds", "gpu_memory_bytes", "gpu_use")
"""What the log has of a step that is not the same in every run of the same settings."""
NVML = "libnvidia-ml.so.1"
"""Comes with the driver."""


class _Utilization(ctypes.Structure):
    """`nvmlUtilization_t` of NVIDIA's NVML: percent of the last sample period."""

    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


def gpu_meter(device: torch.device) -> Callable[[], dict[str, Any]]:
    """Return what measures a device: a function that returns fields of a step's record.

    On a CUDA card `gpu_memory_bytes` is the most that tensors took since the call before, and
    `gpu_use` the share of time in which the card computed anything, over the last sample period of
    its driver (a second at most); that is left out where the driver does not say. On any other
    device there are no fields. It computes nothing, and waits for nothing.
    """
    if device.type != "cuda":
        return dict
    use = _read_use(device)

    def measure() -> dict[str, Any]:
        found: dict[str, Any] = {"gpu_memory_bytes": torch.cuda.max_memory_allocated(device)}
        torch.cuda.reset_peak_memory_stats(device)
        share = use()
        return found if share is None else {**found, "gpu_use": share}

    return measure


def _read_use(device: torch.device) -> Callable[[], float | None]:
    """Return what reads the use of a card, which gives None where its driver cannot be asked."""
    try:
        library = ctypes.CDLL(NVML)
        identity = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    except (OSError, AttributeError, RuntimeError):  # no driver's library, or an older torch
        return lambda: None
    return use_reader(library, identity)


def use_reader(library: Any, identity: str) -> Callable[[], float | None]:
    """Return what reads the use of the card of that UUID from NVML, from 0 to 1.

    Every function of the library returns 0 if it could do what it was asked for. After a failure
    the reader gives None: a part of a card (MIG) and some virtual ones have no figure.
    """
    handle = ctypes.c_void_p()
    found = library.nvmlInit_v2() == 0 and (
        library.nvmlDeviceGetHandleByUUID(identity.encode(), ctypes.byref(handle)) == 0
    )

    def read() -> float | None:
        rates = _Utilization()
        if not found or library.nvmlDeviceGetUtilizationRates(handle, ctypes.byref(rates)) != 0:
            return None
        return min(100, int(rates.gpu)) / 100

    return read
