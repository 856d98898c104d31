"""The live page follows a run from what is at home of it, and leaves its reader where they are."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.browser import DevTools, browser
from support.pages import read

from commands.runs.config import LoadedConfig, RunConfig
from commands.runs.home import RunFolder, run_folder
from commands.runs.live.document import make_document
from commands.runs.live.feed import Feed
from commands.runs.live.run_view import RunView
from commands.runs.live.server import LiveServer
from commands.runs.live.watch import AGAIN_S, LOOK_EVERY_S, Watch
from infra.run.journal import Journal, Kind

TIMEOUT_S = 120.0
OFFER = {
    "provider": "local", "region": "a", "size": "small", "spot_usd_per_h": 0.36,
    "idle_usd_per_h": 0.036,
}  # fmt: skip
VM = {"provider": "local", "run_id": "tiny-1", "id": "v", "region": "a", "size": "small",
      "price_usd_per_h": 0.36}  # fmt: skip


@dataclass
class Clock:
    """A clock that a test moves."""

    now_s: float = 1_000_000.0
    slept: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        """Seconds."""
        return self.now_s

    def sleep(self, wait_s: float) -> None:
        """Let time pass."""
        self.slept.append(wait_s)
        self.now_s += wait_s


@dataclass(kw_only=True)
class LiveRun:
    """A run as its driver writes it, and a watch over it; no machine and no trainer take part."""

    out: Path
    folder: RunFolder
    clock: Clock
    feed: Feed
    watch: Watch
    messages: list[str]

    def record(self, kind: Kind, **data: Any) -> None:
        """Let the driver write an event."""
        Journal(self.folder.journal, clock=self.clock).append(kind, **data)

    def steps(self, last: int) -> None:
        """Let the driver copy the log until a step."""
        self.folder.live.mkdir(exist_ok=True)
        lines = [
            {"step": at, "loss": 3 / at, "lr": 1e-3, "tokens": 100, "seconds": 0.5}
            for at in range(1, last + 1)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (self.folder.live / "metrics.jsonl").write_text(text)
        status = {"phase": "training", "step": last, "steps": 90, "eta_s": 40.0}
        (self.folder.live / "status.json").write_text(json.dumps(status))

    def look(self, after_s: float = 1.0) -> dict[str, str]:
        """Let the watch look once; return the sections by their ids."""
        self.clock.now_s += after_s
        self.watch.turn()
        return dict(self.feed.snapshot.sections)


@pytest.fixture
def run(tmp_path: Path) -> LiveRun:
    """A run whose machine was rented, and that was never fetched."""
    config = {
        "name": "tiny",
        "vm": {"provider": "local"},
        "model": {"id": "owner/base"},
        "data": {"train": "train.jsonl", "prompt": "{a}", "completion": "{b}"},
    }
    loaded = LoadedConfig(config=RunConfig.model_validate(config), path=tmp_path / "run.yaml")
    folder, clock = run_folder(tmp_path / "home", "tiny"), Clock()
    folder.root.mkdir(parents=True)
    journal = Journal(folder.journal, clock=clock)
    journal.append(Kind.RUN_STARTED, run_id="tiny-1", name="tiny")
    journal.append(Kind.CREATE_INTENDED, generation=1, offer=OFFER)
    (tmp_path / "scratch").mkdir()
    feed, messages = Feed(clock=clock), list[str]()
    view = RunView(folder=folder, loaded=loaded, scratch=tmp_path / "scratch", clock=clock)
    watch = Watch(
        view=view, feed=feed, monotonic=clock, sleep=clock.sleep, on_message=messages.append
    )
    return LiveRun(
        out=loaded.out, folder=folder, clock=clock, feed=feed, watch=watch, messages=messages
    )


def train(run: LiveRun) -> None:
    """Let the machine be made ready and the trainer start."""
    run.record(Kind.CREATE_ACCEPTED, vm=VM)
    run.record(Kind.RUNNING_SEEN, since_s=None)
    run.record(Kind.PREPARED, sent_s=1.0)
    run.record(Kind.LAUNCHED)


def test_a_run_without_an_adapter_is_shown_from_its_beginning(run: LiveRun) -> None:
    """Before anything came home there is what is done now, for how much, and the timeline."""
    shown = run.look()

    assert "rented, booting" in read(shown["live"]).text
    assert "at the listed spot price" in shown["live"]
    assert "What the machine did" in shown["machine"]
    assert "nobody: `qft run tiny` goes on" in shown["live"]


def test_a_step_at_home_is_on_the_page_at_the_next_look(run: LiveRun) -> None:
    """What the driver copies makes a new version, of which the curves are a part."""
    train(run)
    run.steps(20)
    first = run.look()
    version = run.feed.snapshot.version
    run.steps(21)
    then = run.look(LOOK_EVERY_S)

    assert "20 of 90" in first["live"]
    assert "21 of 90" in then["live"]
    assert "40 s" in then["live"]
    assert run.feed.snapshot.version == version + 1
    event = run.feed.snapshot.event(version).decode()
    assert set(json.loads(event.partition("data: ")[2])["sections"]) >= {"live", "curves"}


def test_results_of_a_run_before_are_not_shown(run: LiveRun) -> None:
    """What lies in the out folder of a run that began anew belongs to the one before."""
    (run.out / "adapter").mkdir(parents=True)
    (run.out / "metrics.jsonl").write_text('{"step": 777, "loss": 1.0}\n')

    assert "777" not in "".join(run.look().values())


def test_without_a_listener_time_alone_builds_nothing(run: LiveRun) -> None:
    """Dollars go on while somebody looks; else only a file that changed counts."""
    run.look()
    version = run.feed.snapshot.version
    run.look(AGAIN_S + 1)
    assert run.feed.snapshot.version == version
    with run.feed.listening():
        run.look(AGAIN_S + 1)

    assert run.feed.snapshot.version == version + 1


def test_a_log_that_is_none_costs_a_refresh_only(run: LiveRun) -> None:
    """A file that cannot be read costs a refresh, and no server."""
    run.look()
    version = run.feed.snapshot.version
    run.folder.live.mkdir()
    (run.folder.live / "metrics.jsonl").write_text("nonsense\n")
    run.look()

    assert run.feed.snapshot.version == version
    assert "the page was not refreshed" in run.messages[0]
    run.steps(3)
    assert "3 of 90" in run.look()["live"]


def test_at_the_end_of_a_run_its_page_is_written(run: LiveRun) -> None:
    """Also one that was stopped before it had an adapter; asked for again, it goes on."""
    train(run)
    run.steps(30)
    run.look()
    run.record(Kind.DEALLOCATE_INTENDED, reason="qft down")
    run.record(Kind.DEALLOCATED, reason="qft down", until_s=None)
    run.record(Kind.RUN_ENDED, code=130, reason="stopped by `qft down`")
    shown = run.look()

    assert run.feed.snapshot.ended
    assert run.feed.snapshot.event(0).startswith(b"event: end\n")
    assert "ended: stopped by `qft down`" in shown["live"]
    page = read((run.out / "report.html").read_text(encoding="utf-8"))
    assert "stopped at step 30 of 90, not finished" in page.text
    assert "Learning" in page.headings
    assert "Now" not in page.headings
    assert json.loads((run.out / "report.json").read_text())["steps"] == 30
    assert f"its page is written: {run.out / 'report.html'}" in run.messages[0]
    run.record(Kind.RUN_RESUMED, changed=False)
    run.look()
    assert not run.feed.snapshot.ended


def test_a_folder_that_cannot_be_written_ends_nothing(run: LiveRun) -> None:
    """The page on the screen is there all the same, and why it is no file is said."""
    run.out.parent.mkdir()
    run.out.write_text("in the way")
    run.record(Kind.RUN_ENDED, code=0, reason="done")
    shown = run.look()

    assert "ended: done" in shown["live"]
    assert "could not be written" in run.messages[0]


def test_hostile_names_stay_text_on_the_live_page(run: LiveRun) -> None:
    """What a machine says in its status and a person in a name is escaped like on the file."""
    train(run)
    run.steps(3)
    status = {"phase": "<script>alert(1)</script>", "step": 3, "steps": 90}
    (run.folder.live / "status.json").write_text(json.dumps(status))
    run.look()
    page = make_document(run.feed.snapshot, "nonce", name="</script><script>alert(1)</script>")

    assert "<script>alert" not in page
    assert page.count('<script nonce="nonce">') == 2


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevTools]:
    """A browser for the tests of this file."""
    with browser(tmp_path_factory.mktemp("chromium") / "profile") as made:
        yield made


@pytest.fixture
def server(run: LiveRun) -> Iterator[LiveServer]:
    """A server of that run's page."""
    made = LiveServer(run.feed, partial(make_document, name="tiny"))
    with made.serving():
        yield made


