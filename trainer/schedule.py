"""Computes the rows and the learning rate of every step as pure functions of its number.

Nothing here has state, so a resumed run needs no iterator, no sampler and no random generator to
find its place. The order comes from a hash, not from a library's shuffle, so
that it is the same under every version of Python and torch.
"""

from __future__ import annotations

import hashlib
import math
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

    @property
    def steps(self) -> int:
        """Number of optimizer steps of the whole run."""
        return self.lr_schedule.steps

    def batch(self, step: int) -> tuple[int, ...]:
        """Return the rows of `step`, longest first if rows are grouped by length."""
        at = self.locate(step)
        if self._epochs.get(at.epoch) is None:
            self._epochs.clear()  # one epoch is in memory at a time
            self._epochs[at.epoch] = batches(
                self.seed, at.epoch, self.lengths, self.batch_size, group=self.group_by_length
            )
        return self._epochs[at.epoch][at.index]

    def locate(self, step: int) -> Position:
        """Return the epoch and the batch within it that `step` works on."""
        return locate(step, batches_per_epoch(len(self.lengths), self.batch_size))

    def lr(self, step: int) -> float:
        """Return the learning rate of `step`."""
        return self.lr_schedule.lr(step)

    @cached_property
    def _epochs(self) -> dict[int, tuple[tuple[int, ...], ...]]:
        return {}


def make_schedule(table: TrainTable, lengths: Sequence[int]) -> Schedule:
    """Return the schedule of a run, from its train table and the length of every row (tokens)."""
    per_epoch = batches_per_epoch(len(lengths), table.batch_size)
    steps = table.steps or max(1, math.ceil((table.epochs or 1.0) * per_epoch - 1e-9))
    warmup = table.warmup * steps if table.warmup < 1 else table.warmup
    lr_schedule = LrSchedule(
        peak=table.lr, steps=steps, warmup=round(warmup), schedule=table.schedule
    )
    return Schedule(
        lengths=tuple(lengths),
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


def batches(
    seed: int, epoch: int, lengths: Sequence[int], batch_size: int, *, group: bool
) -> tuple[tuple[int, ...], ...]:
    """Cut one epoch into batches of row numbers: every row once, in an order set by seed and epoch.

    With `group`, rows of similar length share a batch: rows are sorted within groups of at most
    `GROUP_BATCHES_MAX` batches, and the batches shuffled again so that lengths do not drift.
    """
    rows = sorted(range(len(lengths)), key=lambda row: derive_seed(seed, "row", epoch, row))
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


def derive_seed(seed: int, purpose: str, *position: int) -> int:
    """Return 64 random-looking bits set by the arguments alone: the root of all randomness."""
    text = f"{seed}/{purpose}/{'/'.join(map(str, position))}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def micro_batches(batch: Sequence[int], size: int) -> tuple[tuple[int, ...], ...]:
    """Cut the rows of a step into forward passes of at most `size` rows."""
    return tuple(_cut(batch, size))


def _cut(rows: Sequence[int], size: int) -> list[tuple[int, ...]]:
    return [tuple(rows[at : at + size]) for at in range(0, len(rows), size)]
