"""The hours of a plan are corrected during the run by what its journal and its trainer say."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from support.recorded import RECORDED, RUN, lay_out

from commands.runs.home import run_folder
from commands.runs.planning.corrected import Corrected, corrected_hours, stage_of
from commands.runs.planning.planned import Planned, write_planned
from commands.status import status
from infra.offer import Offer
from infra.provider import Vm
from infra.run.fold import fold
from infra.run.heartbeat import Heartbeat
from infra.run.journal import Event, Kind, read
from trainer.estimate.span import Span
from trainer.text import duration

HOUR_S = 3600.0
OFFER = Offer(provider="fake", region="a", size="small", spot_usd_per_h=0.2, idle_usd_per_h=0.02)
VM = Vm(provider="fake", run_id="run-1", id="vm1", region="a", size="small", generation=1)
PLANNED = {
    "rent": Span.within_factor(0.1, 2),
    "set-up": Span.within_factor(0.2, 2),
    "send": Span.within_factor(0.1, 2),
    "load": Span.within_factor(0.1, 2),
    "score before": Span.within_factor(0.2, 2),
    "train": Span.within_factor(5.0, 2),
    "evictions": Span.within_factor(0.5, 2),
    "score after": Span.within_factor(0.2, 2),
    "fetch": Span.within_factor(0.1, 2),
}
TOTAL_H = 6.5
BOOT: tuple[Any, ...] = (
    (0.0, Kind.RUN_STARTED, {"run_id": "run-1", "name": "run"}),
    (0.0, Kind.CREATE_INTENDED, {"generation": 1, "offer": asdict(OFFER)}),
    (100.0, Kind.CREATE_ACCEPTED, {"vm": asdict(VM)}),
    (150.0, Kind.RUNNING_SEEN, {"since_s": None}),
    (180.0, Kind.SAFEGUARDS_SET, {"until_s": 1e5, "holding": []}),
    (900.0, Kind.PREPARED, {"sent_s": 100.0}),
    (900.0, Kind.LAUNCHED),
)
STOPPED = {"power": "deallocated", "reason": "evicted", "detail": "", "step": 500, "ran": True}


def journal(*lines: Any) -> list[Event]:
    """Events at these seconds, each with its data."""
    return [
        Event(number=at, at_s=line[0], kind=line[1], data=line[2] if len(line) > 2 else {})
        for at, line in enumerate(lines, 1)
    ]


def corrected(events: list[Event], now_s: float, **heartbeat: Any) -> Corrected:
    """The plan above, corrected at this moment."""
    found = corrected_hours(PLANNED, events, now_s=now_s, heartbeat=Heartbeat(**heartbeat))
    assert found is not None
    return found


def test_a_run_that_has_just_begun_takes_what_was_planned() -> None:
    """Nothing was measured yet, so nothing is corrected."""
    found = corrected(journal(*BOOT[:2]), 0.0)

    assert found.expected_h == pytest.approx(TOTAL_H)
    assert found.planned.likely == pytest.approx(TOTAL_H)


def test_what_has_passed_counts_as_it_was_and_the_steps_as_the_trainer_says() -> None:
    """Half an hour until the training, four hours of steps left, and the end as planned."""
    events = journal(*BOOT, (1800.0, Kind.PROGRESS, {"step": 100, "steps": 1000}))
    found = corrected(events, 1800.0, phase="training", step=100, steps=1000, eta_s=4 * HOUR_S)

    # Of the evictions as much as of the training is left: four of five hours.
    assert found.left_h == pytest.approx(4 + 0.5 * 4 / 5 + 0.2 + 0.1)
    assert found.expected_h == pytest.approx(0.5 + found.left_h)
    assert found.line == "planned 6.5 h, now 5.2 h"


def test_a_slower_training_makes_the_plan_longer() -> None:
    """What the trainer measures moves the total by as much, in both directions."""
    events = journal(*BOOT, (1800.0, Kind.PROGRESS, {"step": 100, "steps": 1000}))
    fast, slow = (
        corrected(events, 1800.0, phase="training", step=100, steps=1000, eta_s=hours * HOUR_S)
        for hours in (5, 12)
    )

    assert slow.expected_h - fast.expected_h == pytest.approx(7.0)
    assert slow.expected_h > TOTAL_H


def test_without_a_word_of_the_trainer_its_steps_take_what_was_planned() -> None:
    """Half of the steps are left, so half of the planned training is."""
    events = journal(*BOOT, (9000.0, Kind.PROGRESS, {"step": 500, "steps": 1000}))
    found = corrected(events, 9000.0)

    assert found.left_h == pytest.approx(2.5 + 0.25 + 0.2 + 0.1)


def test_a_part_that_is_overdue_may_end_at_any_moment() -> None:
    """A set-up that takes thrice its plan adds what it took, and nothing is left of it."""
    early, late = (corrected(journal(*BOOT[:5]), seconds) for seconds in (600.0, 3000.0))

    assert early.left_h > late.left_h
    assert late.expected_h > early.expected_h
    assert late.left_h == pytest.approx(TOTAL_H - 0.1 - 0.2)


def test_an_eviction_adds_what_a_new_machine_takes() -> None:
    """The steps that were saved are kept; renting and loading come again."""
    events = journal(
        *BOOT,
        (9000.0, Kind.PROGRESS, {"step": 500, "steps": 1000}),
        (9100.0, Kind.STOP_SEEN, STOPPED),
    )
    before, after = corrected(events[:-1], 9100.0), corrected(events, 9100.0)

    assert stage_of(fold(events), Heartbeat()) == "evictions"
    assert after.expected_h - before.expected_h == pytest.approx(0.1 + 0.1)


def test_scoring_after_the_training_leaves_only_the_end() -> None:
    """The evaluating trainer with all steps done is at the last scoring, not at the first."""
    events = journal(*BOOT, (18000.0, Kind.PROGRESS, {"step": 1000, "steps": 1000}))
    first = corrected(journal(*BOOT), 1000.0, phase="evaluating", step=0, steps=1000)
    last = corrected(events, 18000.0, phase="evaluating", step=1000, steps=1000)

    assert last.left_h == pytest.approx(0.2 + 0.1)
    assert first.left_h > 5


def test_a_finished_run_took_what_it_took() -> None:
    """Nothing is left, however long ago it ended."""
    events = journal(
        *BOOT,
        (18000.0, Kind.TRAINED),
        (18100.0, Kind.FETCHED, {"path": "out"}),
        (18110.0, Kind.DELETE_INTENDED, {"reason": "home"}),
        (18200.0, Kind.DELETED, {"removed": []}),
        (18200.0, Kind.RUN_ENDED, {"code": 0, "reason": "done"}),
    )
    found = corrected(events, 1e6)

    assert found.left_h == 0
    assert found.expected_h == pytest.approx(18200 / HOUR_S)


def test_a_run_without_a_plan_or_without_a_journal_has_nothing_to_correct() -> None:
    """Runs from before plans were kept are shown as ever."""
    assert corrected_hours({}, journal(*BOOT), now_s=1.0) is None
    assert corrected_hours(PLANNED, [], now_s=1.0) is None


@pytest.mark.parametrize("path", sorted(RECORDED.glob("*/journals/*.jsonl")), ids=lambda p: p.stem)
def test_every_prefix_of_a_recorded_journal_has_sound_hours(path: Any) -> None:
    """At forty moments of a real run no hours are negative, and what is spent never shrinks."""
    events, spent_h = read(path), 0.0
    for count in range(1, len(events) + 1, max(1, len(events) // 40)):
        some = events[:count]
        found = corrected_hours(PLANNED, some, now_s=some[-1].at_s)

        assert found is not None
        assert found.left_h >= 0
        assert found.spent_h >= spent_h - 1e-9
        spent_h = found.spent_h


@pytest.mark.parametrize("has_plan", [True, False])
def test_status_shows_planned_hours_and_those_expected_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, has_plan: bool
) -> None:
    """`qft status` has a row of both, and JSON the figures; neither without a plan."""
    run = lay_out(tmp_path / "project", machine=False)
    monkeypatch.setenv("QFT_HOME", str(run.home))
    if has_plan:
        write_planned(
            run_folder(run.home, RUN),
            Planned(at_s=1.0, card="T4", place="", usd_per_h=None, memory_bytes=None,
                    hours=PLANNED, usd={}),
        )  # fmt: skip
    found = status(RUN)
    rows, values = dict(found.lines()), found.to_json()

    if has_plan:
        assert rows["hours"].startswith("planned 6.5 h, now ")
        assert rows["time left"] == duration(values["hours_left"] * HOUR_S)
        assert values["planned_hours"]["likely"] == pytest.approx(TOTAL_H)
        assert 0 < values["hours_left"] < values["expected_hours"]
    else:
        assert not {"hours", "time left"} & set(rows)
        assert values["planned_hours"] is values["expected_hours"] is values["hours_left"] is None
