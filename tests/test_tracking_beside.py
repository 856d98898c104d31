"""Trackers are fed beside a run, and nothing that they do ends or delays it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support import logged_run
from support.logged_run import LoggedRun, turn

from commands.runs.track_table import TrackTable
from commands.runs.trackers.available import while_running
from commands.runs.trackers.beside_run import LAST_S, SEND_S, SendingProcess, TrackerFeed
from commands.runs.trackers.outbox import Sent
from commands.runs.trackers.track_run import fill, is_behind, outbox_of
from infra.run.fold import fold
from infra.run.journal import Outcome, read


@dataclass
class PlannedSending:
    """A sending that ends by itself at a given time, or never."""

    clock: Callable[[], float]
    ends_s: float
    code: int = 0
    words: str = ""
    ended: bool = False

    def poll(self) -> int | None:
        """Return the exit code once it has ended."""
        return self.code if self.clock() >= self.ends_s else None

    def errors(self) -> str:
        """Return what it wrote."""
        return self.words

    def end(self) -> None:
        """Note that it was ended."""
        self.ended = True


@dataclass
class FeedAtWork:
    """A feed with a clock of its own, whose sendings take as long as they are told to."""

    takes_s: float = 1.0
    code: int = 0
    words: str = ""
    behind: bool = True
    now_s: float = 0.0
    begun: list[tuple[float, Sequence[str]]] = field(default_factory=list)
    sendings: list[PlannedSending] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def feed(self) -> TrackerFeed:
        """Return the feed of a run with one tracker."""
        return TrackerFeed(
            names=("mlflow",),
            name="logged",
            is_behind=lambda: self.behind,
            start=self.start,
            clock=lambda: self.now_s,
            sleep=self.sleep,
            on_message=self.lines.append,
        )

    def start(self, names: Sequence[str]) -> PlannedSending:
        """Begin a sending."""
        self.begun.append((self.now_s, names))
        sending = PlannedSending(
            lambda: self.now_s, self.now_s + self.takes_s, code=self.code, words=self.words
        )
        self.sendings.append(sending)
        return sending

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now_s += seconds


@pytest.fixture
def run(tmp_path: Path) -> LoggedRun:
    """A run whose trainer works."""
    made = LoggedRun(tmp_path / "home", logged_run.config(tmp_path, track=["mlflow"]))
    made.rent()
    made.train_to(10)
    return made


def test_rows_are_sent_now_and_then_one_sending_at_a_time(run: LoggedRun) -> None:
    """Every half minute, and not while an earlier one works."""
    made = FeedAtWork(takes_s=45.0)
    feed = made.feed()
    for _ in range(121):
        feed.on_turn(turn(run))
        made.sleep(1.0)

    assert made.begun == [(0.0, ("mlflow",)), (45.0, ("mlflow",)), (90.0, ("mlflow",))]
    assert made.lines == []


def test_a_tracker_that_hangs_is_ended_with_one_warning(run: LoggedRun) -> None:
    """The loop goes on meanwhile; the next try comes, and is no second warning."""
    made = FeedAtWork(takes_s=1e9)
    feed = made.feed()
    for _ in range(700):
        feed.on_turn(turn(run))
        made.sleep(1.0)

    assert [at_s for at_s, _ in made.begun] == [0.0, SEND_S, 2 * SEND_S]
    assert [one.ended for one in made.sendings] == [True, True, False]
    assert len(made.lines) == 1
    assert "it took more than 300 s; the run goes on" in made.lines[0]
    assert "`qft track logged` sends what is missing" in made.lines[0]
    feed.close()
    assert made.sendings[-1].ended


def test_the_end_of_a_run_sends_the_rest(run: LoggedRun) -> None:
    """To all trackers of the run, after what is being sent; nothing if nothing is missing."""
    made = FeedAtWork(takes_s=20.0)
    feed = made.feed()
    feed.on_turn(turn(run))
    feed.finish()
    assert [names for _, names in made.begun] == [("mlflow",), ()]
    assert made.now_s == pytest.approx(40.0, abs=1.0)
    made.behind = False
    feed.finish()

    assert len(made.begun) == 2


def test_the_end_of_a_run_waits_for_a_limited_time(run: LoggedRun) -> None:
    """A tracker that hangs there is ended, too."""
    made = FeedAtWork(takes_s=1e9)
    feed = made.feed()
    feed.on_turn(turn(run))
    began_s = made.now_s
    feed.finish()

    assert made.now_s - began_s <= LAST_S + 1.0
    assert all(one.ended for one in made.sendings)
    assert len([line for line in made.lines if line.startswith("warning")]) == 1


def test_the_words_of_a_failure_are_shown(run: LoggedRun) -> None:
    """What `qft track` says of its error, on one line."""
    made = FeedAtWork(code=4, words="error: not every tracker has the run yet\n  - mlflow: no\n")
    made.feed().finish()

    assert "tracking: not every tracker has the run yet; - mlflow: no; the run" in made.lines[-1]


def test_a_start_that_fails_is_a_warning(run: LoggedRun) -> None:
    """So is a record that cannot be read."""
    made = FeedAtWork()
    feed = made.feed()

    def refuse(_names: Sequence[str]) -> PlannedSending:
        raise OSError("no more processes")

    feed._start = refuse
    feed.on_turn(turn(run))
    feed.finish()

    assert [line for line in made.lines if "no more processes" in line] == made.lines[:1]


def test_a_sending_is_a_process_that_can_be_ended(tmp_path: Path) -> None:
    """With all that it started; what it writes to stderr is read once it has ended."""
    note = tmp_path / "child"
    program = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(note)!r} + '.new', 'w').write(str(child.pid))\n"
        f"__import__('os').rename({str(note)!r} + '.new', {str(note)!r})\n"
        "sys.stderr.write('half done'); sys.stderr.flush(); time.sleep(600)\n"
    )
    sending = SendingProcess([sys.executable, "-c", program], os.environ)
    until_s = time.monotonic() + 60
    while not (note.exists() and sending.errors()) and time.monotonic() < until_s:
        time.sleep(0.02)
    assert (sending.poll(), sending.errors()) == (None, "half done")
    child = int(note.read_text())
    sending.end()

    assert sending.poll() is not None
    while Path(f"/proc/{child}/stat").exists() and time.monotonic() < until_s:
        if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.02)
    assert time.monotonic() < until_s


def test_a_tracker_is_behind_until_it_has_steps_and_ending(run: LoggedRun) -> None:
    """Looking writes nothing."""

    def behind() -> bool:
        return is_behind(("mlflow",), run.folder, run.loaded)

    outbox = outbox_of(run.folder, fold(read(run.folder.journal)))
    assert behind()
    assert not (run.folder.root / "tracked").exists()
    fill(outbox, run.folder, run.loaded, now_s=run.now_s)
    outbox.note("mlflow", Sent(step=9))
    assert not behind()
    run.end(Outcome.BUDGET_REACHED)
    assert behind()
    outbox.note("mlflow", Sent(step=9, ending=len(read(run.folder.journal))))
    assert not behind()


def test_an_offline_run_of_wandb_waits_for_the_end() -> None:
    """Each sending would be a folder of its own."""
    table = TrackTable.model_validate({"wandb": {"mode": "offline"}, "mlflow": {}})

    assert while_running(table) == ("mlflow",)
    assert while_running(TrackTable.model_validate(["wandb"])) == ("wandb",)
