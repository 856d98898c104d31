"""A web address learns once of each thing that becomes of a run, and nobody else learns of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from support import logged_run
from support.http_server import QuietServer
from support.logged_run import LoggedRun, turn
from support.notified_service import Service

from commands.run import notify_url
from commands.runs.notify import Notifier, checked_url, make_notifier, post_to
from commands.runs.request import RunRequest
from commands.ui.errors import UsageError
from infra.run.budget import Budget, bill
from infra.run.context import TurnReport
from infra.run.fold import fold
from infra.run.journal import Outcome, read

TOKEN = "t0ken-in-the-path"


@pytest.fixture
def service() -> Iterator[Service]:
    """A service that listens."""
    made = Service()
    yield made
    made.close()


class Lines:
    """A console that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, text: str) -> None:
        """Keep a line."""
        self.lines.append(text)

    def report(self, report: TurnReport) -> None:
        """Show nothing."""

    def progress(self, what: str, done: int, total: int) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Nothing is left."""


@pytest.fixture
def run(tmp_path: Path) -> LoggedRun:
    """A run that has just begun."""
    return LoggedRun(tmp_path / "home", logged_run.config(tmp_path))


def notifier(run: LoggedRun, url: str, console: Lines) -> Notifier:
    """What `qft run --notify URL` has, in a process that has just started."""
    request = RunRequest(
        loaded=run.loaded, home=run.home, console=console, notify=checked_url(f"{url}/{TOKEN}")
    )
    made = make_notifier(request, clock=lambda: run.now_s)
    assert made is not None
    return made


def test_each_event_is_posted_once_also_over_resumes(run: LoggedRun, service: Service) -> None:
    """Two evictions, a wait for somebody and the end give four posts, however often qft starts."""
    console = Lines()
    for _ in range(2):
        run.rent()
        run.train_to(run.step + 10)
        made = notifier(run, service.url, console)
        made.on_turn(turn(run, warning="nobody is signed in"))
        made.on_turn(turn(run, warning="nobody is signed in"))
        run.evict(back_to=run.step)
        made.on_turn(turn(run))
        made.on_turn(turn(run))
    run.rent()
    run.train_to(60)
    run.end()
    for _ in range(2):
        made = notifier(run, service.url, console)
        made.finish()
        made.close()

    expected = ["done", "evicted", "evicted", "waiting", "waiting"]
    assert sorted(service.events) == expected
    assert service.events[-1] == "done"
    state = fold(read(run.folder.journal))
    assert service.bodies[-1] == {
        "run": "logged",
        "event": "done",
        "step": 60,
        "usd": round(bill(state, run.now_s).usd, 4),
        "at": "2027-01-15T08:13:40Z",
    }
    assert console.lines == []


def test_the_budget_is_posted_at_80_percent(run: LoggedRun, service: Service) -> None:
    """Of the dollars or of the hours, whichever comes first, and that once."""
    console = Lines()
    budget = {"usd": 9.0, "hours": 10, "evictions": 9}
    run.save_config(logged_run.config(run.loaded.folder, budget=budget))
    made = notifier(run, service.url, console)
    run.rent()
    run.now_s += 7.9 * 3600 - 60  # of ten hours
    made.on_turn(turn(run))
    made.finish()
    assert service.events == ["waiting"]  # qft ends, and the run has not
    run.now_s += 0.2 * 3600
    made = notifier(run, service.url, console)
    made.on_turn(turn(run))
    made.on_turn(turn(run))
    made.finish()
    assert service.events.count("budget") == 1


@pytest.mark.parametrize(
    ("outcome", "event"),
    [
        (Outcome.TRAINING_FAILED, "failed"),
        (Outcome.BUDGET_REACHED, "failed"),
        (Outcome.STOPPED_BY_USER, "stopped"),
    ],
)
def test_an_ending_without_success_is_posted(
    run: LoggedRun, service: Service, outcome: Outcome, event: str
) -> None:
    """A failure is told as such, and so is a stop by a person."""
    run.rent()
    run.end(outcome)
    notifier(run, service.url, Lines()).finish()

    assert service.events == [event]


def test_earlier_evictions_are_not_posted(run: LoggedRun, service: Service) -> None:
    """Whoever begins to be told of a run hears of what happens from then on."""
    run.rent()
    run.evict(back_to=0)
    made = notifier(run, service.url, Lines())
    made.on_turn(turn(run))
    run.rent()
    run.evict(back_to=0)
    made.on_turn(turn(run))
    run.end()
    made.finish()

    assert service.events == ["evicted", "done"]


@pytest.mark.parametrize(("status", "words"), [(500, "500"), (302, "302"), (404, "404")])
def test_what_goes_wrong_is_one_warning_without_the_address(
    run: LoggedRun, service: Service, status: int, words: str
) -> None:
    """A refusal or a redirect, which is not followed, is told once; nothing is tried again."""
    service.status = status
    console = Lines()
    run.rent()
    made = notifier(run, service.url, console)
    made.on_turn(turn(run))
    run.evict(back_to=0)
    made.on_turn(turn(run))
    run.end()
    made.finish()

    assert service.events == ["evicted", "done"]
    assert set(service.paths) == {f"/{TOKEN}"}
    assert len(console.lines) == 1
    assert f"it answered {words}" in console.lines[0]
    kept = [path.read_bytes() for path in run.home.rglob("*") if path.is_file()]
    assert not [data for data in [*kept, "".join(console.lines).encode()] if TOKEN.encode() in data]


def test_a_service_that_is_not_there_delays_nothing(run: LoggedRun) -> None:
    """The turn returns at once, the end within its limit, with one warning."""
    console = Lines()
    made = notifier(run, "http://127.0.0.1:1", console)
    run.rent()
    run.end(Outcome.TRAINING_FAILED)
    made.finish()

    assert [line.partition(": it did")[0] for line in console.lines] == [
        "warning: `--notify`: `failed` was not taken"
    ]


def test_a_slow_service_is_given_up(service: Service) -> None:
    """After its time limit the post fails, whatever the service is at."""
    taken = threading.Event()

    def hold() -> None:
        taken.wait(30)

    class Slow(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            hold()

        def log_message(self, *_arguments: object) -> None:
            """Print nothing."""

    server = QuietServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(OSError, match="timed out"):
            post_to(checked_url(f"http://127.0.0.1:{server.server_port}"), timeout_s=0.2)(b"{}")
    finally:
        taken.set()
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    "url",
    [
        f"http://example.com/{TOKEN}",
        f"ftp://example.com/{TOKEN}",
        f"https://me:{TOKEN}@example.com/",
        f"https://exa mple.com/{TOKEN}",
        f"//example.com/{TOKEN}",
        f"https://[::1/{TOKEN}",
        f"https://example.com:99999/{TOKEN}",
        f"http://127.0.0.1.example.com/{TOKEN}",
        TOKEN,
    ],
)
def test_an_address_that_could_leak_is_refused_without_being_shown(url: str) -> None:
    """Only https, or this computer; the message names the option alone."""
    with pytest.raises(UsageError) as caught:
        checked_url(url)

    assert TOKEN not in f"{caught.value.message} {caught.value.hint}"
    assert TOKEN not in repr(checked_url(f"https://example.com/{TOKEN}"))


def test_no_program_that_is_started_finds_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """The option goes first; the variable is taken out of the environment."""
    monkeypatch.setenv("QFT_NOTIFY_URL", "https://example.com/a")
    found = notify_url("")
    assert found is not None
    assert found.reveal() == "https://example.com/a"
    assert notify_url("") is None


def test_a_budget_without_a_limit_is_never_used_up(run: LoggedRun) -> None:
    """Nothing is told of a limit that is not there."""
    from commands.runs.notify import notices_of_turn

    run.rent()
    state = fold(read(run.folder.journal))
    found = notices_of_turn(state, Budget(), now_s=run.now_s + 1e7, waiting=False)

    assert list(found) == []
