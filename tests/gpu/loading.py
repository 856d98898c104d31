"""Loads what a run directory describes by the trainer's own functions, in the process at hand."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class LoadedRun:
    """Rows, tokenizer and schedule of a run, and its base without an adapter."""

    job: Any
    prepared: Any
    base: Any


def log_line(text: str) -> None:
    """Write a line to the log of the process."""
    sys.stderr.write(f"{text}\n")


def load_run(run_dir: Path) -> LoadedRun:
    """Load the run; its base comes from the store of this machine if it is there."""
    from trainer import model as models
    from trainer.atomic import RealDisk
    from trainer.config import load_config
    from trainer.eviction import PreemptionFlag
    from trainer.job.context import JobContext, JobOptions
    from trainer.job.prepare import prepare_inputs
    from trainer.job.store_base import storing
    from trainer.rundir.layout import CONFIG, data_facts
    from trainer.rundir.status import HeartbeatWriter

    config = load_config(run_dir / CONFIG)
    job = JobContext(
        options=JobOptions(run_dir=run_dir),
        config=config,
        inputs=data_facts(config, run_dir),
        heartbeat=HeartbeatWriter(
            run_dir / "status.json", disk=RealDisk(), now=lambda: datetime.now(UTC)
        ),
        flag=PreemptionFlag(time.monotonic),
        on_message=log_line,
    )
    prepared = prepare_inputs(job)
    with storing(job, prepared) as stored:
        base = models.load_base(
            prepared.source,
            config.method,
            precision=prepared.precision,
            device=prepared.device,
            stored=stored,
        )
    return LoadedRun(job=job, prepared=prepared, base=base)
