"""Keeps batches of a scoring within the memory of a processor, where the kernel would end it.

A card, and memory in plenty, need none of this: a batch that is too large raises an error there,
and is answered again in halves.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from trainer.device.host_memory import free_memory, is_tight, watched_peak
from trainer.device.out_of_memory import trim_heap

SHARE = 0.6
"""Of what is free, for a batch: what a smaller one took says only in part what it takes."""
GROWTH = 2
"""A batch has at most so many times the tokens of the largest before."""


class BatchMemory:
    """Says how many tokens may go through the model at once, by what those before took."""

    def __init__(self, *, on_processor: bool) -> None:
        self._watching = on_processor and is_tight()
        self._largest = 0  # tokens of a batch
        self._bytes_per_token = 0.0

    def rows(self, lengths: list[int]) -> int:
        """Return how many of these rows, the longest first, go at once: one at least."""
        if not self._watching:
            return len(lengths)
        if not self._largest:
            return 1
        found = free_memory()
        free = float("inf") if found is None else found.bytes
        most = GROWTH * self._largest
        if self._bytes_per_token:
            most = min(most, int(SHARE * free / self._bytes_per_token))
        return max(1, min(len(lengths), most // max(1, lengths[0])))

    @contextmanager
    def watched(self, lengths: list[int]) -> Iterator[None]:
        """Note what a batch of these rows takes while inside."""
        if not self._watching:
            yield
            return
        trim_heap()
        with watched_peak() as peak:
            yield
        tokens = len(lengths) * max(1, lengths[0])
        if tokens >= self._largest:  # of a small one, most is there for any
            self._largest, self._bytes_per_token = tokens, peak.extra / tokens
