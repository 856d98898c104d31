"""Lets the first rank do something before the others, which then find its result on the disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from trainer.group.peers import Peers


@contextmanager
def rank_0_first(peers: Peers) -> Iterator[None]:
    """Let the other ranks enter once rank 0 has left; if it fails, they never enter."""
    turn = Turn(peers)
    turn.wait()
    yield
    turn.end()


class Turn:
    """The same in two calls, for what is no block; with `all_at_once` nobody waits."""

    def __init__(self, peers: Peers, *, all_at_once: bool = False) -> None:
        self._peers = peers
        self._in_order = not peers.gather(all_at_once)[0]  # by what rank 0 sees

    @property
    def is_awaited(self) -> bool:
        """Whether others wait for this rank."""
        return self._in_order and self._peers.rank == 0 and self._peers.size > 1

    def wait(self) -> None:
        """Wait until rank 0 is done; rank 0 itself goes on."""
        if self._in_order and self._peers.rank:
            self._peers.gather(None)

    def end(self) -> None:
        """Let the others go on, if this is rank 0."""
        if self._in_order and not self._peers.rank:
            self._peers.gather(None)
