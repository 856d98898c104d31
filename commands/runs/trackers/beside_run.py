"""Feeds the trackers while a run goes on, in a process of its own beside the loop that drives it.

Nothing that a tracker does can end or delay the run: its process is ended after `SEND_S`, at the
end of the run after `LAST_S`, and its trouble is one warning. What did not go is not lost:
`qft track` sends it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Protocol

from commands.runs import python_program
from commands.runs.request import RunRequest
from commands.runs.track_table import TrackTable
from commands.runs.trackers.available import while_running
from commands.runs.trackers.track_run import is_behind
from commands.ui.output import clean
from infra.run.context import TurnReport
from infra.run.journal import JournalDamaged

EVERY_S = 30.0
SEND_S = 300.0
LAST_S = 120.0
POLL_S = 0.2
ERROR_CHARS_MAX = 400


class Sending(Protocol):
    """A `qft track` that works in the background."""

    def poll(self) -> int | None:
        """Return its exit code; None while it works."""

    def errors(self) -> str:
        """Return what it wrote to stderr."""

    def end(self) -> None:
        """End it at once, with whatever it started; nothing happens if it has ended."""


class TrackerFeed:
    """Starts a sending when rows may have come home, one at a time (a `Watcher`)."""

    def __init__(  # noqa: PLR0913  (what it works with; nothing in it is global)
        self,
        *,
        names: Sequence[str],
        name: str,
        is_behind: Callable[[], bool],
        start: Callable[[Sequence[str]], Sending],
        clock: Callable[[], float],
        sleep: Callable[[float], None],
        on_message: Callable[[str], None],
    ) -> None:
        self._names, self._name = tuple(names), name
        self._is_behind, self._start = is_behind, start
        self._clock, self._sleep, self._on_message = clock, sleep, on_message
        self._sending: Sending | None = None
        self._began_s = -EVERY_S
        self._warned = False

    def on_turn(self, report: TurnReport) -> None:
        """Start a sending now and then while the trainer works, and end one that takes too long."""
        self._check(SEND_S)
        due = self._clock() - self._began_s >= EVERY_S
        if self._names and report.state.launched and self._sending is None and due:
            self._begin(self._names)

    def finish(self) -> None:
        """Wait for what is being sent, then send the rest and the ending, all within `LAST_S`."""
        ends_s = self._clock() + LAST_S
        self._wait(ends_s)
        with self._as_warning():
            if self._is_behind():
                self._on_message("sending the rest to the trackers")
                self._begin(())
                self._wait(ends_s)

    def close(self) -> None:
        """End a sending that still works; the next one goes on."""
        if self._sending is not None:
            self._sending.end()
            self._sending = None

    def _begin(self, names: Sequence[str]) -> None:
        self._began_s = self._clock()
        with self._as_warning():
            self._sending = self._start(names)

    def _wait(self, ends_s: float) -> None:
        while self._sending is not None:
            self._check(max(0.0, ends_s - self._began_s))
            if self._sending is not None:
                self._sleep(POLL_S)

    def _check(self, most_s: float) -> None:
        """Take note of a sending that ended, or took `most_s`."""
        if self._sending is None:
            return
        code = self._sending.poll()
        if code is None and self._clock() - self._began_s < most_s:
            return
        if code is None:
            self._warn(f"it took more than {most_s:.0f} s")
        elif code:
            self._warn(_last_words(self._sending.errors()))
        self._sending.end()
        self._sending = None

    @contextlib.contextmanager
    def _as_warning(self) -> Iterator[None]:
        """Let what goes wrong on this computer be a warning, too."""
        try:
            yield
        except (OSError, ValueError, JournalDamaged) as error:
            self._warn(str(error))

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            self._on_message(
                f"warning: tracking: {reason}; the run goes on, and nothing is lost: "
                f"`qft track {self._name}` sends what is missing"
            )


def _last_words(errors: str) -> str:
    """Return what a sending says of its error, on one line."""
    lines = [line.strip().removeprefix("error: ") for line in clean(errors).splitlines()]
    return "; ".join(line for line in lines if line)[-ERROR_CHARS_MAX:] or "it failed"


class SendingProcess:
    """`qft track` as a process in a session of its own: a Ctrl-C here does not cut it."""

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - `end` closes it
        self._process = subprocess.Popen(
            argv,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            start_new_session=True,
        )

    def poll(self) -> int | None:
        """See `Sending.poll`."""
        return self._process.poll()

    def errors(self) -> str:
        """See `Sending.errors`."""
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")

    def end(self) -> None:
        """See `Sending.end`; libraries may have started processes, which are of its group."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._errors.close()


def make_feed(
    request: RunRequest,
    *,
    around: Mapping[str, str],
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> TrackerFeed | None:
    """Return what feeds the trackers of a run; None if it has none."""
    loaded, folder = request.loaded, request.folder
    table: TrackTable | None = loaded.config.track
    if table is None:
        return None
    environment = {**python_program.environment_of(around), "QFT_HOME": str(request.home)}

    def start(names: Sequence[str]) -> Sending:
        to = [word for name in names for word in ("--to", name)]
        return SendingProcess(
            python_program.argv_of("cli", "track", folder.name, "--json", *to), environment
        )

    return TrackerFeed(
        names=while_running(table),
        name=folder.name,
        is_behind=lambda: is_behind(table.names, folder, loaded),
        start=start,
        clock=clock,
        sleep=sleep,
        on_message=request.console.log,
    )
