"""Tells a web address of the user's what becomes of a run: one POST for each event, once.

The address may hold a token, so it is a secret: no file, log or message has it. No redirect is
followed. A thread sends, so that a slow service delays nothing, and its trouble is one warning.
"""

from __future__ import annotations

import http.client
import json
import queue
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

from commands.runs.request import RunRequest
from commands.runs.web_address import is_loopback
from commands.runs.web_opener import make_opener
from commands.ui.errors import UsageError
from infra.durable import read_json, write_json
from infra.run.budget import Budget, bill
from infra.run.context import TurnReport
from infra.run.fold import fold
from infra.run.journal import Event, JournalDamaged, Kind, Outcome, read
from infra.run.state import RunState
from infra.timestamps import format_utc
from infra.untrusted import table, texts
from trainer.secret import Secret

URL_ENV = "QFT_NOTIFY_URL"
URL_CHARS_MAX = 2000
SEND_S = 5.0
SHARE_OF_BUDGET = 0.8
KEYS_MAX = 10_000


class Notice(StrEnum):
    """What is told."""

    DONE = "done"
    EVICTED = "evicted"
    FAILED = "failed"
    BUDGET = "budget"
    """Four fifths of the dollars or hours are used."""
    WAITING = "waiting"
    """Somebody has to do something, such as to sign in to the cloud."""
    STOPPED = "stopped"
    """By a person."""


@dataclass(frozen=True, kw_only=True)
class Message:
    """One notice, with where the run is."""

    notice: Notice
    run: str
    step: int
    usd: float
    at_s: float

    @property
    def body(self) -> bytes:
        """What is posted."""
        fields = {"run": self.run, "event": self.notice, "step": self.step}
        fields |= {"usd": round(self.usd, 4), "at": format_utc(self.at_s)}
        return json.dumps(fields).encode()


