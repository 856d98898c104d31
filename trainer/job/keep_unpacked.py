"""Keeps the values of a base's 4-bit layers unpacked where its device has memory to spare."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from trainer.device.unpacked import LayerValues, UnpackedBase, unpack_base
from trainer.text import gigabytes
from trainer.training.measure import device_limit


def keep_unpacked(
    layers: Sequence[LayerValues],
    device: torch.device,
    on_message: Callable[[str], None],
    *,
    installed: bool,
) -> UnpackedBase | None:
    """Keep the values of `layers` if they take at most half of what is free, and report it.

    Nothing of a step is measured yet: if it does not fit beside them, they are the first that is
    given back. If `installed`, the layers compute with them by themselves, else a kernel does.
    """
    limit = device_limit(device)
    free_bytes = None if limit is None else limit.free_bytes
    unpacked = unpack_base(layers, free_bytes=free_bytes, installed=installed)
    if unpacked is not None:
        size = gigabytes(unpacked.bytes)
        on_message(f"memory is plenty: the values of 4-bit layers are kept unpacked ({size})")
    return unpacked
