"""Philox-4x32-10 in plain integers: the reference of the masks that a card makes from a seed.

Counter-based numbers (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): those of
a place follow from the seed and the place alone, so nothing is kept and no order matters.
"""

from __future__ import annotations

import torch

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
WORD = 0xFFFFFFFF


def philox(seed: int, counters: torch.Tensor) -> torch.Tensor:
    """Return four words of 32 random bits for each counter, as int64 [4, counters].

    `seed` has at most 64 bits. Products wrap around in int64, whose bits are then still right.
    """
    key = [seed & WORD, (seed >> 32) & WORD]
    c0, c1 = counters & WORD, (counters >> 32) & WORD
    c2 = c3 = torch.zeros_like(c0)
    for _ in range(ROUNDS):
        first, second = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0 = ((second >> 32) & WORD) ^ c1 ^ key[0]
        c2 = ((first >> 32) & WORD) ^ c3 ^ key[1]
        c1, c3 = second & WORD, first & WORD
        key = [(one + step) & WORD for one, step in zip(key, KEY_STEPS, strict=True)]
    return torch.stack([c0, c1, c2, c3])
