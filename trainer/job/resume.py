"""Restores the newest complete checkpoint, and records from which step bits may differ."""

from __future__ import annotations

from trainer.errors import ConfigError
from trainer.job.context import JobContext
from trainer.job.prepare import PreparedInputs
from trainer.job.same_start import find_newest, take_counts
from trainer.rundir.fingerprint import compare
from trainer.rundir.layout import METRICS
from trainer.rundir.status import count_steps
from trainer.saving.checkpoint import Snapshot, Store
from trainer.saving.manifest import Damaged
from trainer.saving.memory_savings import MemorySavings
from trainer.saving.state import Counters, TrainingState
from trainer.text import inexact


def resume(job: JobContext, prepared: PreparedInputs, store: Store, state: TrainingState) -> None:
    """Restore the newest whole checkpoint into `state`, or begin anew, and say which.

    Raises:
        ConfigError: the checkpoint belongs to a run with other settings.
    """
    limit = size_limit(state)
    lost = count_steps(job.run_dir / METRICS)
    below: int | None = None
    while found := find_newest(job, store, tensor_bytes_max=limit, below=below):
        verdict = compare(found.fingerprint, prepared.fingerprint, allowed=job.options.allow_change)
        verdict.require()
        micro_batch = state.counters.micro_batch
        try:
            state.restore(found)
        except Damaged as error:
            job.on_message(
                f"checkpoint of step {found.step} is unusable ({error}); trying the one before"
            )
            store.set_aside(found.step)
            below = found.step
            continue
        if verdict.inexact:  # another card, or asked for: what once fitted says nothing
            state.counters.micro_batch = micro_batch
            state.savings = MemorySavings(optimizer=state.savings.optimizer)
        _note_inexact(job, state, found, verdict.inexact)
        break
    counters = state.counters
    if not job.config.train.exact:
        _give_up_exactness(job, counters)
    if counters.step > prepared.schedule.steps:
        raise ConfigError(
            [f"train.steps: {prepared.schedule.steps} wanted, {counters.step} done already"]
        )
    previous = job.heartbeat.previous
    if found is not None or lost:
        counters.resumes = max(counters.resumes, previous.resumes) + 1
        redone = max(counters.redone_steps, previous.redone_steps)
        counters.redone_steps = redone + max(0, lost - counters.step)
    take_counts(job, prepared, state)
    if found is not None or lost:
        state.log.sync()  # even if no step follows that would write it
        job.on_message(f"resuming after step {counters.step} of {prepared.schedule.steps}")
    job.heartbeat.update(
        resumed_from=found.step if found else None,
        checkpoint_step=found.step if found else None,
        resumes=counters.resumes,
        redone_steps=counters.redone_steps,
        exact=counters.inexact_from is None,
        inexact_from=counters.inexact_from,
        at_once=True,
    )


def size_limit(state: TrainingState) -> int:
    """Return more bytes than any tensor file of this run can have; two moments are twice."""
    size = sum(p.numel() * p.element_size() for p in state.parameters.values())
    return 4 * size + (64 << 20)


def _note_inexact(
    job: JobContext, state: TrainingState, found: Snapshot, differences: tuple[str, ...]
) -> None:
    if differences and state.counters.inexact_from is None:
        state.counters.inexact_from = found.step + 1
    for line in differences:
        job.on_message(f"{inexact(found.step + 1)}: {line}")


def _give_up_exactness(job: JobContext, counters: Counters) -> None:
    """Report, and keep for status and receipt, what `train.exact: false` gives up."""
    if counters.inexact_from is None:
        counters.inexact_from = counters.step + 1
    job.on_message(
        f"{inexact(counters.inexact_from)}: `train.exact` is false, so sums are added up in any "
        "order where that is faster; if the run is killed and resumed, it ends with other bits"
    )
