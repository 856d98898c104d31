"""Spares a training on a processor the work that its frozen base makes unnecessary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from trainer.device.unpacked import UnpackedBase, unpack_base
from trainer.kernels.lora_linear import use_fewer_copies
from trainer.text import gigabytes
from trainer.training.measure import device_limit


def spare_on_cpu(
    model: Any, device: torch.device, on_message: Callable[[str], None]
) -> UnpackedBase | None:
    """Let `model` compute with fewer copies, and with unpacked values if memory is plenty.

    No bit of a step changes. Returns the unpacked values, None if there are none. On a card nothing
    is done: kernels spare more there (`trainer.kernels`).
    """
    if device.type != "cpu":
        return None
    use_fewer_copies(model)
    limit = device_limit(device)
    unpacked = unpack_base(model, free_bytes=None if limit is None else limit.free_bytes)
    if unpacked is not None:
        size = gigabytes(unpacked.bytes)
        on_message(f"memory is plenty: the values of 4-bit layers are kept unpacked ({size})")
    return unpacked