def until(tab: DevTools, expression: str) -> None:
    """Wait until an expression holds on the page."""
    ends_s = time.monotonic() + TIMEOUT_S
    while not tab.ask(expression):
        assert time.monotonic() < ends_s, expression
        time.sleep(0.05)


@pytest.mark.slow
def test_a_browser_shows_a_change_and_leaves_its_reader_alone(
    run: LiveRun, server: LiveServer, tab: DevTools
) -> None:
    """A new step comes without a reload: what was open stays open, focus and place stay."""
    train(run)
    run.steps(20)
    run.look()
    tab.open(server.url, width=390, height=500)
    until(tab, "document.documentElement.dataset.state === 'live'")
    tab.ask("document.querySelector('#machine details').open = true")
    tab.ask("document.querySelector('#machine summary').focus()")
    tab.ask("document.querySelector('#machine').scrollIntoView()")
    place = "Math.round(document.querySelector('#machine').getBoundingClientRect().top) + 0"
    before = tab.ask(place)
    tab.ask("window.first = document.querySelector('#machine')")
    run.steps(21)
    run.record(Kind.PROGRESS, step=21, steps=90)
    run.look(LOOK_EVERY_S)

    until(tab, "document.querySelector('#live').textContent.includes('21 of 90')")
    assert tab.ask("window.first.isConnected") is False
    assert tab.ask("document.querySelector('#machine details').open") is True
    assert tab.ask("document.activeElement === document.querySelector('#machine summary')")
    assert abs(tab.ask(place) - before) <= 1
    assert tab.ask("document.documentElement.scrollWidth <= window.innerWidth")
    assert tab.errors == []


@pytest.mark.slow
def test_a_browser_shows_the_end_and_a_lost_connection(run: LiveRun, tab: DevTools) -> None:
    """The end is shown once it comes; when the page's server is gone, the title says so."""
    run.look()
    server = LiveServer(run.feed, partial(make_document, name="tiny"))
    with server.serving():
        tab.open(server.url, width=1280)
        run.record(Kind.RUN_ENDED, code=0, reason="done")
        run.look()
        until(tab, "document.documentElement.dataset.state === 'ended'")
        assert tab.errors == []
        assert tab.ask("document.querySelector('#live').textContent.includes('ended: done')")
    until(tab, "document.title.startsWith('(no connection)')")
