"""Measures the loss on held-out rows while training, without changing a bit of the training.

The loss is a function of the parameters alone, so a validation can be given up in the middle and
done again. Which adapter was best, and how long ago, is part of the state in every checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from trainer.adapters.adapter_method import AdapterMethod
from trainer.data.codec import Example
from trainer.errors import Preempted
from trainer.eviction import PreemptionFlag
from trainer.group.alone import ALONE
from trainer.group.peers import Peers
from trainer.saving.state import TrainingState, finite_or_none
from trainer.scoring.constrained import eval_mode
from trainer.training.objective import Objective
from trainer.training.shared_loss import shared_mean_loss


@dataclass(frozen=True, kw_only=True)
class Validation:
    """When to validate, with what and on which rows, and what follows from it."""

    model: Any
    method: AdapterMethod
    objective: Objective
    autocast: Callable[[], AbstractContextManager[Any]]
    flag: PreemptionFlag
    on_message: Callable[[str], None]
    on_progress: Callable[[int, int], None]  # rows done, rows in all
    examples: Sequence[Example]
    every: int  # steps
    last_step: int  # also validated, so that the end can be the best
    stop_after: int | None  # validations without a new best
    keep_best: bool  # whether the run ends with the adapter that was best
    peers: Peers = ALONE  # the ranks that share the rows; all of them come to the same loss

    def is_due(self, step: int) -> bool:
        """Tell whether the state after `step` steps is validated."""
        return step > 0 and (step % self.every == 0 or step == self.last_step)

    def was_interrupted(self, state: TrainingState) -> bool:
        """Tell whether a notice came in the middle of the validation of this state."""
        return self.is_due(state.counters.step) and "validation_loss" not in state.log.last

    def should_stop(self, state: TrainingState) -> bool:
        """Tell whether the last `stop_after` validations brought no new best."""
        return self.stop_after is not None and state.best.since >= self.stop_after

    def run(self, state: TrainingState) -> dict[str, Any]:
        """Validate the present state, record the loss in it, and return the fields for the log.

        Raises:
            Preempted: a notice came, to any of the ranks; nothing was recorded.
            PeerLost: another rank is gone; nothing was recorded.
        """
        loss = self._measure(state.counters.micro_batch)
        gained = state.judge(loss, keep=self.keep_best)
        best = state.best
        self.on_message(
            f"validation loss {loss:.4f} after step {state.counters.step}"
            + (", the best so far" if gained else f"; the best was {best.loss} at {best.step}")
        )
        if self.should_stop(state):
            self.on_message(f"no better for {best.since} validations: the training ends here")
        return {"validation_loss": finite_or_none(loss)}

    def _measure(self, micro_batch: int) -> float:
        """Return the loss of the rows per target, nats per token in supervised fine-tuning."""

        def on_progress(done: int, total: int) -> None:
            self.on_progress(done, total)
            if done < total and self.flag.notice is not None:
                raise Preempted

        self.method.materialize()
        with eval_mode(self.model), self.autocast():
            return shared_mean_loss(
                self.model,
                self.examples,
                objective=self.objective,
                micro_batch=micro_batch,
                on_progress=on_progress,
                peers=self.peers,
            )
