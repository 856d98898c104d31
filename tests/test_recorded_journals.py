"""Journals that earlier commits wrote are read by this one, and it writes every field they have."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.fakecloud import Story
from support.recorded import COMMITS, RECORDED, read
from support.runs import Project, json_of

from infra.run.fold import fold
from infra.run.journal import JournalDamaged
from infra.run.journal import read as read_journal
from infra.run.plan import Goal, RunPlan

ENVELOPE = {"v", "n", "at", "kind"}
FOR_PEOPLE = {
    "create_failed.hint",
    "deallocate_intended.reason",
    "deallocated.reason",
    "delete_intended.reason",
    "deleted.removed",
    "machine_unreachable.reason",
    "start_failed.hint",
    "stop_explained.detail",
    "stop_seen.detail",
    "stop_seen.step",
    "trainer_exited.exit_code",
    "trainer_hung.reason",
}
"""Fields that no decision on these runs rests on: messages, reports and receipts tell them."""
OF_REFUSALS = {"stop_seen.ran", "stop_seen.refused"}
"""Fields that only decide where an order was refused late, which no recorded run saw."""


def journals(commit: str) -> list[Path]:
    """Return every journal that was recorded under `commit`."""
    return sorted((RECORDED / commit / "journals").glob("*.jsonl"))


def fields_by_kind(paths: list[Path]) -> dict[str, set[str]]:
    """Return the fields that the events of each kind have in these journals."""
    found = defaultdict[str, set[str]](set)
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines():
            event = json.loads(line)
            found[event["kind"]] |= event.keys() - ENVELOPE
    return dict(found)


@pytest.mark.parametrize("commit", COMMITS)
def test_recorded_journals_list_as_they_did(tmp_path: Path, commit: str) -> None:
    """`qft ls` says of every recorded run what it said when the run was recorded."""
    project = Project(folder=tmp_path)
    for path in journals(commit):
        run = project.home / "runs" / path.stem
        run.mkdir(parents=True)
        (run / "journal.jsonl").write_bytes(path.read_bytes())

    now = json_of(project.qft("ls", "--json"))

    recorded = read(RECORDED / commit / "ls.json")
    for line in now:
        if line["usd_per_h_now"]:
            del line["usd"]  # it bills until today
    for line in (*now, *recorded):  # words for people, but for the one of a run that is over
        line["state"] = line["state"] == "done"
    assert now == recorded


@pytest.mark.parametrize("commit", COMMITS)
def test_every_recorded_field_is_read(tmp_path: Path, commit: str) -> None:
    """With another value in a field, or without it, the journal folds to another state, or not."""
    unread = {
        f"{kind}.{field}"
        for kind, fields in fields_by_kind(journals(commit)).items()
        for field in fields
    }
    for path in journals(commit):
        state = fold(read_journal(path))
        for name in sorted(unread):
            if any(reported != state for reported in retold(path, name, tmp_path)):
                unread.discard(name)

    assert unread <= FOR_PEOPLE | OF_REFUSALS


def retold(path: Path, name: str, tmp_path: Path) -> Iterator[object]:
    """Give what a journal folds to with another value in one field, and without the field."""
    kind, _, field = name.partition(".")
    lines = path.read_text(encoding="utf-8").splitlines()
    copy = tmp_path / "copy.jsonl"
    for change in (other, None):
        events = [json.loads(line) for line in lines]
        for event in events:
            if event["kind"] == kind and field in event:
                value = event.pop(field)
                event.update({} if change is None else {field: change(value)})
        copy.write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
        try:
            yield fold(read_journal(copy))
        except JournalDamaged as error:
            yield str(error)


def other(value: object) -> object:
    """Return another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return ["another"] if isinstance(value, list) else "another"


@pytest.mark.parametrize("commit", COMMITS)
def test_every_recorded_field_is_still_written(tmp_path: Path, commit: str) -> None:
    """Runs through evictions, refusals, silences and crashes write the fields that were recorded.

    So a journal of today tells an earlier commit all that it looks for.
    """
    recorded = fields_by_kind(journals(commit))

    written = fields_by_kind(reported_today(tmp_path))

    missing = {kind: recorded[kind] - written[kind] for kind in recorded if kind in written}
    assert {kind: fields for kind, fields in missing.items() if fields} == {}
    assert recorded.keys() - written.keys() <= NOT_PLAYED


NOT_PLAYED = {"guarded", "price_seen", "stop_explained"}
"""Kinds for which the cloud of plain values has no reason; the tags' tests write them."""


def reported_today(folder: Path) -> list[Path]:
    """Let a cloud of plain values do to runs what clouds do; return the journals of it."""
    evicted, full, mute, hung, crashed = (
        Story(path=folder / f"{name}.jsonl")
        for name in ("evicted", "full", "mute", "hung", "crashed")
    )
    evicted.plan = RunPlan(goal=Goal.RUN, rehearse_evictions=(25,))
    evicted.between = lambda: evicted.cloud.full.add("a") if "evict" in evicted.cloud.log else None
    full.cloud.no_quota = {"a", "b"}
    mute.work.mute = True
    hung.cloud.hung = True
    crashed.work.exit_codes = [70]
    stories = (evicted, full, mute, hung, crashed)
    for story in stories:
        story.go()
    full.go()  # a person asks again
    released = Story(path=folder / "released.jsonl", plan=RunPlan(goal=Goal.UP))
    released.go()
    return [story.path for story in (*stories, released)]


def test_the_recorded_journals_hold_every_kind() -> None:
    """All thirty kinds of the older commit were recorded, and the one that came after it."""
    counts: dict[str, Any] = {commit: fields_by_kind(journals(commit)) for commit in COMMITS}

    assert len(counts["0b0e751"]) == 30
    assert counts["3323cf2"].keys() - counts["0b0e751"].keys() == {"running_seen"}
