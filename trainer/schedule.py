"""Computes the rows and the learning rate of every step as pure functions of its number.

Nothing here has state, so a resumed run needs no iterator, no sampler and no random generator to
find its place. The order comes from a hash, not from a library's shuffle, so
that it is the same under every version of Python and torch.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from trainer.config import LrScheduleKind, TrainTable

GROUP_BATCHES_MAX = 50  # rows are sorted by length within groups of so many batches,
GROUPS_MIN = 4  # and there are at least so many groups, so that epochs still differ


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Everything that happens in a run, addressed by the step (0 is the first)."""

    lengths: tuple[int, ...] = field(repr=False)
    batch_size: int
    seed: int
    group_by_length: bool
    lr_schedule: LrSchedule
    shares: tuple[Share, ...] = ()  # the data sets, in order; none: all rows, each once

    @property
    def steps(self) -> int:
        """Number of optimizer steps of the whole run."""
        return self.lr_schedule.steps

    def batch(self, step: int) -> tuple[int, ...]:
        """Return the rows of `step`, longest first if rows are grouped by length."""
        at = self.locate(step)
        if self._epochs.get(at.epoch) is None:
            self._epochs.clear()  # one epoch is in memory at a time
            rows = draw(self.seed, at.epoch, self._shares)
            self._epochs[at.epoch] = batches(
                self.seed, at.epoch, self.lengths, self.batch_size, group=self.group_by_length,
                rows=rows,
            )  # fmt: skip
        return self._epochs[at.epoch][at.index]

    def locate(self, step: int) -> Position:
        """Return the epoch and the batch within it that `step` works on."""
        return locate(step, batches_per_epoch(rows_per_epoch(self._shares), self.batch_size))

    def lr(self, step: int) -> float:
        """Return the learning rate of `step`."""
        return self.lr_schedule.lr(step)

    @property
    def _shares(self) -> tuple[Share, ...]:
        return self.shares or (Share(rows=len(self.lengths)),)

    @cached_property
    def _epochs(self) -> dict[int, tuple[tuple[int, ...], ...]]:
        return {}


@dataclass(frozen=True, kw_only=True)
class Share:
    """A data set among the rows: how many they are, and how often each stands in an epoch."""

    rows: int
    weight: float = 1.0

    @property
    def rows_per_epoch(self) -> int:
        """The rows that an epoch has of it, to the nearest; at least one if there are any."""
        return max(min(1, self.rows), math.floor(self.weight * self.rows + 0.5))


def make_schedule(
    table: TrainTable, lengths: Sequence[int], shares: Sequence[Share] = ()
) -> Schedule:
    """Return the schedule of a run, from its train table and the length of every row (tokens).

    `shares` divide the rows into data sets, in order; without them they are one, of weight 1.
    """
    shares = tuple(shares) or (Share(rows=len(lengths)),)
    per_epoch = batches_per_epoch(rows_per_epoch(shares), table.batch_size)
    steps = table.steps or max(1, math.ceil((table.epochs or 1.0) * per_epoch - 1e-9))
    warmup = table.warmup * steps if table.warmup < 1 else table.warmup
    lr_schedule = LrSchedule(
        peak=table.lr, steps=steps, warmup=round(warmup), schedule=table.schedule
    )
    return Schedule(
        lengths=tuple(lengths),
        shares=shares,
        batch_size=table.batch_size,
        seed=table.seed,
        group_by_length=table.group_by_length,
        lr_schedule=lr_schedule,
    )


@dataclass(frozen=True, kw_only=True)
class LrSchedule:
    """The learning rate over a run of `steps` steps, `warmup` of them rising from zero."""

    peak: float
    steps: int
    warmup: int
    schedule: LrScheduleKind

    def lr(self, step: int) -> float:
        """Return the learning rate of `step`, by the formulas of the transformers schedulers."""
        if step < self.warmup:
            return self.peak * step / max(1, self.warmup)
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        if self.schedule is LrScheduleKind.LINEAR:
            return self.peak * max(0.0, 1.0 - done)
        if self.schedule is LrScheduleKind.COSINE:
            return self.peak * max(0.0, 0.5 * (1.0 + math.cos(math.pi * min(1.0, done))))
        return self.peak


