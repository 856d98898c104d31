"""Runs one process at a time limit, ends it when it is asked to, and keeps the whole in its budget.

Whatever a process does, the proof goes on: how it ended is a value. Processes are in groups of
their own, and a group that is still there is killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

LOOK_S = 0.01
LOG_LETTERS = 4000
ERROR_LETTERS = 400


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a process ended: by itself with `code`, killed as asked, or stopped at its limit."""

    code: int | None
    killed: bool = False  # because `until` came true
    stopped: bool = False  # because its time was over
    seconds: float
    out: str = ""
    error: str = ""

    @property
    def fine(self) -> bool:
        """Whether it ended by itself and well."""
        return self.code == 0 and not self.killed and not self.stopped

    @property
    def log(self) -> str:
        """The end of what it said to its error output."""
        return self.error[-LOG_LETTERS:]


class Runner(Protocol):
    """What the cases need of the operating system."""

    def run(
        self, module: str, *arguments: str, limit_s: float, until: Callable[[], bool] | None = None
    ) -> Ended:
        """Run `python -m module`; SIGKILL it as soon as `until` is true, or after `limit_s`."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The seconds that all of it may take, from `began_s` of the clock."""

    limit_s: float
    clock: Callable[[], float]
    began_s: float

    @property
    def spent_s(self) -> float:
        """Seconds since the beginning."""
        return self.clock() - self.began_s

    @property
    def left_s(self) -> float:
        """Seconds that are left, never below zero."""
        return max(0.0, self.limit_s - self.spent_s)


def summary(ended: Ended, *, limit_s: float) -> str:
    """Say in a line how a process that did not end well ended."""
    if ended.stopped:
        return f"stopped: not done after {limit_s:.0f} s{_last(ended.error)}"
    if ended.code is not None and ended.code < 0:
        number = -ended.code
        has_name = number in set(signal.Signals)
        name = signal.Signals(number).name if has_name else f"signal {number}"
        return f"ended by {name}{_last(ended.error)}"
    return f"exit {ended.code}{_last(ended.error)}"


def _last(text: str) -> str:
    """Return what an error output ends with, in one line with a colon in front; often the cause."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    parts = [line for line in lines[-12:] if "Error" in line] or lines[-2:]
    message = " / ".join(parts[-3:])
    return f": {message[:ERROR_LETTERS]}" if message else ""


@dataclass(kw_only=True)
class Processes:
    """Starts real processes; `close` ends those that still run."""

    python: str
    environment: Mapping[str, str]
    root: Path
    logs: Path

    _running: set[int] = field(default_factory=set, init=False)
    _closed: bool = field(default=False, init=False)
    _count: int = field(default=0, init=False)
    _lock: threading.RLock = field(default_factory=threading.RLock, init=False)

    def run(
        self, module: str, *arguments: str, limit_s: float, until: Callable[[], bool] | None = None
    ) -> Ended:
        """See `Runner`."""
        with self._lock:
            self._count += 1
            log = self.logs / f"{self._count:03}-{module}"
        out, error = log.with_suffix(".out"), log.with_suffix(".err")
        with out.open("wb") as stdout, error.open("wb") as stderr:
            ended = self._run((module, *arguments), (stdout, stderr), limit_s, until)
        code, killed, stopped, seconds = ended
        return Ended(
            code=code,
            killed=killed,
            stopped=stopped,
            seconds=seconds,
            out=out.read_text(encoding="utf-8", errors="replace"),
            error=error.read_text(encoding="utf-8", errors="replace"),
        )

    def _run(
        self,
        command: Sequence[str],
        streams: tuple[object, object],
        limit_s: float,
        until: Callable[[], bool] | None,
    ) -> tuple[int | None, bool, bool, float]:
        began_s = time.monotonic()
        with self._lock:
            if self._closed:
                return None, False, True, 0.0
            process = subprocess.Popen(
                [self.python, "-m", *command],
                cwd=self.root,
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=streams[0],  # type: ignore[call-overload]
                stderr=streams[1],
                start_new_session=True,
            )
            self._running.add(process.pid)
        killed = stopped = False
        try:
            while process.poll() is None:
                killed = until is not None and until()
                stopped = not killed and time.monotonic() - began_s > limit_s
                if killed or stopped:
                    break
                time.sleep(LOOK_S)
        finally:
            end_group(process.pid)
            process.wait()
            with self._lock:
                self._running.discard(process.pid)
        # It may have ended by itself between the last look and the kill.
        killed = killed and process.returncode == -signal.SIGKILL
        return process.returncode, killed, stopped, time.monotonic() - began_s

    def close(self) -> None:
        """Kill what still runs, and start nothing more; a signal handler may call it."""
        with self._lock:
            self._closed = True
            for pid in self._running:
                end_group(pid)


def end_group(pid: int) -> None:
    """Kill the process group that `pid` leads, if it is there."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
