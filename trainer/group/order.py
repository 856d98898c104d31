"""Lets the first rank of a machine go before the others, which find its result on their disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from trainer.group.peers import Peers


@contextmanager
def rank_0_first(peers: Peers) -> Iterator[None]:
    """Let others enter once the first rank of each machine has left; never, if one fails."""
    turn = Turn(peers)
    turn.wait()
    yield
    turn.end()


class Turn:
    """The same in two calls, for what is no block; with `all_at_once` nobody waits."""

    def __init__(self, peers: Peers, *, all_at_once: bool = False) -> None:
        self._peers = peers
        seen = peers.gather([peers.local_rank, all_at_once])
        self._in_order = not all(free for rank, free in seen if rank == 0)  # as the first ones see

    @property
    def is_awaited(self) -> bool:
        """Whether others wait for this rank."""
        return self._in_order and self._peers.local_rank == 0 and self._peers.size > 1

    def wait(self) -> None:
        """Wait until the first of each machine is done; those go on."""
        if self._in_order and self._peers.local_rank:
            self._peers.gather(None)

    def end(self) -> None:
        """Let the others go on, if this is the first of its machine."""
        if self._in_order and not self._peers.local_rank:
            self._peers.gather(None)
