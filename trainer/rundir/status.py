"""Writes a heartbeat file, and one log line per optimizer step, for whoever watches a training.

Both files are described in `docs/checkpoint.md`. Neither can stop the training: a full disk is
remembered, reported as soon as there is room, and costs no line of the log, which is kept in memory
and in every checkpoint.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from trainer.atomic import Disk, RealDisk, replace_file
from trainer.untrusted import NotPlain, parse, table, whole

HEARTBEAT_S = 2.0
STATUS_BYTES_MAX = 1 << 20
LINE_BYTES_MAX = 1 << 20


class Phase(StrEnum):
    """What the trainer is doing."""

    LOADING = "loading"
    EVALUATING = "evaluating"
    TRAINING = "training"
    SAVING = "saving"
    PREEMPTED = "preempted"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Status:
    """The contents of `status.json`; None where something is unknown yet."""

    version: int = 1
    phase: Phase = Phase.LOADING
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    tokens_per_s: float | None = None
    eta_s: float | None = None
    checkpoint_step: int | None = None
    resumed_from: int | None = None
    resumes: int = 0
    redone_steps: int = 0
    exact: bool = True
    inexact_from: int | None = None
    message: str | None = None
    error: str | None = None
    started_at: str | None = None
    updated_at: str | None = None
    pid: int | None = None


class HeartbeatWriter:
    """Keeps `status.json` fresh from a small thread, so that a hang and a death look different.

    A dead process has a stale `updated_at`; a hung one keeps beating with the same phase and step.
    """

    def __init__(self, path: Path, *, disk: Disk, now: Callable[[], datetime]) -> None:
        self._path = path
        self._disk = disk
        self._now = now
        self.previous = _read_previous(path)
        self._status = replace(self.previous, started_at=_iso(now()), pid=os.getpid())
        self._lock = threading.Lock()
        self._changed = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._write()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._changed.set()
        self._thread.join()
        self._write()

    @property
    def status(self) -> Status:
        """The latest status, whether written yet or not."""
        return self._status

    def update(self, *, at_once: bool = False, **changes: Any) -> None:
        """Change fields of the status; it is written with the next beat, or soon if `at_once`."""
        with self._lock:
            self._status = replace(self._status, **changes)
        if at_once:
            self._changed.set()

    def _run(self) -> None:
        while not self._ended.is_set():
            self._changed.wait(HEARTBEAT_S)
            self._changed.clear()
            self._write()

    def _write(self) -> None:
        with self._lock:
            self._status = replace(self._status, updated_at=_iso(self._now()))
            text = json.dumps(asdict(self._status), indent=1) + "\n"
        with suppress(OSError):  # no room: the next heartbeat comes, training goes on
            replace_file(self._path, text, disk=self._disk)


def write_failure(path: Path, error: str, *, disk: Disk, now: Callable[[], datetime]) -> None:
    """Make the status at `path` say that the trainer failed, for a process that no longer can.

    All else in it stays. Without room, so does the whole file.
    """
    try:
        found = table(parse(path.read_bytes(), bytes_max=STATUS_BYTES_MAX))
    except (OSError, NotPlain):
        found = asdict(Status())
    changed = {**found, "phase": Phase.FAILED, "error": error, "updated_at": _iso(now())}
    with suppress(OSError):  # no room: the log of the job says it
        replace_file(path, json.dumps(changed, indent=1) + "\n", disk=disk)


class MetricsLog:
    """`metrics.jsonl`: one JSON object per optimizer step, in order, each step once.

    Without a path it is kept in memory and in checkpoints only.
    """

    def __init__(self, path: Path | None, lines: Iterable[bytes] = ()) -> None:
        self.path = path
        self._lines = list(lines)
        self._written: int | None = None  # bytes known to be in the file; None: write it anew

    def append(self, record: dict[str, Any]) -> None:
        """Add the record of a step; it reaches the file now, or later if the disk is full."""
        self._lines.append((json.dumps(record) + "\n").encode())
        try:
            self._flush()
        except OSError:
            self._written = None  # a part of a line may be there: rewrite the file next time

    @property
    def last(self) -> dict[str, Any]:
        """The record of the last step, empty if there is none."""
        record: dict[str, Any] = json.loads(self._lines[-1]) if self._lines else {}
        return record

    def amend(self, record: dict[str, Any]) -> None:
        """Replace the record of the last step, which lacked something."""
        self._lines.pop()
        self._written = None
        self.append(record)

    def to_bytes(self) -> bytes:
        """Return the whole log, for a checkpoint."""
        return b"".join(self._lines)

    def sync(self) -> None:
        """Make the file hold this log and nothing else, durably; without room it stays as it is."""
        if self.path is None:
            return
        with suppress(OSError):  # no room: the old file is whole
            replace_file(self.path, self.to_bytes().decode(), disk=RealDisk())
            self._written = self.path.stat().st_size

    def _flush(self) -> None:
        if self.path is None:
            return
        if self._written is None:
            with self.path.open("wb") as file:
                file.write(self.to_bytes())
        else:
            with self.path.open("ab") as file:
                file.write(self._lines[-1])
        self._written = self.path.stat().st_size


def parse_log(data: bytes) -> list[bytes]:
    """Split a log into its whole lines; a torn last line is dropped."""
    return [line + b"\n" for line in data.split(b"\n")[:-1]]


def count_steps(path: Path) -> int:
    """Return the last step in the log at `path`, 0 if there is none; never raises."""
    try:
        return last_step(path.read_bytes()) or 0
    except OSError:
        return 0


def last_step(log: bytes) -> int | None:
    """Return the step of the last whole line, 0 if there is none, None if it has no step."""
    lines = parse_log(log)
    if not lines:
        return 0
    try:
        return whole(table(parse(lines[-1], bytes_max=LINE_BYTES_MAX)).get("step"))
    except NotPlain:
        return None


def _read_previous(path: Path) -> Status:
    """Return the counts that the process before left behind; nothing else of it is used."""
    try:
        raw = table(parse(path.read_bytes(), bytes_max=STATUS_BYTES_MAX))
    except (OSError, NotPlain):
        return Status()
    resumes, redone = whole(raw.get("resumes")), whole(raw.get("redone_steps"))
    return Status(resumes=resumes or 0, redone_steps=redone or 0)


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")
