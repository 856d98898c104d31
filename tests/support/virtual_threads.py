"""Threads under a clock that is a number: one runs at a time, and always the same one next.

A thread that sleeps lets the one go on that wakes first, and the clock jumps to then. `Killed` ends
all of them where they are, as SIGKILL ends a process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from support.fakecloud import Killed, World

JOIN_S_MAX = 60.0


@dataclass(eq=False)
class _Turn:
    """A thread that waits for its turn, or has it."""

    number: int
    wake_s: float
    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))


@dataclass
class ThreadedWorld(World):
    """A world whose `sleep` hands over to another thread; `start` begins one."""

    dead: bool = False
    """Whether the process was killed and its threads are not all gone yet."""
    switches: int = 0
    """How often another thread went on."""

    def __post_init__(self) -> None:
        self._main = self._current = _Turn(number=0, wake_s=self.now_s)
        self._waiting: list[_Turn] = []
        self._threads: list[threading.Thread] = []
        self._started = 0
        self._draining = False

    def start(self, run: Callable[[], None], name: str) -> None:
        """Begin a thread; it runs when the present one sleeps."""
        self._started += 1
        turn = _Turn(number=self._started, wake_s=self.now_s)

        def body() -> None:
            turn.go.acquire()
            if not self._draining:
                run()
            self._leave()

        thread = threading.Thread(target=body, name=name, daemon=True)
        self._waiting.append(turn)
        self._threads.append(thread)
        thread.start()

    def sleep(self, wait_s: float) -> None:
        """Let time pass, and whoever wakes first go on."""
        if self.dead and self._current is not self._main:
            raise Killed
        me = self._current
        me.wake_s = self.now_s + max(0.0, wait_s)
        self._waiting.append(me)
        chosen = self._choose()
        if chosen is not me:
            self._hand_over(chosen)
            me.go.acquire()
        if self.dead:
            raise Killed

    def moment(self) -> None:
        """A kill could come here."""
        if self.dead:
            raise Killed
        try:
            super().moment()
        except Killed:
            self.dead = True
            raise

    def drain(self) -> None:
        """End what threads the process has left, without letting time pass; then it may be anew."""
        self.dead = self._draining = True
        while self._waiting:
            self._hand_over(self._waiting.pop(0))
            self._main.go.acquire()
        for thread in self._threads:
            thread.join(JOIN_S_MAX)
            assert not thread.is_alive()
        self.dead = self._draining = False
        self._threads.clear()
        self._current, self._started = self._main, 0

    def _leave(self) -> None:
        """End the present thread."""
        self._hand_over(self._main if self._draining else self._choose())

    def _choose(self) -> _Turn:
        """Take whoever wakes first from those who wait, and let the clock jump there."""
        if self.dead:  # nothing goes on any more but the end
            self._waiting.remove(self._main)
            return self._main
        chosen = min(self._waiting, key=lambda one: (one.wake_s, one.number))
        self._waiting.remove(chosen)
        self.now_s = max(self.now_s, chosen.wake_s)
        return chosen

    def _hand_over(self, turn: _Turn) -> None:
        self.switches += 1
        self._current = turn
        turn.go.release()
