"""The timeline of a run has the hours and dollars of the receipt, activity by activity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fakecloud import Story
from support.recorded import RECORDED

from commands.runs.planning.actual import Measured
from commands.runs.timeline import NEEDS_COMPUTE, TimelineSpan, timeline_of
from infra.offer import Offer
from infra.provider import Vm
from infra.run.budget import bill
from infra.run.fold import fold
from infra.run.journal import Event, Kind, read
from infra.run.plan import Goal, RunPlan

OFFER = Offer(
    provider="fake", region="a", size="small", spot_usd_per_h=0.20, idle_usd_per_h=0.02
)  # fmt: skip
VM = Vm(
    provider="fake",
    run_id="run-1",
    id="vm1",
    region="a",
    size="small",
    generation=1,
    price_usd_per_h=0.20,
)
MEASURED = Measured(train_s=1000.0, steps=100, before_s=60.0, after_s=40.0)
DATA: dict[Kind, dict[str, Any]] = {
    Kind.RUN_STARTED: {"run_id": "run-1", "name": "run"},
    Kind.RUN_RESUMED: {"changed": False},
    Kind.CREATE_INTENDED: {"generation": 1, "offer": asdict(OFFER)},
    Kind.CREATE_ACCEPTED: {"vm": asdict(VM)},
    Kind.CREATE_FAILED: {"error": "NoCapacity", "message": "none"},
    Kind.START_FAILED: {"error": "NoCapacity", "message": "none"},
    Kind.RUNNING_SEEN: {"since_s": None},
    Kind.ADDRESS_SEEN: {"host": "10.0.0.1", "port": 22, "metadata_url": ""},
    Kind.STOP_SEEN: {
        "power": "deallocated",
        "reason": "evicted",
        "detail": "",
        "step": 50,
        "ran": True,
    },
    Kind.STOP_EXPLAINED: {"reason": "evicted", "detail": "", "since_s": None},
    Kind.PRICE_SEEN: {"usd_per_h": 0.3},
    Kind.HOST_KEY_INTENDED: {"public_key": "ssh-ed25519 BBBB"},
    Kind.HOST_KEY_CHANGED: {"public_key": "ssh-ed25519 BBBB"},
    Kind.HOST_KEY_KEPT: {"reason": "no sudo"},
    Kind.PREPARED: {"sent_s": 100.0},
    Kind.SAFEGUARDS_SET: {"until_s": 1e9, "holding": []},
    Kind.PROGRESS: {"step": 14, "steps": 100},
    Kind.CHECKPOINT_HOME: {"step": 10},
    Kind.EVICT_INTENDED: {"step": 20},
    Kind.EVICT_REQUESTED: {"step": 20},
    Kind.TRAINER_EXITED: {"crash": True, "step": 20, "exit_code": 1},
    Kind.TRAINER_HUNG: {"step": 20, "reason": "silent"},
    Kind.MACHINE_UNREACHABLE: {"reason": "silent"},
    Kind.FETCHED: {"path": "out"},
    Kind.DEALLOCATE_INTENDED: {"reason": "done"},
    Kind.DEALLOCATED: {"reason": "done", "until_s": None},
    Kind.DELETE_INTENDED: {"reason": "done"},
    Kind.DELETED: {"removed": []},
    Kind.RUN_ENDED: {"code": 0, "reason": "done"},
}
DAY_S = 86400.0


def journal(*lines: tuple[float, Kind] | tuple[float, Kind, dict[str, Any]]) -> list[Event]:
    """Events at these seconds, with what is usual in their data and what is given beside it."""
    return [
        Event(
            number=at,
            at_s=line[0],
            kind=line[1],
            data={**DATA.get(line[1], {}), **(line[2] if len(line) > 2 else {})},
        )
        for at, line in enumerate(lines, 1)
    ]


FIRST_BOOT: tuple[Any, ...] = (
    (0.0, Kind.RUN_STARTED),
    (10.0, Kind.CREATE_INTENDED),
    (100.0, Kind.CREATE_ACCEPTED),
    (150.0, Kind.RUNNING_SEEN),
    (190.0, Kind.SAFEGUARDS_SET),
    (500.0, Kind.PREPARED),
    (502.0, Kind.LAUNCHED),
    (802.0, Kind.PROGRESS),
)
ENDING: tuple[Any, ...] = (
    (3000.0, Kind.TRAINED),
    (3040.0, Kind.FETCHED),
    (3045.0, Kind.DELETE_INTENDED),
    (3100.0, Kind.DELETED),
    (3100.0, Kind.RUN_ENDED),
)


def boot_again(at_s: float) -> tuple[Any, ...]:
    """The start of a machine that was evicted, until its trainer works again."""
    return (
        (at_s, Kind.START_INTENDED),
        (at_s + 10, Kind.START_ACCEPTED),
        (at_s + 30, Kind.RUNNING_SEEN),
        (at_s + 60, Kind.PREPARED, {"sent_s": 5.0}),
        (at_s + 62, Kind.LAUNCHED),
    )


def acts(spans: Sequence[TimelineSpan]) -> list[tuple[str, float]]:
    """The activities in order, with their seconds."""
    return [(str(one.activity), round(one.end_s - one.begin_s, 3)) for one in spans]


def check_sums(events: Sequence[Event], spans: Sequence[TimelineSpan], until_s: float) -> None:
    """Assert that hours and dollars are those of the bill, and no span is impossible."""
    used = bill(fold(events), until_s)
    assert sum(one.hours for one in spans if one.compute) == pytest.approx(used.compute_h)
    assert sum(one.usd for one in spans) == pytest.approx(used.usd)
    for one in spans:
        assert one.end_s > one.begin_s
        assert one.usd >= 0
        assert one.compute or one.activity not in NEEDS_COMPUTE


def test_an_undisturbed_run_is_shown_from_the_request_to_the_release() -> None:
    """Each activity begins where the one before it ends; loading and scores are cut from work."""
    events = journal(*FIRST_BOOT, *ENDING)
    spans = timeline_of(events, MEASURED)

    assert acts(spans) == [
        ("wait", 10.0),
        ("rent", 180.0),
        ("set-up", 210.0),
        ("send", 100.0),
        ("set-up", 2.0),
        ("load", 300.0 - 60.0 - 140.0),  # until step 14, of ten seconds each
        ("score", 60.0),
        ("train", 2498.0 - 100.0 - 60.0 - 40.0),
        ("score", 40.0),
        ("fetch", 40.0),
        ("release", 60.0),
    ]
    assert [one.begin_s for one in spans[1:]] == [one.end_s for one in spans[:-1]]
    assert {one.machine for one in spans[1:]} == {1}
    check_sums(events, spans, 3100.0)


def test_three_evictions_are_each_shown_with_the_boot_after_them() -> None:
    """Down, rented again, set up, loaded: three times, and the disk bills while it is down."""
    lines = list(FIRST_BOOT)
    for at_s in (1000.0, 1500.0, 2000.0):
        step = int(at_s / 50)
        lines.append((at_s - 10, Kind.PROGRESS, {"step": step}))
        lines += [(at_s, Kind.STOP_SEEN), *boot_again(at_s + 20)]
        lines.append((at_s + 180, Kind.PROGRESS, {"step": step + 2}))
    events = journal(*lines, *ENDING)
    spans = timeline_of(events, MEASURED)

    down = [one for one in spans if one.activity == "evicted"]
    assert [one.end_s - one.begin_s for one in down] == [20.0] * 3
    assert [one.usd for one in down] == pytest.approx([20.0 / 3600 * 0.02] * 3)
    loads = [seconds for activity, seconds in acts(spans) if activity == "load"]
    assert loads == [100.0] + [98.0 - 20.0] * 3
    check_sums(events, spans, 3100.0)


def test_a_run_that_was_put_down_and_resumed_days_later_shows_the_days_between() -> None:
    """After `qft down` only the disk bills, until the run is asked for again."""
    events = journal(
        *FIRST_BOOT,
        (1000.0, Kind.DEALLOCATE_INTENDED, {"reason": "qft down"}),
        (1030.0, Kind.DEALLOCATED, {"reason": "qft down"}),
        (1031.0, Kind.RUN_ENDED, {"code": 130, "reason": "qft down"}),
        (3 * DAY_S, Kind.RUN_RESUMED),
        *boot_again(3 * DAY_S + 5),
        *((3 * DAY_S + at, *rest) for at, *rest in ENDING),
    )
    spans = timeline_of(events, MEASURED)

    between = next(one for one in spans if one.activity == "released")
    assert (between.begin_s, between.end_s) == (1030.0, 3 * DAY_S)
    assert between.usd == pytest.approx((3 * DAY_S - 1030.0) / 3600 * 0.02)
    assert not between.compute
    check_sums(events, spans, events[-1].at_s)


def test_a_stop_is_what_the_log_of_the_provider_calls_it_in_the_end() -> None:
    """What was taken for an eviction and was a person's order is shown as a stop."""
    stop = {"certain": False, "reason": "evicted"}
    lines = (*FIRST_BOOT, (1000.0, Kind.STOP_SEEN, stop))
    guessed = journal(*lines, (1300.0, Kind.RUN_ENDED))
    explained = journal(
        *lines, (1200.0, Kind.STOP_EXPLAINED, {"reason": "user"}), (1300.0, Kind.RUN_ENDED)
    )

    assert acts(timeline_of(guessed, MEASURED))[-1] == ("evicted", 300.0)
    assert acts(timeline_of(explained, MEASURED))[-1] == ("stopped", 300.0)


