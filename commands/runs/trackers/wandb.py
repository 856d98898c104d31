"""Sends to Weights & Biases, or writes folders for `wandb sync`.

What is logged is on its way only until the run is finished, so every call opens the run of this id
and finishes it. Steps below the last one that the service has are dropped there: sending again is
harmless. Nothing of this computer goes along: no output, no figures, no program, no name.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from commands.runs.track_table import WandbTable
from commands.runs.trackers.tracker import TrackedRow, TrackedRun


class WandbTracker:
    """One project; `folder` is where the library keeps its files, and those of offline runs."""

    def __init__(self, table: WandbTable, *, folder: Path) -> None:
        self._table = table
        self._folder = folder

    def send(self, run: TrackedRun, rows: Sequence[TrackedRow]) -> None:
        """See `Tracker.send`."""
        import wandb

        self._folder.mkdir(parents=True, exist_ok=True)
        opened = wandb.init(
            project=self._table.project,
            entity=self._table.entity,
            mode=self._table.mode,
            dir=str(self._folder),
            id=run.id,
            name=run.name,
            config=dict(run.config),
            notes="\n".join(run.ending.notes) if run.ending else None,
            resume="allow",
            reinit="finish_previous",
            settings=wandb.Settings(
                console="off",
                silent=True,
                host="home",
                disable_git=True,
                disable_code=True,
                disable_job_creation=True,
                x_disable_machine_info=True,
                x_disable_meta=True,
                x_disable_stats=True,
            ),
        )
        done = False
        try:
            for row in rows:
                opened.log(
                    {**row.metrics, "wall_s": row.at_s, "_timestamp": row.at_s}, step=row.step
                )
            if run.ending is not None:
                opened.summary.update(dict(run.ending.summary))
            done = run.ending is None or run.ending.done
        finally:
            opened.finish(exit_code=0 if done else 1)