def checked_url(url: str) -> Secret:
    """Return an address to post to. Raises UsageError, without it, for one that cannot be used."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port = "", None
    plain = url.isascii() and url.isprintable() and " " not in url and len(url) <= URL_CHARS_MAX
    if not host or not plain or port == 0:
        raise UsageError("`--notify`: this is no web address", hint="write https://HOST/PATH")
    if parts.username is not None or parts.password is not None:
        raise UsageError("`--notify`: an address with a user or password in it cannot be used")
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(host)):
        raise UsageError(
            "`--notify`: the address is not https",
            hint="only one of this computer may be http, such as http://127.0.0.1:8080/",
        )
    return Secret(url)


def notices_of_turn(
    state: RunState, budget: Budget, *, now_s: float, waiting: bool
) -> Iterator[tuple[str, Notice]]:
    """Yield what is to be told of a run that goes on, each with its key within the run."""
    for number in range(1, state.evictions + 1):
        yield f"evicted-{number}", Notice.EVICTED
    used = bill(state, now_s)
    shares = [
        amount / limit
        for amount, limit in ((used.usd, budget.usd), (used.compute_h, budget.hours))
        if limit
    ]
    if max(shares, default=0.0) >= SHARE_OF_BUDGET:
        yield f"budget-{budget.usd}-{budget.hours}", Notice.BUDGET
    if waiting:
        yield f"waiting-{state.starts}", Notice.WAITING


def notice_of_ending(events: Sequence[Event]) -> tuple[str, Notice] | None:
    """Return what is to be told of the last ending of a run, if it has ended."""
    state = fold(events)
    if state.ending is None:
        return None
    number = next(event.number for event in reversed(events) if event.kind is Kind.RUN_ENDED)
    notice = {Outcome.DONE: Notice.DONE, Outcome.STOPPED_BY_USER: Notice.STOPPED}.get(
        state.ending.outcome, Notice.FAILED
    )
    return f"ended-{number}", notice


class Notifier:
    """Posts the notices of one run (a `Watcher`); what an earlier process posted is not repeated.

    `events` reads the journal; `path` remembers what was posted; `clock` is in seconds since 1970.
    """

    def __init__(  # noqa: PLR0913  (what it works with; nothing in it is global)
        self,
        *,
        post: Callable[[bytes], None],
        path: Path,
        budget: Budget,
        events: Callable[[], Sequence[Event]],
        clock: Callable[[], float],
        on_message: Callable[[str], None],
        wait_s: float = 2 * SEND_S,
    ) -> None:
        self._post, self._path, self._budget = post, path, budget
        self._events, self._clock = events, clock
        self._on_message, self._wait_s = on_message, wait_s
        self._messages: queue.Queue[Message | None] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._warned = False

    def on_turn(self, report: TurnReport) -> None:
        """Post what is new; returns at once."""
        self._post_new(
            report.state,
            notices_of_turn(
                report.state, self._budget, now_s=report.now_s, waiting=bool(report.warning)
            ),
            report.now_s,
        )

    def finish(self) -> None:
        """Post how the run ended, or that it waits for somebody; returns within `wait_s`."""
        try:
            events = self._events()
        except (OSError, JournalDamaged) as error:
            self._warn(f"the end was not told: {error}")
            return
        state, now_s = fold(events), self._clock()
        ending = notice_of_ending(events) or (f"waiting-{len(events)}", Notice.WAITING)
        before = notices_of_turn(state, self._budget, now_s=now_s, waiting=False)
        self._post_new(state, [*before, ending], now_s)
        if self._thread is not None:
            self._messages.put(None)
            self._thread.join(self._wait_s)
            self._thread = None

    def close(self) -> None:
        """Do nothing: the thread ends with the process."""

    def _post_new(
        self, state: RunState, notices: Iterable[tuple[str, Notice]], now_s: float
    ) -> None:
        """Post what was not tried before; noted first, so that nothing goes twice.

        Evictions from before anybody asked to be told are no news.
        """
        try:
            noted = table(read_json(self._path))
            keys = texts(noted.get("keys"), most=KEYS_MAX) or ()
            if noted.get("run") != state.run_id:
                keys = tuple(f"evicted-{number}" for number in range(1, state.evictions + 1))
            fresh = [(key, notice) for key, notice in notices if key not in keys]
            if fresh or noted.get("run") != state.run_id:
                both = [*keys, *(key for key, _ in fresh)]
                write_json(self._path, {"run": state.run_id, "keys": both})
        except (OSError, ValueError) as error:
            self._warn(f"what was told cannot be noted here: {error}")
            return
        for _, notice in fresh:
            self._messages.put(
                Message(
                    notice=notice,
                    run=state.name or self._path.parent.name,
                    step=max(state.step, state.home_step),
                    usd=bill(state, now_s).usd,
                    at_s=now_s,
                )
            )
        if fresh and self._thread is None:
            self._thread = threading.Thread(target=self._work, name="notify", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while (message := self._messages.get()) is not None:
            try:
                self._post(message.body)
            except (OSError, http.client.HTTPException) as error:
                self._warn(f"`{message.notice}` was not taken: {describe(error)}")

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            self._on_message(f"warning: `--notify`: {reason}; the run goes on")


def post_to(url: Secret, *, timeout_s: float = SEND_S) -> Callable[[bytes], None]:
    """Return a function that posts JSON there. It raises OSError for any answer but 2xx."""
    loopback = is_loopback(urlsplit(url.reveal()).hostname or "")
    opener = make_opener(loopback=loopback)

    def post(body: bytes) -> None:
        headers = {"Content-Type": "application/json", "User-Agent": "qft"}
        request = urllib.request.Request(  # noqa: S310 - https or loopback, see `checked_url`
            url.reveal(), data=body, headers=headers, method="POST"
        )
        opener.open(request, timeout=timeout_s).close()

    return post


def describe(error: BaseException) -> str:
    """Say what a service did, without its address: libraries put that into their messages."""
    if isinstance(error, urllib.error.HTTPError):
        return f"it answered {error.code}"
    reason = getattr(error, "reason", error)
    if isinstance(reason, ssl.SSLCertVerificationError):
        return "its certificate is not trusted"
    if isinstance(reason, TimeoutError):
        return f"no answer within {SEND_S:.0f} s"
    return f"it did not answer ({type(reason).__name__})"


def make_notifier(request: RunRequest, *, clock: Callable[[], float]) -> Notifier | None:
    """Return what tells the user's address of a run; None if there is none."""
    if request.notify is None:
        return None
    folder, budget = request.folder, request.loaded.config.budget
    return Notifier(
        post=post_to(request.notify),
        path=folder.root / "notified.json",
        budget=Budget(usd=budget.usd, hours=budget.hours, evictions=budget.evictions),
        events=lambda: read(folder.journal),
        clock=clock,
        on_message=request.console.log,
    )
