"""The loss of held-out rows, computed by all ranks of a training, with the bits of one process.

A batch is computed whole by one rank, and the losses are added up in the order of the batches, in
float64: as one process does that computes them one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from trainer.data.codec import Example
from trainer.device.out_of_memory import MEMORY_ERRORS, give_memory_back, is_out_of_memory
from trainer.errors import DoesNotFit, Preempted
from trainer.group.alone import ALONE
from trainer.group.peers import Peers
from trainer.group.rounds import share
from trainer.training.objective import Objective, longest_first, mean_loss, row_does_not_fit

OnProgress = Callable[[int, int], None]


def shared_mean_loss(  # noqa: PLR0913 - a model with all that a measurement is made of
    model: Any,
    examples: Sequence[Example],
    *,
    objective: Objective,
    micro_batch: int,
    on_progress: OnProgress,
    peers: Peers = ALONE,
) -> float:
    """Return what `mean_loss` does, on every rank; `on_progress` may raise on any of them.

    Where memory runs out for a batch on any rank, it and those behind it are cut in halves on all:
    as one process does.

    Raises:
        DoesNotFit: memory does not even suffice for one row.
        PeerLost: another rank is gone.
    """
    if peers.size == 1:
        return mean_loss(
            model, examples, objective=objective, micro_batch=micro_batch, on_progress=on_progress
        )
    rows = longest_first(examples)
    return _Rounds(model, rows, objective, on_progress, peers).mean_loss(micro_batch)


class _Rounds:
    """Computes the losses of rows in rounds of one batch for each rank."""

    def __init__(
        self,
        model: Any,
        rows: Sequence[Example],
        objective: Objective,
        on_progress: OnProgress,
        peers: Peers,
    ) -> None:
        self._model = model
        self._rows = rows
        self._objective = objective
        self._on_progress = on_progress
        self._peers = peers
        self._device = next(model.parameters()).device
        self._notice: Preempted | None = None

    def mean_loss(self, micro_batch: int) -> float:
        """Return the loss per target, beginning with so many rows in a batch."""
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        targets = sum(item.targets for item in self._rows)
        done = 0
        self._look(done)
        while done < len(self._rows):
            starts = range(done, len(self._rows), micro_batch)[: self._peers.size]
            found = dict(share(self._peers, self._losses(starts, micro_batch)).require())
            for start in starts:
                if (loss := found[start]) is None:
                    micro_batch = -(-micro_batch // 2)
                    break
                total += float.fromhex(loss)
                done = min(start + micro_batch, len(self._rows))
            self._look(done)
        return (total / max(1, targets)).item()

    def _losses(self, starts: range, micro_batch: int) -> Iterator[tuple[int, str | None]]:
        """Yield the loss of this rank's batch, exactly; None if memory does not suffice for it."""
        if self._notice is not None:
            raise self._notice
        for number in self._peers.mine(len(starts)):
            start = starts[number]
            yield start, self._loss(self._rows[start : start + micro_batch])
        total = len(self._rows)
        self._on_progress(min(starts[-1] + micro_batch, total), total)  # or a notice came

    def _loss(self, rows: Sequence[Example]) -> str | None:
        batch = self._objective.collate(rows)
        try:
            with torch.no_grad():
                loss = self._objective.loss(
                    self._model, {name: value.to(self._device) for name, value in batch.items()}
                )
            return float(loss.item()).hex()
        except MEMORY_ERRORS as error:
            if not is_out_of_memory(error):
                raise
            if len(rows) == 1 or self._peers.lockstep:
                raise DoesNotFit(row_does_not_fit(error)) from error
        give_memory_back()
        return None

    def _look(self, done: int) -> None:
        """Say how far it is; a notice that this finds is told to all with the next round."""
        try:
            self._on_progress(done, len(self._rows))
        except Preempted as notice:
            self._notice = notice
