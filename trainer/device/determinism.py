"""The same bits in every run: demanded of torch in each step, and given up only if it refuses.

Of an operation without a fixed order torch can warn or refuse it. While it only warns, the backward
passes of its fast attentions (flash, memory-efficient) add up in any order, although they could do
better; only if it would refuse, they keep to one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Determinism:
    """How strict torch is while a model is trained; the first refusal makes it lenient for good."""

    def __init__(self) -> None:
        self.strict = True

    @contextmanager
    def enforced(self) -> Iterator[None]:
        """Let torch refuse inside what it only warns of outside, unless that was given up."""
        torch.use_deterministic_algorithms(mode=True, warn_only=not self.strict)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(mode=True, warn_only=True)

    def relax(self, error: RuntimeError) -> bool:
        """Become lenient if `error` is such a refusal; tell whether it was one."""
        refused = self.strict and "deterministic" in str(error)
        self.strict = self.strict and not refused
        return refused
