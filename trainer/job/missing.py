"""Finds out what of a job is missing, and lets the status say how that went."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from trainer.atomic import Disk
from trainer.config import TrainerConfig, load_config
from trainer.errors import PeerLost, Preempted
from trainer.eviction import PreemptionFlag
from trainer.job.context import JobOptions, with_parent
from trainer.job.writers import Writers
from trainer.rundir.fingerprint import Facts, permitted_keys
from trainer.rundir.layout import (
    ADAPTER,
    CONFIG,
    RECEIPT,
    STATUS,
    adapter_done,
    data_facts,
    finished,
    read_table,
)
from trainer.rundir.status import HeartbeatWriter, Phase
from trainer.saving.run_day import fix_day


def open_status(
    options: JobOptions, writers: Writers, *, now: Callable[[], datetime]
) -> HeartbeatWriter:
    """Return what keeps `status.json`; open it before it is used."""
    return HeartbeatWriter(options.run_dir / STATUS, disk=writers.disk, now=now)


@contextmanager
def reported(
    heartbeat: HeartbeatWriter, options: JobOptions, flag: PreemptionFlag
) -> Iterator[None]:
    """Let the status say how the block ended, if by an error."""
    try:
        yield
    except PeerLost as error:
        heartbeat.update(phase=Phase.PREEMPTED, message=f"another card was lost: {error}")
        raise
    except Preempted:
        reason = flag.notice.reason if flag.notice else "notice"
        heartbeat.update(phase=Phase.PREEMPTED, message=f"stopped by {reason}, state saved")
        raise
    except BaseException as error:
        text = f"{type(error).__name__}: {error}"
        text = options.token.hide_in(text) if options.token else text
        heartbeat.update(phase=Phase.FAILED, error=text)
        raise


@dataclass(frozen=True, kw_only=True)
class MissingJob:
    """A job that is not finished: its config, and the SHA-256 of what it learns from."""

    config: TrainerConfig
    inputs: Facts


def find_missing(
    options: JobOptions,
    heartbeat: HeartbeatWriter,
    on_message: Callable[[str], None],
    *,
    disk: Disk,
    now: Callable[[], datetime],
) -> MissingJob | None:
    """Read the config and the data; return None, and say so, if everything is done already."""
    config = load_config(options.run_dir / CONFIG)
    today = now().astimezone(UTC).date()
    config = fix_day(options.run_dir, config, today=today, disk=disk)
    config = with_parent(config, options.run_dir)
    permitted_keys(options.allow_change)  # a slip is reported now, not at the first resume
    inputs = data_facts(config, options.run_dir)
    if adapter_done(options.run_dir, config, inputs):
        heartbeat.update(**read_table(options.run_dir / ADAPTER / RECEIPT).get("status", {}))
    if finished(options.run_dir, config, inputs):
        on_message("everything is done already: nothing to do")
        return None
    return MissingJob(config=config, inputs=inputs)
