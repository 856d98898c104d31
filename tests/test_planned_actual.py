"""What a run took is added up by the parts of its plan, and stands beside it in the receipt."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from support.fakecloud import Story
from support.recorded import INTERRUPTED, RECORDED

from commands.runs.home import RunFolder, run_folder
from commands.runs.measured import read_measured
from commands.runs.planning.actual import PARTS, Actual, Measured, actual_of
from commands.runs.planning.comparison import Comparison
from commands.runs.planning.planned import Planned, write_planned
from commands.runs.receipt import make_receipt
from infra.offer import Offer
from infra.provider import Vm
from infra.run.budget import bill
from infra.run.fold import fold
from infra.run.journal import Event, Kind, read
from infra.run.plan import Goal, RunPlan
from trainer.estimate.span import Span

OFFER = Offer(
    provider="fake", region="a", size="small", spot_usd_per_h=0.20, idle_usd_per_h=0.02
)  # fmt: skip
VM = Vm(provider="fake", run_id="run-1", id="vm1", region="a", size="small", generation=1)
MEASURED = Measured(train_s=1000.0, steps=100, redone_steps=5, before_s=60.0, after_s=40.0)
PLANNED = Planned(
    at_s=1.0,
    card="T4",
    place="small in a",
    usd_per_h=0.20,
    memory_bytes=Span(low=6e9, likely=7e9, high=8e9),
    hours={"train": Span(low=1.0, likely=2.0, high=4.0), "rent": Span.exactly(0.1)},
    usd={"compute": Span.within_factor(0.4, 2.0), "disk": Span.exactly(0.04)},
)
JOURNALS = sorted(RECORDED.glob("*/journals/*.jsonl"))


def journal(*lines: tuple[float, Kind] | tuple[float, Kind, dict[str, Any]]) -> list[Event]:
    """Events at these seconds, each with its data."""
    return [
        Event(number=at, at_s=line[0], kind=line[1], data=line[2] if len(line) > 2 else {})
        for at, line in enumerate(lines, 1)
    ]


STARTED = {"run_id": "run-1", "name": "run"}
CREATE = {"generation": 1, "offer": asdict(OFFER)}
STOPPED = {"power": "deallocated", "reason": "evicted", "detail": "", "step": 50, "ran": True}
FIRST_BOOT: tuple[Any, ...] = (
    (0.0, Kind.RUN_STARTED, STARTED),
    (10.0, Kind.CREATE_INTENDED, CREATE),
    (100.0, Kind.CREATE_ACCEPTED, {"vm": asdict(VM)}),
    (150.0, Kind.RUNNING_SEEN, {"since_s": None}),
    (190.0, Kind.SAFEGUARDS_SET, {"until_s": 1e5, "holding": []}),
    (500.0, Kind.PREPARED, {"sent_s": 100.0}),
    (502.0, Kind.LAUNCHED),
)
ENDING: tuple[Any, ...] = (
    (3000.0, Kind.TRAINED),
    (3040.0, Kind.FETCHED, {"path": "out"}),
    (3045.0, Kind.DELETE_INTENDED, {"reason": "home"}),
    (3100.0, Kind.DELETED, {"removed": []}),
    (3100.0, Kind.RUN_ENDED, {"code": 0, "reason": "done"}),
)


def seconds_of(actual: Actual) -> dict[str, float]:
    """The parts in seconds."""
    return {part: round(hours * 3600, 3) for part, hours in actual.hours.items()}


def test_an_undisturbed_run_is_divided_into_its_parts() -> None:
    """Renting lasts until the machine answers, sending is apart from set-up, loading from steps."""
    events = journal(*FIRST_BOOT, (802.0, Kind.PROGRESS, {"step": 14, "steps": 100}), *ENDING)
    actual = actual_of(events, Measured(train_s=1000.0, steps=100, before_s=60.0, after_s=40.0))

    assert seconds_of(actual) == {
        "rent": 190.0,
        "set-up": 212.0,
        "send": 100.0,
        "load": 300.0 - 60.0 - 140.0,  # until step 14, of ten seconds each
        "score before": 60.0,
        "train": 2498.0 - 100.0 - 100.0,
        "score after": 40.0,
        "fetch": 40.0,
        "release": 60.0,
    }
    assert actual.total_h * 3600 == pytest.approx(3100.0)
    assert actual.usd == pytest.approx({"compute": 0.2 * 3090 / 3600, "disk": 0.02 * 3090 / 3600})


def test_an_eviction_counts_until_the_trainer_works_again_with_what_it_redoes() -> None:
    """Down time, new set-up, new loading and redone steps are the evictions' part."""
    events = journal(
        *FIRST_BOOT,
        (802.0, Kind.PROGRESS, {"step": 14, "steps": 100}),
        (1200.0, Kind.STOP_SEEN, STOPPED),
        (1210.0, Kind.START_INTENDED),
        (1220.0, Kind.START_ACCEPTED),
        (1230.0, Kind.RUNNING_SEEN, {"since_s": None}),
        (1400.0, Kind.PREPARED, {"sent_s": 5.0}),
        (1402.0, Kind.LAUNCHED),
        (1502.0, Kind.PROGRESS, {"step": 16, "steps": 100}),
        *ENDING,
    )
    seconds = seconds_of(actual_of(events, MEASURED))

    reload_s, redone_s = 100.0 - 2 * 10.0, 5 * 10.0
    assert seconds["evictions"] == 202.0 + reload_s + redone_s
    assert (seconds["rent"], seconds["set-up"], seconds["send"]) == (190.0, 212.0, 100.0)
    assert sum(seconds.values()) == pytest.approx(3100.0)


