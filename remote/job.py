"""Starts, watches and stops a process on the machine that outlives the connection."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from remote.errors import Garbled
from remote.on_machine import job_agent
from remote.remote_script import RemoteScript
from remote.ssh import SshConnection
from remote.untrusted import number, table, texts, whole

CALL_S = 60.0
EXIT_CODE_MAX = 255
TIME_S_MAX = 253402300799.0
"""The last second of the year 9999."""
ARGUMENTS_MAX = 10_000
"""Of a command line."""
TAIL_BYTES = 256 << 10


class JobState(StrEnum):
    """The state of a job."""

    ABSENT = "absent"
    """It was never started in this directory."""
    RUNNING = "running"
    """A process of it is alive, by the kernel's lock."""
    EXITED = "exited"
    """It ended, and its exit code is known."""
    LOST = "lost"
    """It is gone without an exit code: killed with its supervising process, or by a power cut."""


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """The state of a job at one moment, and how it was started."""

    state: JobState
    exit_code: int | None = None
    """As a shell reports it: 143 for SIGTERM, 137 for SIGKILL; None unless it exited."""
    attempt: int = 0
    """Number of starts in this directory."""
    pid: int | None = None
    """The process id over there; for people only."""
    argv: tuple[str, ...] = ()
    started_at: float | None = None
    """Seconds since 1970 by the machine's clock."""
    ended_at: float | None = None
    log_bytes: int = 0
    started: bool = False
    """Whether this very call to `start` started it."""


@dataclass(frozen=True, kw_only=True)
class Tail:
    """A part of the log."""

    data: bytes
    """Not cut at lines or characters: keep what is incomplete until the next part."""
    offset: int
    """Where the next part begins."""
    status: JobStatus


@dataclass(frozen=True, kw_only=True)
class Job:
    """One job in one directory there, relative to the user's home. Every method is idempotent."""

    connection: SshConnection
    directory: str
    python: str = "python3"
    """The interpreter that runs our script there, at least 3.8; not the job's own."""

    def start(
        self, argv: Sequence[str], *, env: Mapping[str, str], cwd: str, secret: str = ""
    ) -> JobStatus:
        """Start the job, unless it runs already: two callers at once start one process.

        `env` is added to the environment of the login; `cwd` is relative to the user's home. All
        output is appended to `job.log`. `secret` is what the job can read from its stdin, once: it
        goes through the SSH channel and a pipe, and is in no file, command line or environment
        there. A job that has ended is started anew, as attempt n + 1.
        Raises `RemoteError` if the program cannot be started, `Unreachable` if the connection is
        cut (then it may have started: ask for its status before anything else).
        """
        more = {"secret": secret} if secret else {}
        return self._request_status("start", argv=list(argv), env=dict(env), cwd=cwd, **more)

    def status(self) -> JobStatus:
        """Return the state now; waits for nothing but the connection."""
        return self._request_status("status")

    def tail(self, offset: int = 0, limit: int = TAIL_BYTES) -> Tail:
        """Read at most `limit` bytes of the log from `offset` (negative: counted from its end).

        The status comes with it, read after the log, so that one round trip follows a job, and the
        log of a job that is no longer running is complete once `data` is empty.
        """
        answer = self._call("tail", CALL_S, offset=offset, limit=limit, status=True)
        encoded, after = answer.get("data"), whole(answer.get("offset"))
        if not isinstance(encoded, str) or after is None:
            raise Garbled(f"{self.connection.host} sent a log that is none")
        try:
            data = base64.b64decode(encoded, validate=True)
        except ValueError as error:  # binascii.Error is one
            raise Garbled(f"{self.connection.host} sent a log that is none") from error
        status = read_status(answer.get("status"), source=str(self.connection.host))
        return Tail(data=data[:limit], offset=after, status=status)

    def stop(self, grace_s: float = 30.0) -> JobStatus:
        """Stop the job: SIGTERM to all of it, SIGKILL after `grace_s`; no error if it is over."""
        answer = self._call("stop", grace_s + CALL_S, grace_s=grace_s)
        return read_status(answer, source=str(self.connection.host))

    def _request_status(self, verb: str, **request: Any) -> JobStatus:
        return read_status(self._call(verb, CALL_S, **request), source=str(self.connection.host))

    def _call(self, verb: str, timeout_s: float, **request: Any) -> dict[str, Any]:
        script = RemoteScript(
            connection=self.connection, path=Path(job_agent.__file__), python=self.python
        )
        return script.call(verb, {"directory": self.directory, **request}, timeout_s=timeout_s)


def read_status(answer: object, *, source: str) -> JobStatus:
    """Check the machine's description of a job; raises `Garbled` if it is malformed."""
    found = table(answer)
    argv = texts(found.get("argv") or [], most=ARGUMENTS_MAX)
    malformed = [key for key, read in _NUMBERS.items() if _is_malformed(found.get(key), read)]
    state = found.get("state")
    if not isinstance(state, str) or state not in set(JobState) or argv is None or malformed:
        raise Garbled(f"{source} described a job in a way that is none")
    return JobStatus(
        state=JobState(state),
        exit_code=whole(found.get("exit_code"), most=EXIT_CODE_MAX),
        attempt=whole(found.get("attempt")) or 0,
        pid=whole(found.get("pid")) or None,
        argv=argv,
        started_at=number(found.get("started_at"), most=TIME_S_MAX),
        ended_at=number(found.get("ended_at"), most=TIME_S_MAX),
        log_bytes=whole(found.get("log_bytes")) or 0,
        started=found.get("started") is True,
    )


def _is_malformed(value: object, read: Callable[[object], float | None]) -> bool:
    """Whether a value is given, and not of its kind."""
    return value is not None and read(value) is None


_NUMBERS: Mapping[str, Callable[[object], float | None]] = {
    "exit_code": lambda value: whole(value, most=EXIT_CODE_MAX),
    "attempt": whole,
    "pid": whole,
    "started_at": lambda value: number(value, most=TIME_S_MAX),
    "ended_at": lambda value: number(value, most=TIME_S_MAX),
    "log_bytes": whole,
}
