"""Ranks that share work inside a test's own process: a thread each, joined by sockets.

Each has what another process would have: a model of its own, and nothing of the others but bytes.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from trainer.errors import PeerLost
from trainer.eviction import PreemptionFlag
from trainer.group.peers import OrderedSum, Peers

if TYPE_CHECKING:
    import torch

WAIT_S = 300
T = TypeVar("T")


@dataclass(kw_only=True)
class SocketPeers:
    """One of several ranks, all of which have a socket to the first."""

    rank: int
    size: int
    links: list[socket.socket]
    """Of rank 0 those to all others, of another the one to rank 0."""
    gathered: list[Any] = field(default_factory=list)
    """What this rank gave to be gathered."""
    lockstep: bool = False

    def __post_init__(self) -> None:
        """Give up a rank that says nothing, and read lines."""
        for link in self.links:
            link.settimeout(WAIT_S)
        self.local_rank, self.local_size = self.rank, self.size
        self._readers = [link.makefile("rb") for link in self.links]

    def mine(self, count: int) -> range:
        """Return every `size`-th piece."""
        return range(self.rank, count, self.size)

    def gather(self, value: Any) -> list[Any]:
        """Exchange values as lines of JSON, through rank 0."""
        self.gathered.append(value)
        own = json.dumps(value, allow_nan=False)
        if self.rank:
            self._send(0, own)
            return list(json.loads(self._line(0)))
        lines = [own, *(self._line(at) for at in range(len(self.links)))]
        for at in range(len(self.links)):
            self._send(at, f"[{','.join(lines)}]")
        return [json.loads(line) for line in lines]

    def broadcast(self, data: bytes | None, source: int) -> bytes:
        """Exchange bytes as text, through rank 0."""
        return bytes.fromhex(self.gather((data or b"").hex())[source])

    def compare(self, step: int, *, flag: PreemptionFlag, digest: Callable[[], int]) -> bool:
        """Refuse: these ranks share no steps."""
        raise TypeError(f"nothing to compare over sockets after step {step}: {digest()}, {flag}")

    def open_sum(self, tensors: Mapping[str, torch.Tensor], count: int) -> OrderedSum:
        """Refuse: these ranks share no gradients."""
        raise TypeError(f"no sum of {len(tensors)} gradients of {count} parts over sockets")

    def leave(self) -> None:
        """Close the sockets, as the end of a process does."""
        for reader, link in zip(self._readers, self.links, strict=True):
            reader.close()
            link.close()

    def _send(self, at: int, line: str) -> None:
        try:
            self.links[at].sendall(line.encode() + b"\n")
        except OSError as error:
            raise PeerLost(f"rank {self.rank}: {error}") from error

    def _line(self, at: int) -> str:
        try:
            line = self._readers[at].readline()
        except OSError as error:
            raise PeerLost(f"rank {self.rank}: {error}") from error
        if not line.endswith(b"\n"):
            raise PeerLost(f"rank {self.rank}: the link ended")
        return line.decode().rstrip("\n")


@dataclass(kw_only=True)
class Ended(Generic[T]):
    """How the work of one rank ended."""

    peers: SocketPeers
    value: T | None = None
    error: BaseException | None = None


def on_ranks(size: int, act: Callable[[Peers], T]) -> list[Ended[T]]:
    """Let so many ranks do something together, and return how each of them ended."""
    pairs = [socket.socketpair() for _ in range(size - 1)]
    links = [[one for one, _ in pairs], *([other] for _, other in pairs)]
    ranks: list[Ended[T]] = [
        Ended(peers=SocketPeers(rank=rank, size=size, links=of_rank))
        for rank, of_rank in enumerate(links)
    ]

    def work(rank: Ended[T]) -> None:
        import torch

        torch.set_num_threads(1)  # a number of each thread
        try:
            rank.value = act(rank.peers)
        except BaseException as error:  # noqa: BLE001 - returned
            rank.error = error
        finally:
            rank.peers.leave()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ranks


def all_values(ranks: list[Ended[T]]) -> list[T]:
    """Return what each rank gave; raise if one did not come to its end."""
    errors = [rank.error for rank in ranks if rank.error is not None]
    for error in sorted(errors, key=lambda one: isinstance(one, PeerLost)):  # the cause first
        raise error
    return [rank.value for rank in ranks if rank.value is not None]