def test_a_night_between_two_commands_is_no_part_of_a_run() -> None:
    """Hours after the end of a command do not count, unless the trainer worked in them."""
    ended = (600.0, Kind.RUN_ENDED, {"code": 0, "reason": "up"})
    late: tuple[Any, ...] = tuple((at + 36000.0, *rest) for at, *rest in ENDING)
    worked = journal(*FIRST_BOOT, (38000.0, Kind.RUN_RESUMED, {"changed": False}), *late)
    idle = journal(*FIRST_BOOT[:-1], ended, (36000.0, Kind.RUN_RESUMED, {"changed": False}))

    assert seconds_of(actual_of(worked, Measured()))["train"] == 39000.0 - 502.0
    assert sum(seconds_of(actual_of(idle, Measured())).values()) == 600.0


@pytest.mark.parametrize("path", JOURNALS, ids=lambda path: path.stem)
@pytest.mark.parametrize("lie_s", [0.0, 1e8])
def test_parts_never_add_up_to_more_than_the_journal_has(path: Path, lie_s: float) -> None:
    """Whatever a machine claims, hours are those between the events, dollars those of the bill."""
    events = read(path)
    lie = Measured(train_s=lie_s, steps=10, redone_steps=10**6, before_s=lie_s, after_s=lie_s)
    actual = actual_of(events, lie)

    span_s = events[-1].at_s - events[0].at_s
    assert actual.total_h * 3600 <= span_s + 1e-6
    assert actual.total_usd == pytest.approx(bill(fold(events), events[-1].at_s).usd)
    assert set(actual.hours) <= set(PARTS)
    assert all(hours > 0 for hours in actual.hours.values())


def test_every_prefix_of_a_journal_can_be_added_up() -> None:
    """A run that is under way, or was killed anywhere, has hours and dollars until then."""
    events = read(max(JOURNALS, key=lambda path: len(read(path)) * ("azure" in path.name)))
    totals = [actual_of(events[:count], MEASURED).total_h for count in range(len(events) + 1)]

    assert totals[0] == 0.0
    assert totals == sorted(totals)


def test_a_run_that_is_driven_and_evicted_has_all_of_its_time_in_parts(tmp_path: Path) -> None:
    """The supervisor's own journal, with a rehearsed eviction, leaves no second without a part."""
    story = Story(path=tmp_path / "journal.jsonl", plan=RunPlan(goal=Goal.RUN))
    story.plan = RunPlan(goal=Goal.RUN, rehearse_evictions=(20,))
    story.go()
    events = read(story.path)
    actual = actual_of(events, Measured(train_s=50.0, steps=50))

    assert fold(events).evictions == 1
    assert actual.total_h * 3600 == pytest.approx(events[-1].at_s - events[0].at_s)
    assert actual.hours["train"] > 0


