"""Spares a training on a processor the work that its frozen base makes unnecessary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from trainer.device.unpacked import UnpackedBase, unpackable
from trainer.job.keep_unpacked import keep_unpacked
from trainer.kernels.fewer_copies import use_fewer_copies


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
    return keep_unpacked(list(unpackable(model)), device, on_message, installed=True)