def test_a_run_under_way_is_shown_until_now() -> None:
    """With `until_s` the last activity, and what it costs, go on after the last event."""
    events = journal(*FIRST_BOOT[:-1])
    spans = timeline_of(events, Measured(), until_s=700.0)

    assert acts(spans)[-1] == ("load", 198.0)
    check_sums(events, spans, 700.0)


def test_a_machine_of_ones_own_has_no_dollars() -> None:
    """What is taken into use and not rented has hours, and costs nothing."""
    free = {"offer": asdict(OFFER) | {"spot_usd_per_h": 0.0, "idle_usd_per_h": 0.0}}
    vm = {"vm": asdict(VM) | {"provider": "ssh", "price_usd_per_h": 0.0}}
    lines = list(FIRST_BOOT)
    lines[1:3] = [(10.0, Kind.CREATE_INTENDED, free), (100.0, Kind.CREATE_ACCEPTED, vm)]
    spans = timeline_of(journal(*lines, *ENDING), MEASURED)

    assert sum(one.usd for one in spans) == 0.0
    assert sum(one.hours for one in spans if one.compute) * 3600 == pytest.approx(3090.0)


def test_without_events_there_is_no_timeline() -> None:
    """A run that never began has nothing to show."""
    assert timeline_of([], MEASURED) == []


