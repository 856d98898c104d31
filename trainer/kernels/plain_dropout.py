"""Dropout whose mask is made from a seed, in plain operations: the reference of the kernel."""

from __future__ import annotations

import torch

from trainer.kernels.philox import philox

BLOCK = 512
"""Counters of a stretch; its four words go to four neighbouring runs of so many elements."""


def threshold(p: float) -> int:
    """Return below which 32 random bits an element is dropped, with probability p in (0, 1)."""
    return round(p * 2**32)


def plain_dropped(x: torch.Tensor, seed: int, p: float) -> torch.Tensor:
    """Return x with every element dropped with probability p, the others divided by 1 - p.

    Which ones is set by `seed` and an element's place in x, and by nothing else.
    """
    count = x.numel()
    stretches = -(-count // (4 * BLOCK))
    counters = torch.arange(stretches * BLOCK, device=x.device).view(stretches, 1, BLOCK)
    words = philox(seed, counters)  # [4, stretches, 1, BLOCK]
    kept = words.squeeze(2).transpose(0, 1).reshape(-1)[:count] >= threshold(p)
    scaled = (x.float() * (1.0 / (1.0 - p))).to(x.dtype)
    return torch.where(kept.view(x.shape), scaled, torch.zeros_like(x))
