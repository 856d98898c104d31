"""A training by one process: autograd adds up the gradients by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class Alone:
    """A group of one: it waits for nobody, and copies nothing."""

    rank = 0
    size = 1

    def mine(self, count: int) -> range:
        """Return all pieces."""
        return range(count)

    def gather(self, value: Any) -> list[Any]:
        """Return the one value."""
        return [value]

    def open_sum(self, parameters: Mapping[str, torch.nn.Parameter]) -> SumByAutograd:
        """Begin a sum on the device of the parameters."""
        return SumByAutograd(next(iter(parameters.values())).device)


class SumByAutograd:
    """The sum that each backward pass adds to by itself, in the order in which they are done."""

    def __init__(self, device: torch.device) -> None:
        import torch

        self._loss_sum = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, number: int, loss: torch.Tensor) -> None:  # noqa: ARG002 - the seam
        """Add the loss; the gradients are added already."""
        self._loss_sum += loss

    def finish(self) -> torch.Tensor:
        """Return the sum of the losses."""
        return self._loss_sum


ALONE = Alone()
