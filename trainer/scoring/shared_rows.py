"""Computes a row for each held-out example, batch by batch, on all ranks of a training.

Which rows share a batch is decided by their lengths alone, and a batch is computed whole by one
rank: so the rows are the same bits for any number of ranks. In a round each rank computes one
batch; neighbours are of similar length, so that no rank waits long. Rank 0 then keeps what all of
them did. After a kill at most the round under way is lost, and any number of ranks goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from trainer.errors import Preempted
from trainer.group.alone import ALONE
from trainer.group.peers import Peers
from trainer.group.rounds import share
from trainer.scoring.constrained import (
    batches_by_length,
    memory_for_batches,
    parts_that_fit,
    run_in_batches,
)
from trainer.scoring.kept_rows import KeptRows

Row = Mapping[str, Any]
Compute = Callable[[list[int]], Mapping[int, Row]]
"""Computes the rows of a batch of places; a row is what JSON can hold."""


def compute_rows(
    prompts: Sequence[Sequence[int]],
    compute: Compute,
    *,
    kept: KeptRows | None,
    on_progress: Callable[[int, int], None],
    peers: Peers = ALONE,
) -> list[Row]:
    """Return the row of each prompt, in order; `on_progress(done, total)` is called in between.

    What is in `kept` is not computed again, and every batch that is done goes there, under the
    prompt's place; of several ranks only the first one reads and writes it. A batch for which
    memory runs out is computed again in halves. What `compute` or `on_progress` raises on one rank,
    such as `Preempted`, is raised on all after the same round.

    Raises:
        DoesNotFit: memory does not even suffice for one prompt.
        PeerLost: another rank is gone.
    """
    if peers.size == 1:
        found = _computed_alone(prompts, compute, kept, on_progress)
    else:
        found = _Shared(prompts, compute, kept, on_progress, peers).computed()
    return [found[at] for at in range(len(prompts))]


def _computed_alone(
    prompts: Sequence[Sequence[int]],
    compute: Compute,
    kept: KeptRows | None,
    on_progress: Callable[[int, int], None],
) -> dict[int, Row]:
    found: dict[int, Row] = {} if kept is None else dict(kept.rows(len(prompts)))

    def answer(batch: list[int]) -> None:
        if all(at in found for at in batch):
            return
        new = compute(batch)
        _keep(kept, new)
        found.update(new)

    run_in_batches(prompts, answer, on_progress)
    return found


def _keep(kept: KeptRows | None, rows: Mapping[int, Row]) -> None:
    if kept is not None and rows:
        kept.add({str(at): row for at, row in rows.items()})


class _Shared:
    """One pass over all rows by several ranks."""

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        compute: Compute,
        kept: KeptRows | None,
        on_progress: Callable[[int, int], None],
        peers: Peers,
    ) -> None:
        self._lengths = [len(prompt) for prompt in prompts]
        self._compute = compute
        self._kept = kept
        self._on_progress = on_progress
        self._peers = peers
        self._memory = memory_for_batches()
        self._found: dict[int, Row] = {}
        self._done = 0

    def computed(self) -> dict[int, Row]:
        """Compute what is not kept yet, in rounds, and return all rows."""
        peers, total = self._peers, len(self._lengths)
        self._found = dict(share(peers, self._begun()).require())
        batches = list(batches_by_length(self._lengths))
        left = [batch for batch in batches if not self._is_found(batch)]
        self._done = total - sum(map(len, left))
        for first in range(0, len(left), peers.size):
            of_round = left[first : first + peers.size]
            self._do(of_round)
            self._done += sum(map(len, of_round))
        try:
            self._on_progress(total, total)
        except Preempted:  # all is computed: the next pass, or what comes after, ends on all ranks
            return self._found
        return self._found

    def _begun(self) -> Iterator[tuple[int, Row]]:
        """Yield the rows that are kept: rank 0 tells the others."""
        self._on_progress(0, len(self._lengths))
        if self._peers.rank == 0 and self._kept is not None:
            yield from self._kept.rows(len(self._lengths)).items()

    def _do(self, batches: Sequence[list[int]]) -> None:
        """Let each rank compute one batch; keep what is done, also if something ends the round."""
        mine = [batches[number] for number in self._peers.mine(len(batches))]
        done = share(self._peers, self._rows_of(mine))
        new: dict[int, Row] = {}
        for of_rank in done.done:
            new |= dict(of_rank)
        self._found |= new
        if self._peers.rank == 0:
            _keep(self._kept, new)
        done.require()

    def _rows_of(self, batches: Sequence[list[int]]) -> Iterator[tuple[int, Row]]:
        """Yield the rows of some batches, then look whether a notice came meanwhile."""
        new: dict[int, Row] = {}

        def answer(batch: list[int]) -> None:
            if not self._is_found(batch):
                new.update(self._compute(batch))

        for part in self._parts(batches, answer):
            yield from ((at, new[at]) for at in part if at in new)
        self._on_progress(self._done + sum(map(len, batches)), len(self._lengths))

    def _parts(
        self, batches: Sequence[list[int]], answer: Callable[[list[int]], None]
    ) -> Iterator[list[int]]:
        """Call `answer` with each batch, or with the parts that fit; yield what is done."""
        if not self._peers.lockstep:
            yield from parts_that_fit(batches, self._lengths, answer, self._memory)
            return
        for batch in batches:  # no rank may cut one that the others compute whole
            answer(batch)
            yield batch

    def _is_found(self, batch: Sequence[int]) -> bool:
        return all(at in self._found for at in batch)
