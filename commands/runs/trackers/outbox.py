"""Keeps the rows to send and, for each tracker, how far it has them: durably, in the run's folder.

A row is fixed before it is sent for the first time. So what is sent again after a crash is equal to
the last bit, and trackers know it for the same.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from commands.runs.trackers.tracker import TrackedRow
from infra.durable import read_json, sync_directory, write_json
from infra.untrusted import NotPlain, number, parse, table, whole

LINE_BYTES_MAX = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Sent:
    """How far a tracker has a run: its last step, and the number of the ending it knows."""

    step: int = -1
    ending: int = 0


class Outbox:
    """The rows of one run and what was sent of them; one process at a time."""

    def __init__(self, folder: Path) -> None:
        self._rows_path = folder / "rows.jsonl"
        self._sent_path = folder / "sent.json"
        self.rows, self._size = _read_rows(self._rows_path)

    def add(self, rows: Iterable[TrackedRow]) -> None:
        """Fix those of the rows that are further than the ones that are here; raises OSError."""
        last = self.rows[-1].step if self.rows else -1
        fresh = [row for row in rows if row.step > last]
        if not fresh:
            return
        self._rows_path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lines = "".join(
            json.dumps({"step": row.step, "at_s": row.at_s, "metrics": dict(row.metrics)}) + "\n"
            for row in fresh
        ).encode()
        handle = os.open(self._rows_path, os.O_RDWR | os.O_CREAT, 0o600)
        with open(handle, "r+b") as file:  # noqa: PTH123  (a descriptor, not a path)
            file.truncate(self._size)  # what a crash tore
            file.seek(self._size)
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
        sync_directory(self._rows_path.parent)
        self._size += len(lines)
        self.rows += fresh

    def sent(self, tracker: str) -> Sent:
        """Return how far a tracker is."""
        entry = table(table(read_json(self._sent_path)).get(tracker))
        step, ending = whole(entry.get("step")), whole(entry.get("ending"))
        return Sent(step=-1 if step is None else step, ending=ending or 0)

    def note(self, tracker: str, sent: Sent) -> None:
        """Remember how far a tracker is; raises OSError."""
        before = table(read_json(self._sent_path))
        write_json(self._sent_path, {**before, tracker: {"step": sent.step, "ending": sent.ending}})

    def unsent(self, tracker: str) -> Sequence[TrackedRow]:
        """Return the rows that a tracker does not have yet."""
        step = self.sent(tracker).step
        return [row for row in self.rows if row.step > step]


def _read_rows(path: Path) -> tuple[list[TrackedRow], int]:
    """Return the rows of the file, and its bytes up to the end of the last whole one."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return [], 0
    rows: list[TrackedRow] = []
    size = 0
    for line in lines:
        try:
            entry = table(parse(line, bytes_max=LINE_BYTES_MAX))
        except NotPlain:
            break
        step, at_s = whole(entry.get("step")), number(entry.get("at_s"))
        if step is None or at_s is None:
            break
        values = {key: number(value) for key, value in table(entry.get("metrics")).items()}
        metrics = {key: value for key, value in values.items() if value is not None}
        rows.append(TrackedRow(step=step, at_s=at_s, metrics=metrics))
        size += len(line) + 1
    return rows, size
