"""Writes log, curves and status after every step, and decides when to save a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from trainer.config import CheckpointTable, EvictionBand
from trainer.rundir.fingerprint import Facts
from trainer.rundir.status import HeartbeatWriter, Phase
from trainer.saving.async_saver import AsyncSaver, SaveResult
from trainer.saving.interval import SaveInterval, choose_interval
from trainer.saving.state import TrainingState
from trainer.text import duration
from trainer.tracking.tracker import Tracker, curves

SPEED_STEPS = 20  # tokens per second and ETA are means over so many steps
LOG_EVERY_S = 30.0


@dataclass(kw_only=True)
class Checkpointer:
    """The step callback of a job: logs each step, and saves when the interval is over."""

    state: TrainingState
    saver: AsyncSaver
    table: CheckpointTable
    band: EvictionBand | None
    fingerprint: Facts
    heartbeat: HeartbeatWriter
    tracker: Tracker
    clock: Callable[[], float]  # seconds, monotonic
    on_message: Callable[[str], None]
    save_requested: Callable[[], bool] = lambda: False
    """Whether one extra checkpoint is wanted, however young the last one is."""

    _extra_started: bool = field(default=False, init=False)
    _interval: SaveInterval = field(init=False)
    _tried_step: int = field(init=False)
    _tried_s: float = field(init=False)
    _durable_step: int | None = field(init=False)
    _saved_micro_batch: int = field(init=False)  # sequences at a time, as last saved
    _stall_s: float = field(default=0.0, init=False)
    _validation_text: str | None = field(default=None, init=False)  # of the last validation
    _recent: list[tuple[int, float]] = field(default_factory=list, init=False)
    _last: dict[str, Any] = field(default_factory=dict, init=False)  # the newest record
    _logged_step: int | None = field(default=None, init=False)
    _logged_s: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._interval = choose_interval(self.table, band=self.band, save_s=None)
        self._tried_step = self.state.counters.step
        self._tried_s = self.clock()
        self._durable_step = self.state.counters.step or None
        self._saved_micro_batch = self.state.counters.micro_batch
        self.on_message(f"checkpoints: {self._interval.reason}")

    def after_step(self, record: dict[str, Any]) -> None:
        """Log the step, update the status, and start a save if one is due."""
        self.state.log.append(record)
        self.tracker.log(record["step"], curves(record))
        self._report_step(record)
        self._report_validation(record)
        if self._logged_step is None or self.clock() - self._logged_s >= LOG_EVERY_S:
            self._log_step()
        self._note_result(self.saver.collect(wait=False))
        due = self._interval.due(
            steps_since=self.state.counters.step - self._tried_step,
            seconds_since=self.clock() - self._tried_s,
        )
        # How a batch is cut decides about its dropout masks: a resume must know that at once.
        due = due or self.state.counters.micro_batch != self._saved_micro_batch
        due = due or (self.save_requested() and not self._extra_started)
        if due and not self.saver.busy:
            self._start()

    def amend(self, record: dict[str, Any]) -> None:
        """Complete the record of the last step in log, curves and status."""
        self.state.log.amend(record)
        self.tracker.log(record["step"], curves({"validation_loss": record["validation_loss"]}))
        self._report_validation(record)

    def save_now(self) -> bool:
        """Make the present state durable before returning; tell whether that worked."""
        self._log_step()
        self.heartbeat.update(phase=Phase.SAVING, at_once=True)
        self._note_result(self.saver.collect(wait=True))
        if self._durable_step != self.state.counters.step and self.state.counters.step:
            self._start()
            self._note_result(self.saver.collect(wait=True))
        return self._durable_step == (self.state.counters.step or None)

    def finish(self) -> None:
        """Make the state after the last step durable."""
        self.save_now()

    def _start(self) -> None:
        began_s = self.clock()
        self._extra_started = self.save_requested()
        snapshot = self.state.snapshot(self.fingerprint)
        self.saver.start(snapshot)
        self._tried_step, self._tried_s = snapshot.step, self.clock()
        self._saved_micro_batch = self.state.counters.micro_batch
        self._stall_s = self._tried_s - began_s

    def _note_result(self, result: SaveResult | None) -> None:
        """Record how a save ended; one that failed costs a message, not the training."""
        if result is None:
            return
        if result.failure is not None:
            last = self._durable_step
            text = (
                f"checkpoint of step {result.step} could not be saved: {result.failure}; training "
                f"goes on, the newest whole one is {'none' if last is None else f'step {last}'}"
            )
            self.on_message(text)
            self.heartbeat.update(message=text, at_once=True)
            return
        self._durable_step = result.step
        self.on_message(
            f"checkpoint of step {result.step}: durable after {result.seconds:.2f} s, "
            f"loop held up {self._stall_s:.3f} s"
        )
        self.heartbeat.update(
            checkpoint_step=result.step, message=self._validation_text, at_once=True
        )
        interval = choose_interval(self.table, band=self.band, save_s=result.seconds)
        if interval != self._interval and self.table.every == "auto":
            self.on_message(f"checkpoints: {interval.reason}")
        self._interval = interval

    def _report_validation(self, record: dict[str, Any]) -> None:
        if "validation_loss" in record:
            best = self.state.best
            self._validation_text = (
                f"validation loss {record['validation_loss']} after step {record['step']}; "
                f"best: {best.loss} after step {best.step}"
            )
            self.heartbeat.update(message=self._validation_text)

    def _log_step(self) -> None:
        """Print how far the training is, unless that was printed or there is no step."""
        record, status = self._last, self.heartbeat.status
        if not record or self._logged_step == record["step"]:
            return
        self._logged_step, self._logged_s = record["step"], self.clock()
        loss = "not finite" if record["loss"] is None else f"{record['loss']:.4f}"
        has_eta = status.steps and status.eta_s
        left = f", {duration(status.eta_s or 0)} left" if has_eta else ""
        self.on_message(
            f"step {record['step']}/{status.steps or '?'}: loss {loss}, lr {record['lr']:.3g}, "
            f"{status.tokens_per_s:.0f} tokens/s{left}"
        )

    def _report_step(self, record: dict[str, Any]) -> None:
        self._last = record
        self._recent = [*self._recent, (record["tokens"], record["seconds"])][-SPEED_STEPS:]
        seconds = sum(s for _, s in self._recent) or 1e-9
        left = (self.heartbeat.status.steps or 0) - record["step"]
        self.heartbeat.update(
            step=record["step"],
            loss=record["loss"],
            tokens_per_s=round(sum(t for t, _ in self._recent) / seconds, 1),
            eta_s=round(left * seconds / len(self._recent), 1),
            exact=self.state.counters.inexact_from is None,
            inexact_from=self.state.counters.inexact_from,
        )
