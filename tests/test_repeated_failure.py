"""A trainer that fails twice in the same way is not started a third time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.fakecloud import Story

from infra.provider import Vm
from infra.run.fold import fold
from infra.run.journal import Event, Kind, Outcome
from infra.run.state import RunState
from infra.run.workload import JobView

WORDS = "AttributeError: 'tuple' object has no attribute 'dtype'"


@pytest.fixture
def story(tmp_path: Path) -> Story:
    """A run against the fake cloud."""
    return Story(path=tmp_path / "journal.jsonl")


def speaks(
    story: Story, monkeypatch: pytest.MonkeyPatch, words: Iterator[str], steps: Iterator[int]
) -> None:
    """Let every failed trainer leave the next words, at the next step."""
    look, launches = story.work.job_status, [0]
    last: list[str | int] = ["", 0]

    def view(vm: Vm) -> JobView:
        seen = look(vm)
        if seen.exit_code in {None, 0}:
            return seen
        if launches[0] != story.work.launches:
            launches[0] = story.work.launches
            last[:] = [next(words), next(steps)]
        return replace(seen, error=str(last[0]), step=int(last[1]))

    monkeypatch.setattr(story.work, "job_status", view)


def test_the_same_words_twice_end_the_run(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two starts, not three; the words are said, and the machine is given back."""
    story.work.exit_codes = [70] * 9
    speaks(story, monkeypatch, iter([WORDS] * 9), iter([0] * 9))

    ending = story.go()

    assert (ending.outcome, story.work.launches) == (Outcome.TRAINING_FAILED, 2)
    assert ending.reason == f"the trainer failed twice in the same way at its start: {WORDS}"
    assert story.cloud.vms == {}


@pytest.mark.parametrize(
    ("words", "steps"),
    [
        (["one", "two", "three"], [7, 7, 7]),
        (["", "", ""], [7, 7, 7]),  # killed, as by a lack of memory of the host
    ],
)
def test_other_words_are_tried_as_before(
    story: Story, monkeypatch: pytest.MonkeyPatch, words: list[str], steps: list[int]
) -> None:
    """Failures of different kinds, or without any words, count as crashes, three at one step."""
    story.work.exit_codes = [70] * 9
    speaks(story, monkeypatch, iter(words), iter(steps))

    assert story.go().outcome is Outcome.TRAINING_FAILED
    assert story.work.launches == 3


def test_a_step_in_between_makes_another_failure_of_it(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same words at a later step, then at a later one still, end nothing before its time."""
    story.work.exit_codes = [70] * 3
    speaks(story, monkeypatch, iter([WORDS] * 3), iter([3, 9, 20]))

    assert story.go().outcome is Outcome.DONE
    assert story.work.launches == 4


def failed(*, error: str = WORDS, step: int = 0, code: int | None = 70, number: int = 1) -> Event:
    """Return the record of a trainer that failed; without words, as earlier versions wrote it."""
    words = {"error": error} if error else {}
    data = {"exit_code": code, "step": step, "crash": True, **words}
    return Event(number=number, at_s=10.0, kind=Kind.TRAINER_EXITED, data=data)


def repeated(*events: Event) -> bool:
    """Tell whether the state after these events knows a repeated failure."""
    state: RunState = fold(events)
    return state.failure_repeated


def test_the_record_alone_knows_what_was_repeated() -> None:
    """Code, words and step must be the same; a restart by a person begins anew."""
    again = Event(number=3, at_s=20.0, kind=Kind.RUN_RESUMED, data={})

    assert repeated(failed(), failed())
    assert not repeated(failed(), failed(step=1))
    assert not repeated(failed(), failed(code=1))
    assert not repeated(failed(error=""), failed(error=""))
    assert not repeated(failed(), failed(), again)
    assert not repeated(failed(), failed(), again, failed())
