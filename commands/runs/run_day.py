"""The day on which a run began, which chat templates see from then on."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, date, datetime

from commands.runs.config import LoadedConfig
from commands.runs.home import RunFolder
from infra.run.journal import Event, Kind, read


def day_of_run(loaded: LoadedConfig, folder: RunFolder) -> date | None:
    """Return `data.day`, or the day on which the run began; None if it has not begun."""
    return loaded.config.data.day or (day_begun(read(folder.journal)) if folder.exists() else None)


def day_begun(events: Iterable[Event]) -> date | None:
    """Return the UTC day of a record's beginning, wherever and whenever it is gone on with."""
    began = next((event.at_s for event in events if event.kind is Kind.RUN_STARTED), None)
    return None if began is None else datetime.fromtimestamp(began, tz=UTC).date()
