"""Appends the record of one run: intent before every act that costs money, result after it.

One JSON object a line, fsynced before the caller goes on. Killed between any two bytes it stays
readable: a torn line was never acknowledged and carries no number, so the numbers have no gap; a
gap therefore means that an acknowledged line was lost, and is an error.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, StrEnum
from pathlib import Path
from typing import Any

from infra.durable import append_line
from infra.untrusted import NotPlain, number, parse

FORMAT_VERSION = 1
LINE_BYTES_MAX = 16 << 20
TIME_S_MAX = 253402300799.0
"""The last second of the year 9999."""


class Kind(StrEnum):
    """The kinds of events; `*_intended` comes before the act, its result after."""

    RUN_STARTED = "run_started"
    RUN_RESUMED = "run_resumed"
    CREATE_INTENDED = "create_intended"
    CREATE_ACCEPTED = "create_accepted"
    CREATE_FAILED = "create_failed"
    START_INTENDED = "start_intended"
    START_ACCEPTED = "start_accepted"
    START_FAILED = "start_failed"
    RUNNING_SEEN = "running_seen"
    ADDRESS_SEEN = "address_seen"
    STOP_SEEN = "stop_seen"
    STOP_EXPLAINED = "stop_explained"
    PRICE_SEEN = "price_seen"
    HOST_KEY_INTENDED = "host_key_intended"
    HOST_KEY_CHANGED = "host_key_changed"
    HOST_KEY_KEPT = "host_key_kept"
    PREPARED = "prepared"
    SAFEGUARDS_SET = "guarded"
    LAUNCH_INTENDED = "launch_intended"
    LAUNCHED = "launched"
    PROGRESS = "progress"
    CHECKPOINT_HOME = "checkpoint_home"
    EVICT_INTENDED = "evict_intended"
    EVICT_REQUESTED = "evict_requested"
    TRAINER_EXITED = "trainer_exited"
    TRAINER_HUNG = "trainer_hung"
    MACHINE_UNREACHABLE = "machine_unreachable"
    TRAINED = "trained"
    FETCHED = "fetched"
    DEALLOCATE_INTENDED = "deallocate_intended"
    DEALLOCATED = "deallocated"
    DELETE_INTENDED = "delete_intended"
    DELETED = "deleted"
    RUN_ENDED = "run_ended"


RELEASE_INTENTS = {Kind.DEALLOCATE_INTENDED, Kind.DELETE_INTENDED}
"""What this run writes down before it gives a machine back."""


class Outcome(Enum):
    """How a run ended; the value is the `code` that the journal holds."""

    DONE = 0
    BAD_INPUT = 2
    CLOUD_REFUSED = 3
    MACHINE_FAILED = 4
    """It does not answer, is not the one it claims to be, or cannot do the work."""
    TRAINING_FAILED = 5
    BUDGET_REACHED = 6
    STOPPED_BY_USER = 130
    """Somebody stopped the machine in the cloud, or typed `qft down`."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """One line of the journal."""

    number: int
    """From 1, without gaps."""
    at_s: float
    """Wall clock, seconds since the epoch."""
    kind: Kind
    data: dict[str, Any]


class JournalDamaged(Exception):  # noqa: N818  (printed for people)
    """An acknowledged line is missing or changed: somebody edited it, or the disk lies.

    Nothing is repaired silently, because money depends on it.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"`{path}` is damaged: {reason}")
        self.hint = (
            "the machines are the truth: `qft ls --all` lists them, "
            "`qft down --all` releases them, with `--delete` it removes them"
        )


class Journal:
    """Appends durably and remembers what was appended; one writer at a time (see `RunLock`)."""

    def __init__(self, path: Path, *, clock: Callable[[], float]) -> None:
        self._path = path
        self._clock = clock
        self._events = list(read(path))

    @property
    def events(self) -> tuple[Event, ...]:
        """All events so far, oldest first."""
        return tuple(self._events)

    def append(self, kind: Kind, **data: Any) -> Event:
        """Write one event and return when it is on the disk.

        Raises OSError if it cannot be written; then the act it announces must not happen.
        """
        event = Event(
            number=len(self._events) + 1, at_s=self._clock(), kind=kind, data=_plain(data)
        )
        line = json.dumps(
            {"v": FORMAT_VERSION, "n": event.number, "at": event.at_s, "kind": kind, **event.data},
            separators=(",", ":"),
        )
        self._path.parent.mkdir(parents=True, exist_ok=True)
        append_line(self._path, line)
        self._events.append(event)
        return event


def read(path: Path) -> list[Event]:
    """Read a journal without touching it; a missing one is empty, torn lines are left out.

    Raises JournalDamaged if an acknowledged line is missing.
    """
    if not path.exists():
        return []
    events: list[Event] = []
    for line in path.read_bytes().split(b"\n"):
        event = _parse(path, line)
        if event is None:
            continue
        if event.number != len(events) + 1:
            raise JournalDamaged(path, f"event {len(events) + 1} is missing")
        events.append(event)
    return events


def _parse(path: Path, line: bytes) -> Event | None:
    """Parse one event; None for a line that a crash tore."""
    try:
        raw = parse(line, bytes_max=LINE_BYTES_MAX)
    except NotPlain:
        return None
    if not isinstance(raw, dict) or raw.get("v") != FORMAT_VERSION:
        raise JournalDamaged(path, f"it is not of version {FORMAT_VERSION}, or foreign")
    try:
        at_s = number(raw.pop("at"), most=TIME_S_MAX)
        if at_s is None:
            raise ValueError("it has no time")  # noqa: TRY301  (handled as the others)
        return Event(
            number=int(raw.pop("n")),
            at_s=at_s,
            kind=Kind(raw.pop("kind")),
            data={key: value for key, value in raw.items() if key != "v"},
        )
    except (ValueError, KeyError, TypeError) as error:
        raise JournalDamaged(path, f"an event cannot be read: {error}") from error


def _plain(data: dict[str, Any]) -> dict[str, Any]:
    """Round-trip through JSON, so that what is remembered equals what will be read."""
    plain: dict[str, Any] = json.loads(json.dumps(data))
    return plain