def test_what_came_home_is_read_as_a_machines_word(tmp_path: Path) -> None:
    """Seconds and bytes that are none are left out, as is the log after a torn line."""
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "seconds": 2.5}\n{"step": 2, "seconds": "long"}\n{"step": 3, "sec'
    )
    (tmp_path / "eval-before.json").write_text('{"seconds": -4}')
    (tmp_path / "memory.json").write_text('{"reserved_bytes": 6.3e9, "allocated_bytes": 5e9}')
    found = read_measured(tmp_path, redone_steps=3)
    (tmp_path / "memory.json").write_text('{"reserved_bytes": null, "allocated_bytes": 5e9}')

    assert found == Measured(train_s=2.5, steps=2, redone_steps=3, memory_bytes=6.3e9)
    assert read_measured(tmp_path, redone_steps=0).memory_bytes == 5e9
    assert read_measured(tmp_path / "nowhere", redone_steps=0) == Measured()


def test_rows_have_planned_and_real_figures_in_units_that_read_well() -> None:
    """Hours, dollars and memory each have the likely figure, its range, and what it became."""
    actual = Actual(memory_bytes=6.3e9, hours={"train": 1.8, "fetch": 0.05}, usd={"compute": 0.37})

    assert Comparison(planned=PLANNED, actual=actual).lines() == [
        ("memory", "planned 7.0 GB (6.0 to 8.0), real 6.3 GB"),
        ("hours", "planned 2.1 h (1.1 to 4.1), real 1.9 h"),
        ("dollars", "planned $0.44 ($0.24 to $0.84), real $0.37"),
    ]


def test_runs_of_seconds_are_compared_in_seconds() -> None:
    """A rehearsal of a minute says more than that both were under an hour."""
    planned = replace(PLANNED, hours={"train": Span.within_factor(20 / 3600, 2.0)})
    rows = dict(Comparison(planned=planned, actual=Actual(hours={"train": 31 / 3600})).lines())

    assert rows["hours"] == "planned 20 s (10 to 40), real 31 s"


def test_what_was_not_planned_or_not_measured_is_not_invented() -> None:
    """A plan without memory has no row for it, and a run without a measurement says so."""
    bare = Planned(
        at_s=1.0, card="", place="", usd_per_h=None, memory_bytes=None, hours={}, usd={}
    )  # fmt: skip

    assert Comparison(planned=bare, actual=Actual(memory_bytes=1e9)).lines() == []
    rows = dict(Comparison(planned=PLANNED, actual=Actual()).lines())
    assert rows["memory"].endswith("(6.0 to 8.0), not measured")


def planned_run(tmp_path: Path, *, plan: bool) -> tuple[RunFolder, Path]:
    """The interrupted recorded run, with or without a plan."""
    folder = run_folder(tmp_path, "recorded")
    folder.root.mkdir(parents=True)
    recorded = INTERRUPTED / "home" / "runs" / "recorded"
    for path in (folder.journal, folder.config):
        path.write_bytes((recorded / path.name).read_bytes())
    if plan:
        write_planned(folder, PLANNED)
    return folder, tmp_path / "out"


def test_the_receipt_of_a_run_with_a_plan_has_both(tmp_path: Path) -> None:
    """Receipt and `--json` hold plan, reality and each part; all that was there stays as it was."""
    before = make_receipt(*planned_run(tmp_path / "old", plan=False), simulated=True)
    after = make_receipt(*planned_run(tmp_path / "new", plan=True), simulated=True)

    printed = json.loads(json.dumps(after.to_json()))
    assert {key: printed[key] for key in before.to_json()} == before.to_json()
    assert set(printed) - set(before.to_json()) == {"planned", "actual", "job_parts"}
    assert printed["planned"]["hours"] == PLANNED.to_json()["hours"]
    assert printed["actual"]["total_usd"] == pytest.approx(after.usd)
    train = next(part for part in printed["job_parts"] if part["part"] == "train")
    assert train["planned_hours"]["likely"] == 2.0
    assert train["actual_hours"] > 0
    rows = dict(after.lines())
    assert rows["hours"].startswith("planned 2.1 h (1.1 to 4.1), real ")
    assert rows["dollars"].endswith(", simulated")


def test_the_receipt_of_a_run_without_a_plan_is_the_old_one(tmp_path: Path) -> None:
    """A run from before plans were kept says nothing about one."""
    receipt = make_receipt(*planned_run(tmp_path, plan=False), simulated=True)

    assert not {"planned", "actual", "job_parts", "comparison"} & set(receipt.to_json())
    assert not {"memory", "hours", "dollars"} & {word for word, _ in receipt.lines()}
