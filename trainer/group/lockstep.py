"""Ranks that compute every batch together, since each forward pass gathers a sharded base.

What is shared out otherwise, such as held-out rows, is then computed by all of them alike: a rank
that made a pass more or fewer than another would leave it waiting for a block of the base.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from trainer.eviction import PreemptionFlag
from trainer.group.peers import OrderedSum, Peers

if TYPE_CHECKING:
    import torch


class InLockstep:
    """The same ranks, each of which does all pieces of work.

    What one of them raises is not gathered, since the others are in the middle of a pass: it
    leaves, and they notice that.
    """

    lockstep = True

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self.rank = peers.rank
        self.size = peers.size
        self.local_rank = peers.local_rank
        self.local_size = peers.local_size

    def mine(self, count: int) -> range:
        """Return all pieces."""
        return range(count)

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, by rank."""
        return self._peers.gather(value)

    def broadcast(self, data: bytes | None, source: int) -> bytes:
        """Return the bytes that one rank gives."""
        return self._peers.broadcast(data, source)

    def compare(self, step: int, *, flag: PreemptionFlag, digest: Callable[[], int]) -> bool:
        """Compare the states of all ranks."""
        return self._peers.compare(step, flag=flag, digest=digest)

    def open_sum(self, tensors: Mapping[str, torch.Tensor], count: int) -> OrderedSum:
        """Begin a sum of gradients."""
        return self._peers.open_sum(tensors, count)
