"""Sends to Trackio's database on this computer.

Its public `log` takes no time and doubles a step that is sent twice; `bulk_log` takes both times
and ids by which a row counts once. It is internal, so the version is bounded (`qft[trackio]`) and
its parameters are looked at before it is used.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from commands.runs.track_table import TrackioTable
from commands.runs.trackers.tracker import TrackedRow, TrackedRun
from infra.timestamps import format_utc

PARAMETERS = frozenset(
    {"project", "run", "metrics_list", "steps", "timestamps", "config", "log_ids", "run_id"}
)


class TrackioTracker:
    """One project of the database."""

    def __init__(self, table: TrackioTable) -> None:
        self._project = table.project

    def send(self, run: TrackedRun, rows: Sequence[TrackedRow]) -> None:
        """See `Tracker.send`; the ending is one more row at the last step."""
        from trackio.sqlite_storage import SQLiteStorage

        if lacking := PARAMETERS - {*inspect.signature(SQLiteStorage.bulk_log).parameters}:
            raise RuntimeError(f"this version of trackio takes no `{min(lacking)}`")
        entries: list[dict[str, Any]] = [
            {"id": f"{run.id}-{row.step}", "step": row.step, "at_s": row.at_s, "of": row.metrics}
            for row in rows
        ]
        if run.ending is not None:
            end = run.ending
            entries.append(
                {
                    "id": f"{run.id}-end-{end.number}",
                    "step": end.step,
                    "at_s": end.at_s,
                    "of": end.summary,
                }
            )
        notes = {"notes": "\n".join(run.ending.notes)} if run.ending and run.ending.notes else {}
        SQLiteStorage.bulk_log(
            project=self._project,
            run=run.name,
            metrics_list=[dict(entry["of"]) for entry in entries],
            steps=[entry["step"] for entry in entries],
            timestamps=[format_utc(entry["at_s"]) for entry in entries],
            config={**run.config, **notes, "qft_run": run.id},
            log_ids=[entry["id"] for entry in entries],
            run_id=run.id,
        )
