"""The seam between a training and the processes that share its work: one rank for each card.

The rank and the world size are those of torch.distributed. One process alone is a group of one
(`ALONE`), for which nothing of torch.distributed is imported: only the other files of this folder
may do that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Protocol

from trainer.eviction import PreemptionFlag

if TYPE_CHECKING:
    import torch


class GiveUp(IntEnum):
    """Why the passes of a step are given up by all ranks; of several reasons the highest counts."""

    NO = 0
    NO_FIXED_ORDER = 1
    """An operation has no deterministic form: it has to be allowed."""
    OUT_OF_MEMORY = 2
    NOTICE = 3
    """The machine goes away before the step would end."""


class StepGivenUp(Exception):  # noqa: N818 - says what was done, which is no fault
    """All ranks have given up the passes of a step, after the same round; nothing has changed."""

    def __init__(self, reason: GiveUp, text: str) -> None:
        super().__init__(text)
        self.reason = reason


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
    local_rank: int
    """Its number among those of its machine; 0 writes the checkpoints there."""
    local_size: int
    """How many there are on its machine."""
    lockstep: bool
    """Whether all ranks make the same passes at the same time, so that none may end one alone."""

    def mine(self, count: int) -> range:
        """Return which of `count` numbered pieces of work this rank does."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, by rank; a value is what JSON can hold."""
        ...

    def broadcast(self, data: bytes | None, source: int) -> bytes:
        """Return to all ranks the bytes that `source` gives; the others give None."""
        ...

    def compare(self, step: int, *, flag: PreemptionFlag, digest: Callable[[], int]) -> bool:
        """Compare the states after `step` steps; tell whether a notice has come to any rank.

        All ranks are told the same, and the flag of each is then up.

        Raises:
            CardsDisagree: the digests are not the same.
        """
        ...

    def open_sum(self, tensors: Mapping[str, torch.Tensor], count: int) -> OrderedSum:
        """Begin to add up the gradients of a step's `count` micro-batches."""
        ...


class OrderedSum(Protocol):
    """Adds up gradients of micro-batches in the order of their numbers, in float32.

    The sum then has the bits that one process gets that does them one after the other.
    """

    def add(self, number: int, loss: torch.Tensor) -> None:
        """Take the gradients that the backward pass of a micro-batch has left, and its loss.

        The micro-batches of a rank are those of `Peers.mine`, in rising order.

        Raises:
            StepGivenUp: another rank cannot go on with the step.
        """
        ...

    def give_up(self, reason: GiveUp, text: str) -> None:
        """Let all ranks give up the step, since this one cannot do its next micro-batch.

        Raises:
            StepGivenUp: all of them know; one process alone just returns.
        """
        ...

    def finish(self) -> torch.Tensor:
        """Leave the sums as gradients of the tensors; return the sum of the losses, float64.

        Raises:
            StepGivenUp: another rank cannot go on with the step.
        """
        ...
