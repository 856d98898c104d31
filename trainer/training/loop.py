"""The training loop, to be read aloud: one optimizer step, and when to look up.

Everything a step does is set by its number and the state before it. So a step can be given up in
the middle, done again, or done on another day, and gives the same bits.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn.utils import clip_grad_norm_

from trainer.data.examples import collate
from trainer.errors import Diverged, DoesNotFit, Preempted
from trainer.loss import supervised_loss
from trainer.saving.state import TrainingState, digest, finite_or_none
from trainer.schedule import micro_batches, ordinal
from trainer.training.train_context import Bench

SKIPS_MAX = 20  # the first float16 steps may overflow until the loss scale fits: 2^16 to 2^-4


class Watcher(Protocol):
    """Who is told after every step, and decides about saving."""

    def after_step(self, record: dict[str, Any]) -> None:
        """Log the step, and start a save if one is due."""

    def amend(self, record: dict[str, Any]) -> None:
        """Complete the last record with the validation that a notice had cut short."""


def train(bench: Bench, state: TrainingState, watcher: Watcher, *, until: int) -> None:
    """Do the steps that are left until `until` are done; raise `Preempted` when the flag is up.

    With an exam, the state is validated when it is due, and the steps may end earlier.
    """
    counters, exam = state.counters, bench.exam
    bench.model.train()
    if exam is not None and exam.owed(state):
        watcher.amend({**state.log.last, **exam.sit(bench, state)})
    while counters.step < until and not (exam is not None and exam.over(state)):
        if bench.flag.notice is not None:
            raise Preempted
        began_s = time.perf_counter()
        result = whole_step(bench, state)
        counters.step += 1
        counters.tokens += result.tokens
        counters.target_tokens += result.targets
        counters.skipped += result.skipped
        counters.skipped_in_a_row = counters.skipped_in_a_row + 1 if result.skipped else 0
        seconds = time.perf_counter() - began_s
        counters.train_s += seconds
        counters.usd += seconds * bench.price_usd_per_h / 3600
        record = {
            "step": counters.step,
            "epoch": bench.plan.locate(counters.step - 1).epoch,
            "loss": finite_or_none(result.loss),
            "lr": bench.plan.lr(counters.step - 1),
            "grad_norm": finite_or_none(result.grad_norm),
            "tokens": result.tokens,
            "targets": result.targets,
            "skipped": result.skipped,
            "params": digest(state.parameters),
            "seconds": round(seconds, 4),
        }
        try:
            if exam is not None and exam.due(counters.step):
                record |= exam.sit(bench, state)
        finally:  # a step that is done is logged, even if its validation is cut short
            watcher.after_step(record)
        if counters.skipped_in_a_row >= SKIPS_MAX:
            raise Diverged(
                f"{SKIPS_MAX} steps in a row had no finite gradient, up to step {counters.step}; "
                "lower `train.lr`, or try `train.precision: bf16` on a GPU that has it"
            )


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one optimizer step did; the loss is the mean over its target tokens."""

    loss: float
    grad_norm: float
    tokens: int
    targets: int
    skipped: bool


def whole_step(bench: Bench, state: TrainingState) -> StepResult:
    """Do one step; if memory runs out in a pass, do all passes again with smaller portions.

    Likewise without the demand for fixed bits, if this base has a part that cannot meet it.
    Nothing has changed by then. The update is never done twice: half of it may have happened.
    """
    while True:
        try:
            with bench.rigour.demanded():
                loss_sum = all_passes(bench, state)
            break
        except torch.OutOfMemoryError as error:
            state.optimizer.zero_grad(set_to_none=True)
            if state.counters.micro_batch == 1:
                raise DoesNotFit(
                    "one sequence does not fit into the memory of the device; lower "
                    f"`train.max_length` or `method.r`, or rent a larger GPU ({error})"
                ) from error
            state.counters.micro_batch = -(-state.counters.micro_batch // 2)
            bench.on_message(f"out of memory: going on with {state.counters.micro_batch} at a time")
        except RuntimeError as error:
            if not bench.rigour.give_up(error):
                raise
            state.optimizer.zero_grad(set_to_none=True)
            note_inexact(bench, state, error)
        torch.cuda.empty_cache()
    try:
        grad_norm = update(bench, state)
    except torch.OutOfMemoryError as error:
        raise DoesNotFit(
            "the update of the adapter does not fit into the memory of the device; lower "
            f"`method.r`, try `method.optimizer: adamw8bit`, or rent a larger GPU ({error})"
        ) from error
    batch = [bench.examples[row] for row in bench.plan.batch(state.counters.step)]
    targets = sum(example.targets for example in batch)
    return StepResult(
        loss=(loss_sum / targets).item(),
        grad_norm=grad_norm,
        tokens=sum(len(example.input_ids) for example in batch),
        targets=targets,
        skipped=not math.isfinite(grad_norm),
    )


def note_inexact(bench: Bench, state: TrainingState, refusal: RuntimeError) -> None:
    """Say, and keep for status and receipt, that bits may differ from the present step on."""
    counters = state.counters
    if counters.inexact_from is None:
        counters.inexact_from = counters.step + 1
    reason = str(refusal).partition(",")[0]
    bench.on_message(
        f"not bit-exact from step {counters.step + 1} on, even on this machine: {reason}"
    )


def all_passes(bench: Bench, state: TrainingState) -> torch.Tensor:
    """Gather the gradient of a step, forward and backward per micro-batch; return the summed loss.

    The loss of every micro-batch is divided by the target tokens of the whole step, so that the
    cut into micro-batches does not change the gradient's meaning. Raises `Preempted`, with
    nothing changed, if a notice leaves no time for the rest of the step.
    """
    step, scaler = state.counters.step, state.scaler
    bench.method.begin(step)
    rows = bench.plan.batch(step)
    targets = sum(bench.examples[row].targets for row in rows)
    loss_sum = torch.zeros((), dtype=torch.float64, device=bench.layer.device)
    began_s = time.perf_counter()
    portions = micro_batches(rows, state.counters.micro_batch)
    for number, portion in enumerate(portions):
        if number and bench.flag.notice is not None:
            per_portion_s = (time.perf_counter() - began_s) / number
            if bench.flag.seconds_left < 3 * per_portion_s * (len(portions) - number):
                state.optimizer.zero_grad(set_to_none=True)
                raise Preempted
        inputs = collate([bench.examples[row] for row in portion], bench.pad_id)
        inputs = {name: value.to(bench.layer.device) for name, value in inputs.items()}
        torch.manual_seed(ordinal(bench.seed, "dropout", step, number))
        with bench.layer.autocast():
            loss = supervised_loss(bench.model, inputs)
        loss_sum += loss.detach()
        mean = loss / targets
        bench.layer.backward(scaler.scale(mean) if scaler else mean)
    return loss_sum


def update(bench: Bench, state: TrainingState) -> float:
    """Clip the gradient, update the parameters, and return the gradient's length before.

    A length that is not finite updates nothing; a loss scale then learns from it.
    """
    bench.method.gather()
    for group in state.optimizer.param_groups:
        group["lr"] = bench.plan.lr(state.counters.step)
    if state.scaler:
        state.scaler.unscale_(state.optimizer)
    limit = bench.max_grad_norm or float("inf")
    grad_norm = clip_grad_norm_(state.parameters.values(), limit).item()
    if math.isfinite(grad_norm):
        if state.scaler:
            state.scaler.step(state.optimizer)
        else:
            state.optimizer.step()
    if state.scaler:
        state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    return grad_norm
