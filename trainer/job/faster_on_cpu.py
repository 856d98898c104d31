"""Spares a training on a processor the work that its frozen base makes unnecessary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from trainer.device.token_rows import RowWatch, pads_only_past_tokens, rows_stand_alone
from trainer.device.unpacked import LayerValues, UnpackedBase, unpackable
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
    layers = list(unpackable(model))
    unpacked = keep_unpacked(layers, device, on_message, installed=True)
    if unpacked is not None and pads_only_past_tokens(model):
        leave_padding_out(model, layers)
    return unpacked


def leave_padding_out(model: Any, layers: Sequence[LayerValues]) -> int:
    """Let layers compute the tokens of a batch alone where that changes no bit; return how many."""
    watch, found = RowWatch(), 0
    for one in layers:
        shape = one.layer.out_features, one.layer.in_features
        if rows_stand_alone(*shape, torch.get_num_threads()):
            one.watch = watch
            found += 1
    if found:
        watch.watch(model)
    return found
