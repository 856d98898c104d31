"""Waits for the other ranks without ever being stuck: polls, and leaves when one is gone.

A thread writes a heartbeat of this rank into the store and reads those of the others, with a
connection of its own. So a rank in a long backward pass is alive, and one that was stopped, or
whose machine is gone, is not. A rank that is killed is noticed sooner, since its sockets close.
Time only counts in small pieces: a machine that sleeps for a minute has heard nobody for a second.

With its heartbeat a rank says where it waits. If all of them wait and none gets on, they wait in
different operations, for each other: then they leave, and say where each was.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from trainer.errors import PeerLost, Preempted
from trainer.eviction import OF_PEER, PreemptionFlag

BEAT_S = 0.25
SILENT_S = 15.0
"""Without a heartbeat for so long a rank counts as lost,"""
SILENT_NOTICED_S = 3.0
"""or for so long once a notice is there: then time is short."""
STUCK_S = 900.0
"""If all ranks wait for so long in the same waits, nothing is under way that could end them. On a
card a wait includes the passes that were launched before it, and one pass takes minutes at most."""
LEAVE_S = 4.0
"""With so little time left before the announced end nobody is waited for any more."""
PIECE_S = 1.0
"""A pause between two looks counts as no more than this."""
PAUSE_S_MIN, PAUSE_S_MAX = 5e-5, 2e-3
NOTICE, LOST = "notice", "lost"
"""Why a rank has left, in front of a colon and more."""


class Completable(Protocol):
    """Something that goes on in the background: a collective operation, a thread."""

    def is_completed(self) -> bool:
        """Tell whether it has ended, well or badly."""

    def wait(self) -> Any:
        """Return what came of it, or raise what went wrong."""


class SilentTime:
    """Counts for how long a value has not changed, a long pause between looks as a short one."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last: object = None
        self._looked_s: float | None = None
        self.seconds = 0.0

    def look(self, value: object) -> None:
        """Take the present value."""
        now = self._clock()
        passed = 0.0 if self._looked_s is None else min(PIECE_S, now - self._looked_s)
        self.seconds = self.seconds + passed if value == self._last else 0.0
        self._last, self._looked_s = value, now


class Watch:
    """Exchanges heartbeats through the store, and knows who is silent or has left."""

    def __init__(
        self, store: Any, *, rank: int, size: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.rank = rank
        self.size = size
        self.polls = 0
        self.silent_s: dict[int, float] = {}
        self.waits = 0
        """How many waits this rank has begun."""
        self.place = ""
        """Where in the program this rank waits; empty while it does not."""
        self.seen: dict[int, str] = {}
        """Of each other rank, the number of its waits and the place of the present one."""
        self.left: dict[int, str] = {}
        """Why each rank has left that has."""
        self.error = ""
        """What was wrong when the store failed."""
        self._store = store
        self._silences = {other: SilentTime(clock) for other in range(size) if other != rank}
        self._leaving = ""
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="peer-watch", daemon=True)

    def start(self) -> None:
        """Begin; the keys of all ranks are in the store."""
        self._thread.start()

    def close(self, leaving: str = "") -> None:
        """End the thread, and first let the others know why this rank leaves.

        A store that does not answer is not waited for.
        """
        self._leaving = leaving
        self._closed.set()
        self._thread.join(timeout=1.0)

    def everywhere(self) -> list[str]:
        """Return for each rank the number of its waits and where it waits, if it does."""
        own = f"{self.waits} {self.place}"
        return [own if one == self.rank else self.seen.get(one, "") for one in range(self.size)]

    def _run(self) -> None:
        try:
            while not self._closed.is_set():
                self._poll()
                self._closed.wait(BEAT_S)
            if self._leaving:
                self._store.set(left_key(self.rank), self._leaving)
        except Exception as error:  # noqa: BLE001 - whatever it is: the store of rank 0 is gone
            self.error = " ".join(str(error).split())[:200] or type(error).__name__

    def _poll(self) -> None:
        beat = f"{self.polls} {self.waits} {self.place}"
        self._store.set(beat_key(self.rank), beat)
        others = [*self._silences]
        keys = [key(other) for key in (beat_key, left_key) for other in others]
        found = self._store.multi_get(keys) if keys else []
        for at, other in enumerate(others):
            self._silences[other].look(found[at])
            self.silent_s[other] = self._silences[other].seconds
            self.seen[other] = bytes(found[at]).decode().partition(" ")[2]
            reason = bytes(found[len(others) + at]).decode()
            if reason != PRESENT:
                self.left[other] = reason
        self.polls += 1