JOURNALS = sorted(RECORDED.glob("*/journals/*.jsonl"))


@pytest.mark.parametrize("path", JOURNALS, ids=lambda path: path.stem)
@pytest.mark.parametrize("claimed_s", [0.0, 1e8])
def test_recorded_journals_add_up_at_every_event(path: Path, claimed_s: float) -> None:
    """Every prefix of what earlier versions wrote has the bill's hours and dollars."""
    events = read(path)
    measured = Measured(train_s=claimed_s, steps=10, before_s=claimed_s, after_s=claimed_s)
    for count in range(1, len(events) + 1):
        until_s = events[count - 1].at_s
        check_sums(events[:count], timeline_of(events[:count], measured), until_s)


def test_a_driven_run_with_evictions_adds_up(tmp_path: Path) -> None:
    """What the supervisor itself writes through rehearsed evictions has the bill's sums."""
    path = tmp_path / "journal.jsonl"
    story = Story(path=path, plan=RunPlan(goal=Goal.RUN, rehearse_evictions=(20, 40)))
    story.between = lambda: story.world.sleep(3.0)  # else it is all done in no time
    story.go()
    events = read(path)
    spans = timeline_of(events, MEASURED)

    assert [str(one.activity) for one in spans].count("evicted") == fold(events).evictions == 2
    check_sums(events, spans, events[-1].at_s)


@settings(max_examples=150)
@given(data=st.data())
def test_random_journals_add_up(data: st.DataObject) -> None:
    """Whatever events follow one another, and however the clock jumps, the sums are the bill's."""
    count = data.draw(st.integers(1, 25))
    gaps = st.floats(-50.0, 2000.0)
    at_s = 1e6
    lines: list[tuple[float, Kind, dict[str, Any]]] = [(at_s, Kind.RUN_STARTED, {})]
    for _ in range(count):
        at_s += data.draw(gaps)
        kind = data.draw(st.sampled_from(sorted(Kind)))
        more: dict[str, Any] = {}
        if kind in {Kind.STOP_SEEN, Kind.STOP_EXPLAINED, Kind.RUNNING_SEEN}:
            more["since_s"] = data.draw(st.none() | st.floats(at_s - 500.0, at_s + 50.0))
        if kind is Kind.STOP_SEEN:
            more["power"] = data.draw(st.sampled_from(["deallocated", "gone", "failed"]))
            more["reason"] = data.draw(st.sampled_from(["evicted", "user", "unknown", "price"]))
            more["certain"] = data.draw(st.booleans())
            more["ran"] = data.draw(st.booleans())
        lines.append((at_s, kind, more))
    events = journal(*lines)
    until_s = events[-1].at_s + data.draw(st.floats(0.0, 1e5))

    check_sums(events, timeline_of(events, MEASURED), events[-1].at_s)
    check_sums(events, timeline_of(events, MEASURED, until_s=until_s), until_s)
