"""Sends to MLflow: a database file here, or a server.

A metric of the same key, step, time and value counts once there, which is what makes sending again
harmless. The run is found by a tag, so that there is one through all evictions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from commands.runs.track_table import MlflowTable
from commands.runs.trackers.tracker import RunEnding, TrackedRow, TrackedRun

URI_ENV = "MLFLOW_TRACKING_URI"
DEFAULT_URI = "sqlite:///mlflow.db"
METRICS_MAX = 1000
"""A request to a server may hold so many."""
PARAMS_MAX = 100
PARAM_CHARS_MAX = 500
RUN_TAG = "qft_run"


class MlflowTracker:
    """One experiment of a store; `folder` is where relative names of a database begin."""

    def __init__(self, table: MlflowTable, *, folder: Path, uri: str | None) -> None:
        self._uri = absolute_uri(table.uri or uri or DEFAULT_URI, folder)
        self._experiment = table.experiment
        self._client: Any = None

    def send(self, run: TrackedRun, rows: Sequence[TrackedRow]) -> None:
        """See `Tracker.send`."""
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        if self._client is None:
            self._client = MlflowClient(tracking_uri=self._uri)
        run_id = self._run_id(run)
        metrics = (
            Metric(key, value, round(row.at_s * 1000), row.step)
            for row in rows
            for key, value in row.metrics.items()
        )
        for part in chunks(metrics, METRICS_MAX):
            self._client.log_batch(run_id, metrics=part)
        if rows or run.ending is not None:  # what is the same as before, a server takes again
            params = [Param(key, str(value)[:PARAM_CHARS_MAX]) for key, value in run.config.items()]
            for part in chunks(params, PARAMS_MAX):
                self._client.log_batch(run_id, params=part)
        if run.ending is None:
            self._client.update_run(run_id, status="RUNNING")
        else:
            self._end(run_id, run.ending)

    def _end(self, run_id: str, ending: RunEnding) -> None:
        from mlflow.entities import Metric

        at_ms = round(ending.at_s * 1000)
        metrics = [Metric(key, value, at_ms, ending.step) for key, value in ending.summary.items()]
        self._client.log_batch(run_id, metrics=metrics)
        if ending.notes:
            self._client.set_tag(run_id, "mlflow.note.content", "\n".join(ending.notes))
        status = "FINISHED" if ending.done else "FAILED"
        self._client.set_terminated(run_id, status=status, end_time=at_ms)

    def _run_id(self, run: TrackedRun) -> str:
        """Return MLflow's id of the run, which is made if it is not there."""
        client = self._client
        experiment = client.get_experiment_by_name(self._experiment)
        number = (
            experiment.experiment_id if experiment else client.create_experiment(self._experiment)
        )
        found = client.search_runs([number], filter_string=f"tags.{RUN_TAG} = '{run.id}'")
        if found:
            return str(found[0].info.run_id)
        made = client.create_run(
            number,
            start_time=round(run.started_s * 1000),
            tags={RUN_TAG: run.id},
            run_name=run.name,
        )
        return str(made.info.run_id)


def absolute_uri(uri: str, folder: Path) -> str:
    """Let the relative file of a SQLite URI begin in a folder; other URIs stay as they are."""
    start = "sqlite:///"
    name = uri.removeprefix(start)
    if not uri.startswith(start) or name.startswith("/"):
        return uri
    return f"{start}{folder.absolute() / name}"


def chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yield lists of at most `size` items."""
    rest = iter(items)
    while part := list(islice(rest, size)):
        yield part
