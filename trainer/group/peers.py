"""The seam between a training and the processes that share its work: one rank for each card.

The rank and the world size are those of torch.distributed. One process alone is a group of one
(`ALONE`), for which nothing of torch.distributed is imported: only the other files of this folder
may do that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch


class Peers(Protocol):
    """The ranks that compute the steps of one training together.

    Parameters, optimizer and counters are the same on each of them after every step, bit for bit.
    Every method that waits for other ranks raises `PeerLost` within seconds when one is gone, has
    fallen silent, or was told to leave; the state of the last whole step then stands.
    """

    rank: int
    """The number of this process, from 0. Rank 0 writes log, status and adapter."""
    size: int
    """How many there are: the world size."""

    def mine(self, count: int) -> range:
        """Return which of `count` numbered pieces of work this rank does."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, by rank; a value is what JSON can hold."""
        ...

    def open_sum(self, parameters: Mapping[str, torch.nn.Parameter]) -> OrderedSum:
        """Begin to add up the gradients of a step's micro-batches."""
        ...


class OrderedSum(Protocol):
    """Adds up gradients of micro-batches in the order of their numbers, in float32.

    The sum then has the bits that one process gets that does them one after the other.
    """

    def add(self, number: int, loss: torch.Tensor) -> None:
        """Take the gradients that the backward pass of a micro-batch has left, and its loss.

        The micro-batches of a rank are those of `Peers.mine`, in rising order.
        """
        ...

    def finish(self) -> torch.Tensor:
        """Leave the sums as gradients of the parameters; return the sum of the losses, float64."""
        ...
