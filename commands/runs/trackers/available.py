"""Names the trackers there are, and makes those of a run; their libraries are imported later."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from commands.runs.config import LoadedConfig
from commands.runs.track_table import TrackTable
from commands.runs.trackers.mlflow import URI_ENV, MlflowTracker
from commands.runs.trackers.tracker import Tracker
from commands.runs.trackers.trackio import TrackioTracker
from commands.runs.trackers.wandb import WandbTracker

PACKAGES: Mapping[str, tuple[str, ...]] = {
    "trackio": ("trackio",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow-skinny", "sqlalchemy", "alembic"),
}
"""What each imports; an extra of the same name brings it."""
QUIET: Mapping[str, str] = {
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_SILENT": "true",
}
"""What the libraries would do beside their work, unless the user's environment says otherwise."""
SECRETS = ("WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "HF_TOKEN")


def make_trackers(
    loaded: LoadedConfig, table: TrackTable, environ: Mapping[str, str]
) -> dict[str, Callable[[], Tracker]]:
    """Return how each tracker of the table is made, by its name."""
    makers: dict[str, Callable[[], Tracker]] = {}
    if (trackio := table.trackio) is not None:
        makers["trackio"] = lambda: TrackioTracker(trackio)
    if (wandb := table.wandb) is not None:
        makers["wandb"] = lambda: WandbTracker(wandb, folder=loaded.out)
    if (mlflow := table.mlflow) is not None:
        uri = environ.get(URI_ENV)
        makers["mlflow"] = lambda: MlflowTracker(mlflow, folder=loaded.folder, uri=uri)
    return makers


def while_running(table: TrackTable) -> tuple[str, ...]:
    """Return the trackers that get rows while the run goes on.

    Each sending to Weights & Biases offline is a folder of its own, so that waits for the end.
    """
    offline = table.wandb is not None and table.wandb.mode == "offline"
    return tuple(name for name in table.names if name != "wandb" or not offline)


def redacted(text: str, environ: Mapping[str, str]) -> str:
    """Return a message of a library without the user's keys."""
    for name in SECRETS:
        if value := environ.get(name, "").strip():
            text = text.replace(value, "***")
    return text
