"""The tables of docs/scale.md are computed, by formulas that hold at their ends."""

from __future__ import annotations

from itertools import pairwise

import pytest
from support.scale_tables import (
    BATCH,
    JOBS,
    LINKS,
    PAGE,
    STEPS,
    WORLDS,
    Job,
    limits_table,
    ordered_bytes,
    ring_bytes,
    written,
)


def job(name: str) -> Job:
    """Return the job of that name."""
    return next(one for one in JOBS if one.name == name)


def test_the_page_on_several_cards_has_the_tables_of_the_program() -> None:
    """Every figure of docs/scale.md is computed; `make scale` writes them anew."""
    page = PAGE.read_text(encoding="utf-8")

    assert written(page) == page


@pytest.mark.parametrize("world", WORLDS)
def test_one_micro_batch_a_rank_costs_what_a_ring_costs(world: int) -> None:
    """With k = 1 the ordered exchange sends as many bytes as a ring all-reduce, and more else."""
    assert ordered_bytes(1e6, world, 1) == ring_bytes(1e6, world)
    assert ordered_bytes(1e6, world, 4) == 2.5 * ring_bytes(1e6, world)


@pytest.mark.parametrize(
    ("name", "megabytes"), [("7B r 16", 159.9), ("7B r 64", 639.6), ("70B r 16", 828.4)]
)
def test_a_gradient_has_the_bytes_of_its_adapter(name: str, megabytes: float) -> None:
    """G is four bytes for each number of A and B at all linear layers of Llama 2."""
    assert job(name).gradient_bytes / 1e6 == pytest.approx(megabytes, abs=0.1)


@pytest.mark.parametrize("one", JOBS, ids=lambda one: one.name)
@pytest.mark.parametrize("link", LINKS)
def test_more_cards_are_faster_and_never_cheaper(one: Job, link: str) -> None:
    """Each doubling of the cards shortens a step, by less than half, so that it costs more."""
    speed = LINKS[link]
    worlds = (1, *WORLDS)

    assert one.exchange_s(1, speed) == 0
    for fewer, more in pairwise(worlds):
        assert one.step_s(more, speed) < one.step_s(fewer, speed)
        assert one.usd(more, speed) > one.usd(fewer, speed)
    assert one.usd(1, speed) == pytest.approx(one.usd(1, 1e9))
    assert one.passes(64) * 64 == BATCH
    assert STEPS == 1000


def test_the_limits_follow_from_the_time_of_a_micro_batch() -> None:
    """Within a machine one row a micro-batch is enough; the slowest link asks for more."""
    rows = [line.strip("| ").split(" | ") for line in limits_table()[2:]]

    assert {row[1] for row in rows} == {"1"}
    assert [row[-1] for row in rows] == ["1", "8", "8"]