def place_of_wait() -> str:
    """Return which function outside this folder waits, and in which line."""
    here, frame = Path(__file__).parent, inspect.currentframe()
    inner = {str(path) for path in here.glob("*.py")} | {contextlib.__file__}
    while frame is not None and frame.f_code.co_filename in inner:
        frame = frame.f_back
    if frame is None:
        return "?"
    code = frame.f_code
    return f"{code.co_name} ({Path(code.co_filename).name}:{frame.f_lineno})"


PRESENT = "-"
"""The value of `left_key` as long as a rank is there."""


def beat_key(rank: int) -> str:
    """Return the key under which the store has a rank's heartbeat."""
    return f"beat/{rank}"


def left_key(rank: int) -> str:
    """Return the key under which a rank says why it leaves."""
    return f"left/{rank}"


class Waiter:
    """Waits for collective operations as long as all ranks are alive and there is time."""

    def __init__(  # noqa: PLR0913 - two limits, and a clock for tests
        self,
        watch: Watch,
        flag: PreemptionFlag,
        *,
        silent_s: float = SILENT_S,
        stuck_s: float = STUCK_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._watch = watch
        self._flag = flag
        self._silent_s = silent_s
        self._stuck_s = stuck_s
        self._store_silence = SilentTime(clock)
        self._stillness = SilentTime(clock)
        self._clock = clock
        self._sleep = sleep
        self._failure: Preempted | None = None
        self.waited_s = 0.0
        """What all waits took, for measurements."""

    def wait(self, works: Sequence[Completable]) -> None:
        """Return when all are done.

        Raises:
            PeerLost: a rank is gone, or silent for too long, or all wait for each other.
            Preempted: a rank left because of a notice, or the time of a notice is running out.
        """
        if self._failure is not None:
            raise self._failure  # nothing that was begun since can end
        self._watch.waits += 1
        try:
            self._wait(works)
        except Preempted as error:
            self._failure = error
            raise
        finally:
            self._watch.place = ""

    def _wait(self, works: Sequence[Completable]) -> None:
        began, pause = self._clock(), PAUSE_S_MIN
        while not all(work.is_completed() for work in works):
            self._watch.place = self._watch.place or place_of_wait()
            self.check()
            self._require_progress()
            self._sleep(pause)
            pause = min(1.5 * pause, PAUSE_S_MAX)
        self.waited_s += self._clock() - began
        try:
            for work in works:
                work.wait()
        except RuntimeError as error:
            self._await_reason()
            self.check()
            what = " ".join(str(error).split())[-160:]
            raise PeerLost(f"the process of another card has ended ({what})") from error

    def _require_progress(self) -> None:
        """Raise `PeerLost` if all ranks wait, and have done so for too long in the same waits."""
        everywhere = self._watch.everywhere()
        self._stillness.look(everywhere)
        places = [one.partition(" ")[2] for one in everywhere]
        if all(places) and self._stillness.seconds > self._stuck_s:
            each = ", ".join(f"card {rank} in {place}" for rank, place in enumerate(places))
            raise PeerLost(f"the cards wait for each other, which is a fault of ours: {each}")

    def _await_reason(self) -> None:
        """Let the watch look once more: a rank that leaves says why before its sockets close."""
        target, deadline = self._watch.polls + 2, self._clock() + 4 * BEAT_S
        while self._watch.polls < target and not self._watch.error and self._clock() < deadline:
            self._sleep(PAUSE_S_MAX)

    def check(self) -> None:
        """Return if all ranks seem to be alive; else raise as `wait` does."""
        watch, flag = self._watch, self._flag
        for other, reason in sorted(watch.left.items()):
            kind, _, more = reason.partition(":")
            if kind == NOTICE:
                if flag.notice is None:
                    flag.set(seconds_left=float(more), reason=f"{OF_PEER} {other}")
                raise Preempted
            raise PeerLost(f"card {other} has left: {more or kind}")
        limit_s = self._silent_s
        if flag.notice is not None:
            limit_s = min(limit_s, SILENT_NOTICED_S)
        for other, silent_s in sorted(watch.silent_s.items()):
            if silent_s > limit_s:
                raise PeerLost(f"card {other} has been silent for {silent_s:.0f} s")
        if watch.rank:
            self._store_silence.look(watch.polls)
            if watch.error:
                raise PeerLost(f"the process of card 0 has ended ({watch.error})")
            if self._store_silence.seconds > limit_s:
                silent_s = self._store_silence.seconds
                raise PeerLost(f"the process of card 0 has been silent for {silent_s:.0f} s")
        if flag.seconds_left < LEAVE_S:
            raise Preempted
