"""Decides whether Triton can compute on a card, before anything is imported or compiled."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from trainer.kernels.kernel_set import Card

CAPABILITY_MIN = (7, 5)
"""Turing: the oldest that Triton compiles for and that is tested."""
BF16_SINCE = (8, 0)  # below, bfloat16 is emulated
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def triton_problem(card: Card) -> str | None:
    """Return in words why Triton cannot be used on `card`; None if it can."""
    if card.device.type != "cuda" or card.capability is None:
        return "it needs a CUDA card"
    if card.capability < CAPABILITY_MIN:
        major, minor = card.capability
        return f"it needs compute capability 7.5; this card has {major}.{minor}"
    if card.dtype not in DTYPES or (card.dtype is torch.bfloat16 and card.capability < BF16_SINCE):
        return f"it cannot compute in {card.dtype} on this card"
    if find_spec("triton") is None:
        return "the package `triton` is not installed"
    return None
