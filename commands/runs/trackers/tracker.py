"""The seam to trackers: one method, which may be called again with what was sent before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class TrackedRow:
    """The metrics of one step: finite numbers, and when it was done (seconds since 1970)."""

    step: int
    at_s: float
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class RunEnding:
    """How a run ended: its last step, its final figures, and notes such as its evictions."""

    number: int
    """Of the event in the journal: another ending of the same run has another number."""
    at_s: float
    done: bool
    step: int
    summary: Mapping[str, float]
    notes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """A run as trackers know it: one there, however many machines it takes."""

    id: str
    """Of the journal: it stays the same through evictions, and `--fresh` gives another."""
    name: str
    started_s: float
    config: Mapping[str, str | float] = field(default_factory=dict)
    ending: RunEnding | None = None
    """Of a run that has ended, in the call with its last rows; else None."""


class Tracker(Protocol):
    """A place where metrics are kept and shown."""

    def send(self, run: TrackedRun, rows: Sequence[TrackedRow]) -> None:
        """Add rows to the run, which is made if it is not there; return once they are kept.

        Rows come in the order of their steps. After a crash the same rows come again, equal to the
        last bit: they must count once. With an ending, its figures and notes are added and the run
        is closed; a later row, or another ending, opens it again. Raises whatever the tracker's
        library raises.
        """
        ...