@dataclass(frozen=True)
class Position:
    """Where a step lies: the epoch, and the batch within it."""

    epoch: int
    index: int


def locate(step: int, per_epoch: int) -> Position:
    """Split a step into epoch and batch; `per_epoch` batches make an epoch."""
    return Position(*divmod(step, per_epoch))


def batches_per_epoch(rows: int, batch_size: int) -> int:
    """Count the batches of an epoch; the last one may be short, no row is dropped."""
    return max(1, math.ceil(rows / batch_size))


def rows_per_epoch(shares: Sequence[Share]) -> int:
    """Count the rows of an epoch, a row that stands in it twice as two."""
    return sum(share.rows_per_epoch for share in shares)


def draw(seed: int, epoch: int, shares: Sequence[Share]) -> list[int]:
    """Return the row numbers of an epoch, each as often as its weight says.

    What a weight has beyond a whole number is a part of the rows, drawn by seed and epoch.
    """
    found: list[int] = []
    first = 0
    for share in shares:
        rows = range(first, first + share.rows)
        whole, some = divmod(share.rows_per_epoch, share.rows) if share.rows else (0, 0)
        found += [row for _ in range(whole) for row in rows]
        if some:
            drawn = sorted(rows, key=lambda row: derive_seed(seed, "draw", epoch, row))
            found += sorted(drawn[:some])
        first += share.rows
    return found


def batches(  # noqa: PLR0913 - one epoch in every respect
    seed: int, epoch: int, lengths: Sequence[int], batch_size: int, *, group: bool,
    rows: Sequence[int] | None = None,
) -> tuple[tuple[int, ...], ...]:  # fmt: skip
    """Cut one epoch into batches of row numbers, in an order set by seed and epoch.

    `rows` are those of the epoch, all of them once if not given; one that stands there several
    times comes as often, at places of their own.

    With `group`, rows of similar length share a batch: rows are sorted within groups of at most
    `GROUP_BATCHES_MAX` batches, and the batches shuffled again so that lengths do not drift.
    """
    rows = _shuffled(seed, epoch, range(len(lengths)) if rows is None else rows)
    if not group:
        return tuple(_cut(rows, batch_size))
    group_batches = len(rows) // (batch_size * GROUPS_MIN)
    span = batch_size * min(max(1, group_batches), GROUP_BATCHES_MAX)
    grouped = [
        batch
        for part in _cut(rows, span)
        for batch in _cut(sorted(part, key=lambda row: -lengths[row]), batch_size)
    ]
    order = sorted(range(len(grouped)), key=lambda at: derive_seed(seed, "batch", epoch, at))
    return tuple(grouped[at] for at in order)


def _shuffled(seed: int, epoch: int, rows: Sequence[int]) -> list[int]:
    """Return the rows in the order of their hashes; a further copy of a row has one of its own."""
    copies: Counter[int] = Counter()
    keyed = []
    for row in rows:
        again = (copies[row],) if copies[row] else ()
        keyed.append((derive_seed(seed, "row", epoch, row, *again), row))
        copies[row] += 1
    return [row for _, row in sorted(keyed, key=lambda pair: pair[0])]


def derive_seed(seed: int, purpose: str, *position: int) -> int:
    """Return 64 random-looking bits set by the arguments alone: the root of all randomness."""
    text = f"{seed}/{purpose}/{'/'.join(map(str, position))}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def micro_batches(batch: Sequence[int], size: int) -> tuple[tuple[int, ...], ...]:
    """Cut the rows of a step into forward passes of at most `size` rows."""
    return tuple(_cut(batch, size))


def _cut(rows: Sequence[int], size: int) -> list[tuple[int, ...]]:
    return [tuple(rows[at : at + size]) for at in range(0, len(rows), size)]
