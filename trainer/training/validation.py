"""Validation while training: the loss on held-out rows, which disturbs no bit of the training.

It is a function of the parameters alone, so it can be given up in the middle and done again. Which
adapter was best, and how long ago, is part of the state that every checkpoint holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainer.config import TrainTable
from trainer.data.codec import Example
from trainer.data.examples import Examples
from trainer.errors import Preempted
from trainer.loss import mean_loss
from trainer.rundir.status import Heartbeat
from trainer.saving.state import TrainingState, finite_or_none
from trainer.scoring.constrained import eval_mode

if TYPE_CHECKING:
    from trainer.training.train_context import Bench


def make_exam(
    train: TrainTable, held_out: Examples | None, *, last_step: int, heartbeat: Heartbeat
) -> Exam | None:
    """Return when and how to validate, None if it is not asked for."""
    if train.validate_every is None or held_out is None:
        return None
    return Exam(
        examples=held_out.items,
        every=train.validate_every,
        last_step=last_step,
        stop_after=train.stop_after,
        keep_best=train.keep_best,
        beat=lambda done, total: heartbeat.update(message=f"validated on {done} of {total} rows"),
    )


@dataclass(frozen=True, kw_only=True)
class Exam:
    """When to validate, on which rows, and what follows from it."""

    examples: Sequence[Example]
    every: int  # steps
    last_step: int  # also validated, so that the end can be the best
    stop_after: int | None  # validations without a new best
    keep_best: bool
    beat: Callable[[int, int], None]  # rows done, rows in all

    def due(self, step: int) -> bool:
        """Tell whether the state after `step` steps is validated."""
        return step > 0 and (step % self.every == 0 or step == self.last_step)

    def owed(self, state: TrainingState) -> bool:
        """Tell whether a notice came in the middle of the validation of this state."""
        return self.due(state.counters.step) and "validation_loss" not in state.log.last

    def over(self, state: TrainingState) -> bool:
        """Tell whether the training has not become better for too long."""
        return self.stop_after is not None and state.best.since >= self.stop_after

    def sit(self, bench: Bench, state: TrainingState) -> dict[str, Any]:
        """Validate the present state, take note of it, and return what the log says of it.

        Raises:
            Preempted: a notice came; nothing was noted.
        """
        loss = self._measure(bench, state.counters.micro_batch)
        gained = state.judge(loss, keep=self.keep_best)
        best = state.best
        bench.on_message(
            f"validation loss {loss:.4f} after step {state.counters.step}"
            + (", the best so far" if gained else f"; the best was {best.loss} at {best.step}")
        )
        if self.over(state):
            bench.on_message(f"no better for {best.since} validations: the training ends here")
        return {"validation_loss": finite_or_none(loss)}

    def _measure(self, bench: Bench, portion: int) -> float:
        """Return the mean cross-entropy (nats) over all supervised tokens of the rows."""

        def beat(done: int, total: int) -> None:
            self.beat(done, total)
            if done < total and bench.flag.notice is not None:
                raise Preempted

        bench.method.settle()
        with eval_mode(bench.model), bench.layer.autocast():
            return mean_loss(
                bench.model, self.examples, pad_id=bench.pad_id, portion=portion, beat=beat
            )
