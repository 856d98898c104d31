"""The journal is readable after a crash at any byte, and never silently wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fakecloud import Story

from commands.ui.errors import exit_of
from infra import errors
from infra.errors import ErrorKind
from infra.run.fold import fold
from infra.run.journal import Journal, JournalDamaged, Kind, Outcome, read
from infra.run.plan import Goal, RunPlan


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The journal of a whole run with an eviction."""
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    Story(path=path, plan=RunPlan(goal=Goal.RUN, rehearse_evictions=(20,))).go()
    return path.read_bytes()


@given(data=st.data())
def test_cut_at_any_byte_it_folds_to_what_was_acknowledged(
    data: st.DataObject, written: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A torn last line was never acknowledged, so it does not count and does no harm."""
    cut = data.draw(st.integers(min_value=0, max_value=len(written)))
    path = tmp_path_factory.mktemp("cut") / "journal.jsonl"
    path.write_bytes(written[:cut])
    whole = written[:cut].count(b"\n")
    rest = written[:cut].rpartition(b"\n")[2]
    complete = whole + (1 if rest and _parses(rest) else 0)

    events = read(path)

    assert len(events) == complete
    assert fold(events) == fold(events)


def test_it_goes_on_after_a_torn_line(tmp_path: Path) -> None:
    """What is appended after a crash in mid-line is read back, and the torn bytes are not."""
    path = tmp_path / "journal.jsonl"
    Journal(path, clock=lambda: 1.0).append(Kind.RUN_STARTED, run_id="a-1", name="a")
    with path.open("ab") as file:
        file.write(b'{"v":1,"n":2,"at":1.0,"ki')

    journal = Journal(path, clock=lambda: 2.0)
    journal.append(Kind.PREPARED)

    assert [event.kind for event in read(path)] == [Kind.RUN_STARTED, Kind.PREPARED]


def test_a_lost_line_is_an_error_that_names_the_way_out(written: bytes, tmp_path: Path) -> None:
    """Money depends on the journal, so a gap in it is told and not repaired."""
    path = tmp_path / "journal.jsonl"
    lines = written.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3] + lines[4:]))

    with pytest.raises(JournalDamaged, match="event 4 is missing") as caught:
        read(path)

    assert "qft ls --all" in caught.value.hint


def test_a_journal_of_a_later_version_is_not_guessed_at(tmp_path: Path) -> None:
    """A line of another version stops the reading."""
    path = tmp_path / "journal.jsonl"
    path.write_text('{"v":2,"n":1,"at":1.0,"kind":"prepared"}\n')

    with pytest.raises(JournalDamaged, match="not of version 1"):
        read(path)


def test_no_private_key_is_written_down(written: bytes) -> None:
    """The host key that goes into a spec leaves no trace in the journal."""
    assert b"secret" not in written
    assert b"PRIVATE" not in written


def _parses(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def test_each_error_of_a_provider_is_recorded_by_its_class_name() -> None:
    """The kinds that journals hold are the names of the classes of the tree, each once.

    A class without a kind of its own is recorded as the one above it: what differs is done at once.
    """
    classes = [one for one in vars(errors).values() if isinstance(one, type)]
    tree = [one for one in classes if issubclass(one, errors.ProviderError) and "kind" in vars(one)]

    assert {one.kind: one.__name__ for one in tree} == {one: one.value for one in ErrorKind}
    assert len(tree) == len(ErrorKind)


def test_an_error_that_another_version_recorded_is_the_base_of_the_tree() -> None:
    """A class name that is not known here does not keep a journal from being read."""
    assert ErrorKind("QuotaOfTomorrow") is ErrorKind.PROVIDER_ERROR


def test_a_run_ends_with_the_exit_code_that_its_journal_holds() -> None:
    """Journals of earlier versions hold exit codes; each is one outcome, and vice versa."""
    assert {one: exit_of(one).value for one in Outcome} == {one: one.value for one in Outcome}
