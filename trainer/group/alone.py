"""A training by one process: autograd adds up the gradients by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from trainer.eviction import PreemptionFlag
from trainer.group.peers import GiveUp

if TYPE_CHECKING:
    import torch


class Alone:
    """A group of one: it waits for nobody, compares nothing, and copies nothing."""

    rank = 0
    size = 1
    local_rank = 0
    local_size = 1
    lockstep = False

    def mine(self, count: int) -> range:
        """Return all pieces."""
        return range(count)

    def gather(self, value: Any) -> list[Any]:
        """Return the one value."""
        return [value]

    def broadcast(self, data: bytes | None, source: int) -> bytes:  # noqa: ARG002 - the seam
        """Return the bytes."""
        return data or b""

    def compare(
        self,
        step: int,  # noqa: ARG002 - the seam
        *,
        flag: PreemptionFlag,
        digest: Callable[[], int],  # noqa: ARG002 - the seam
    ) -> bool:
        """Tell whether a notice has come; there is nothing to compare with."""
        return flag.notice is not None

    def open_sum(
        self,
        tensors: Mapping[str, torch.Tensor],
        count: int,  # noqa: ARG002 - the seam
    ) -> SumByAutograd:
        """Begin a sum on the device of the tensors."""
        return SumByAutograd(next(iter(tensors.values())).device)


class SumByAutograd:
    """The sum that each backward pass adds to by itself, in the order in which they are done."""

    def __init__(self, device: torch.device) -> None:
        import torch

        self._loss_sum = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, number: int, loss: torch.Tensor) -> None:  # noqa: ARG002 - the seam
        """Add the loss; the gradients are added already."""
        self._loss_sum += loss

    def give_up(self, reason: GiveUp, text: str) -> None:
        """Return: nobody else has to know."""

    def finish(self) -> torch.Tensor:
        """Return the sum of the losses."""
        return self._loss_sum


ALONE = Alone()
