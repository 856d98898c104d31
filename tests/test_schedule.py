"""The schedule is a pure function of the step, and what it plans is what was asked for."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.config import LrScheduleKind, TrainTable
from trainer.schedule import (
    LrSchedule,
    Schedule,
    batches,
    derive_seed,
    locate,
    make_schedule,
    micro_batches,
)

lengths_of_rows = st.lists(st.integers(1, 50), min_size=1, max_size=60)


@st.composite
def plans(draw: st.DrawFn) -> Schedule:
    """Draw a plan of up to four epochs."""
    lengths = draw(lengths_of_rows)
    table = TrainTable(
        steps=draw(st.integers(1, 40)),
        batch_size=draw(st.integers(1, 9)),
        seed=draw(st.integers(0, 2**63 - 1)),
        group_by_length=draw(st.booleans()),
        warmup=float(draw(st.integers(0, 5))),
        schedule=draw(st.sampled_from(list(LrScheduleKind))),
    )
    return make_schedule(table, lengths)


@settings(deadline=None, max_examples=50)
@given(schedule=plans())
def test_every_stop_step_resumes_into_the_same_future(schedule: Schedule) -> None:
    """A plan made anew at any step gives the batches and rates that the old one would give."""
    whole = [(schedule.batch(step), schedule.lr(step)) for step in range(schedule.steps)]
    for stop in range(schedule.steps):
        fresh = Schedule(
            lengths=schedule.lengths,
            batch_size=schedule.batch_size,
            seed=schedule.seed,
            group_by_length=schedule.group_by_length,
            lr_schedule=schedule.lr_schedule,
        )

        assert whole[stop:] == [(fresh.batch(s), fresh.lr(s)) for s in range(stop, schedule.steps)]


@settings(deadline=None)
@given(
    lengths=lengths_of_rows,
    size=st.integers(1, 9),
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 5),
    group=st.booleans(),
)
def test_an_epoch_has_every_row_once(
    lengths: list[int], size: int, seed: int, epoch: int, *, group: bool
) -> None:
    """However rows are grouped, no row is dropped or doubled, and only one batch is short."""
    cut = batches(seed, epoch, lengths, size, group=group)

    assert sorted(row for batch in cut for row in batch) == list(range(len(lengths)))
    assert len(cut) == math.ceil(len(lengths) / size)
    assert sorted(len(batch) for batch in cut)[1:] == [size] * (len(cut) - 1)


@settings(deadline=None)
@given(step=st.integers(0, 10**9), per_epoch=st.integers(1, 10**5))
def test_a_step_is_one_place_in_one_epoch(step: int, per_epoch: int) -> None:
    """Epoch and batch number together are the step, and nothing else is needed to find them."""
    at = locate(step, per_epoch)

    assert step == at.epoch * per_epoch + at.index
    assert 0 <= at.index < per_epoch


@settings(deadline=None)
@given(batch=st.lists(st.integers(), max_size=20), size=st.integers(1, 7))
def test_micro_batches_are_the_batch_in_order(batch: list[int], size: int) -> None:
    """Cutting a batch changes neither its rows nor their order."""
    cut = micro_batches(batch, size)

    assert batch == [row for part in cut for row in part]
    assert all(len(part) <= size for part in cut)


def test_grouping_saves_most_padding_and_still_mixes_epochs() -> None:
    """Grouped batches are nearly even in length, and each epoch puts other rows together."""
    lengths = [5 + derive_seed(1, "length", row) % 200 for row in range(400)]

    def padded(*, group: bool) -> int:
        cut = batches(0, 0, lengths, 8, group=group)
        return sum(len(batch) * max(lengths[row] for row in batch) for batch in cut)

    assert padded(group=True) < 1.15 * sum(lengths)
    assert padded(group=False) > 1.5 * sum(lengths)
    assert set(batches(0, 0, lengths, 8, group=True)) != set(batches(0, 1, lengths, 8, group=True))


def test_the_order_never_changes() -> None:
    """The order is part of every checkpoint's meaning: these values may not change, ever."""
    assert batches(0, 0, [3, 1, 2, 5, 4], 2, group=False) == FIRST_EPOCH
    assert batches(0, 1, [3, 1, 2, 5, 4], 2, group=True) == SECOND_EPOCH
    assert derive_seed(7, "dropout", 3, 1) == DROPOUT_SEED


@pytest.mark.parametrize(
    ("name", "schedule"), [("linear", LrScheduleKind.LINEAR), ("cosine", LrScheduleKind.COSINE)]
)
@pytest.mark.parametrize("warmup", [0, 7])
def test_rates_are_those_of_transformers(name: str, schedule: LrScheduleKind, warmup: int) -> None:
    """The learning rate of every step equals that of the scheduler of transformers."""
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
    theirs = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=50)
    lr_schedule = LrSchedule(peak=3e-4, steps=50, warmup=warmup, schedule=schedule)
    for step in range(50):
        assert lr_schedule.lr(step) == pytest.approx(
            optimizer.param_groups[0]["lr"], rel=1e-12, abs=0
        )
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize(
    ("table", "steps", "warmup"),
    [
        (TrainTable(steps=7, batch_size=4), 7, 0),
        (TrainTable(batch_size=4), 5, 0),
        (TrainTable(epochs=2.5, batch_size=4), 13, 0),
        (TrainTable(epochs=0.01, batch_size=4), 1, 0),
        (TrainTable(steps=100, warmup=0.1), 100, 10),
        (TrainTable(steps=100, warmup=3), 100, 3),
    ],
)
def test_lengths_of_runs(table: TrainTable, steps: int, warmup: int) -> None:
    """Steps, epochs (also broken ones) and warm-up, given or as a share, mean what they say."""
    schedule = make_schedule(table, [1] * 20)

    assert (schedule.steps, schedule.lr_schedule.warmup) == (steps, warmup)


FIRST_EPOCH = ((1, 3), (4, 2), (0,))
SECOND_EPOCH = ((4, 1), (3, 0), (2,))
DROPOUT_SEED = 12562263815675398868
