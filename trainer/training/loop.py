"""The training loop: one optimizer step after the other, each validated and saved when it is due.

Everything a step does is set by its number and the state before it. So a step can be given up in
the middle, done again, or done on another day, and gives the same bits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn, Protocol

import torch
from torch.nn.utils import clip_grad_norm_

from trainer.adapters.methods import decides_on_device
from trainer.device.device_queue import host_sync_refused, record_event
from trainer.device.out_of_memory import MEMORY_ERRORS, give_memory_back, is_out_of_memory
from trainer.errors import CardsDisagree, Diverged, DoesNotFit, Preempted, TrainerError
from trainer.estimate.cards import extra_passes
from trainer.group.peers import GiveUp, StepGivenUp
from trainer.saving.state import TrainingState
from trainer.schedule import derive_seed, micro_batches
from trainer.text import inexact
from trainer.training.common_state import (
    apply_common_setup,
    common_setup,
    state_digest,
    summed_tensors,
)
from trainer.training.fit import apply_setup, available
from trainer.training.launched_step import LaunchedStep, note_launched
from trainer.training.passes import backward_pass
from trainer.training.saving_order import next_saving
from trainer.training.train_context import TrainContext

SKIPS_MAX = 20  # the first float16 steps may overflow until the loss scale fits: 2^16 to 2^-4


class StepCallback(Protocol):
    """What the loop calls after every step; it logs the step and decides about saving."""

    def after_step(self, record: dict[str, Any]) -> None:
        """Log the step, and start a save if one is due."""

    def amend(self, record: dict[str, Any]) -> None:
        """Complete the last record with the validation that a notice had cut short."""


def train(
    context: TrainContext, state: TrainingState, callback: StepCallback, *, until: int
) -> None:
    """Do the steps that are left until `until` are done; raise `Preempted` when the flag is up.

    With a validation, the state is validated when it is due, and the steps may end earlier.
    """
    validation = context.validation
    context.model.train()
    apply_common_setup(context, state)
    if context.samples is not None:
        context.samples.begin(state)
    if validation is not None and validation.was_interrupted(state):
        callback.amend({**state.log.last, **validation.run(state)})
    take_samples(context, state)
    steps = _Steps(context, state, callback, until=until)
    try:
        steps.do_all()
    except CardsDisagree:
        raise  # the last step may be the one that went wrong: it is not logged, and not saved
    except (Preempted, TrainerError):
        steps.read_unread()  # it is done, so it is logged and counted
        raise


class _Steps:
    """Does one step after the other, and has at most one whose numbers were not read yet."""

    def __init__(
        self, context: TrainContext, state: TrainingState, callback: StepCallback, *, until: int
    ) -> None:
        self._context = context
        self._state = state
        self._callback = callback
        self._until = until
        self._unread: LaunchedStep | None = None
        self._compared = False
        self._noticed = False

    def do_all(self) -> None:
        """Do what is left; raise `Preempted` when the flag is up, of any rank."""
        state, validation = self._state, self._context.validation
        while state.counters.step < self._until:
            if validation is not None and validation.should_stop(state):
                break
            if self._context.peers.size == 1 or not self._compared:
                self._compare()
            if self._noticed:
                raise Preempted
            self.do_next()

    def _compare(self) -> None:
        """Compare the state with those of the other ranks, and hear of their notices."""
        context, state = self._context, self._state
        self._noticed = context.peers.compare(
            state.counters.step, flag=context.flag, digest=partial(state_digest, state)
        )
        self._compared = True

    def do_next(self) -> None:
        """Launch a step; read the numbers of the one before once its passes are launched.

        With other ranks, the states are compared before it is logged, and so before it is saved.
        """
        context, state = self._context, self._state
        self._unread = whole_step(context, state, before_update=self.read_unread)
        if context.peers.size > 1:
            self._compare()
            # A notice that comes while held-out rows are read is to be heard before the next step.
            validation = context.validation
            self._compared = validation is None or not validation.is_due(state.counters.step)
        if not self._context.reads_late or self._is_awaited():
            self.read_unread()

    def _is_awaited(self) -> bool:
        """Tell whether something has to be done with the state before the next step begins."""
        context, state = self._context, self._state
        step, validation, samples = state.counters.step, context.validation, context.samples
        return (
            step >= self._until
            or context.flag.notice is not None
            or (validation is not None and validation.is_due(step))
            or (samples is not None and samples.are_missing(state, ended=False))
        )

    def read_unread(self) -> None:
        """Read the numbers of the last step, if that was not done; count, validate and log it."""
        launched, self._unread = self._unread, None
        if launched is None:
            return
        context, state = self._context, self._state
        counters, validation = state.counters, context.validation
        record = launched.read(context)
        counters.tokens += record["tokens"]
        counters.target_tokens += record["targets"]
        counters.skipped += record["skipped"]
        counters.skipped_in_a_row = counters.skipped_in_a_row + 1 if record["skipped"] else 0
        counters.train_s += launched.seconds
        counters.usd += launched.seconds * context.price_usd_per_h / 3600
        try:
            if validation is not None and validation.is_due(counters.step):
                record |= validation.run(state)
            take_samples(context, state)
        finally:  # a step that is done is logged, even if its validation is cut short
            self._callback.after_step(record)
        if counters.skipped_in_a_row >= SKIPS_MAX:
            raise Diverged(
                f"{SKIPS_MAX} steps in a row had no finite gradient, up to step {counters.step}; "
                "lower `train.lr`, or try `train.precision: bf16` on a GPU that has it"
            )


def take_samples(context: TrainContext, state: TrainingState) -> None:
    """Answer the fixed held-out rows, if the present state is to be sampled and was not yet."""
    samples, validation = context.samples, context.validation
    ended = validation is not None and validation.should_stop(state)
    if samples is not None and samples.are_missing(state, ended=ended):
        samples.run(state)


def whole_step(
    context: TrainContext, state: TrainingState, *, before_update: Callable[[], None]
) -> LaunchedStep:
    """Launch one step and count it as done; a card may still be working on it.

    `before_update` is called once the passes are launched. The parameters are still those of the
    step before then, so that a snapshot of that one can be taken.
    """
    device = context.accelerator.device
    refused = device if context.refuses_host_sync else None
    began = record_event(device)
    with host_sync_refused(refused):
        loss_sum = whole_passes(context, state)
    before_update()
    with host_sync_refused(refused):
        grad_norm = whole_update(context, state)
        return note_launched(context, state, began=began, loss_sum=loss_sum, grad_norm=grad_norm)


def whole_passes(context: TrainContext, state: TrainingState) -> torch.Tensor:
    """Do the passes of a step; if memory runs out, save some (`saving_order`) and do all again.

    Likewise without the demand for fixed bits, if this base has a part that cannot meet it.
    Nothing has changed by then. What one rank has to do again, all do.
    """
    while True:
        try:
            with context.determinism.enforced():
                return all_passes(context, state)
        except MEMORY_ERRORS as error:
            state.optimizer.zero_grad(set_to_none=True)
            if context.peers.size > 1:  # outside the passes: the others do not know, and go on
                leave_alone(error)
            if is_out_of_memory(error):
                save_more(context, state, error)
            elif isinstance(error, RuntimeError) and context.determinism.relax(error):
                note_inexact(context, state, error)
            else:
                raise
        except Preempted:  # a rank is lost, or a notice leaves no time
            state.optimizer.zero_grad(set_to_none=True)
            raise
        except StepGivenUp as given_up:
            state.optimizer.zero_grad(set_to_none=True)
            if given_up.reason is GiveUp.NOTICE:
                raise Preempted from given_up
            if given_up.reason is GiveUp.OUT_OF_MEMORY:
                save_more(context, state, given_up)
            else:
                context.determinism.strict = False
                note_inexact(context, state, given_up)
        give_memory_back()


def leave_alone(error: Exception) -> NoReturn:
    """Raise what ends this rank, which has met an error that the others cannot have heard of."""
    if not is_out_of_memory(error):
        raise error
    raise DoesNotFit(
        "the exchange of gradients does not fit into the memory of the device; lower "
        f"`train.micro_batch` or `method.r`, or rent a larger GPU ({error})"
    ) from error


def whole_update(context: TrainContext, state: TrainingState) -> torch.Tensor:
    """Do the update, once: half of it may have happened when memory runs out."""
    try:
        return update(context, state)
    except MEMORY_ERRORS as error:
        if not is_out_of_memory(error):
            raise
        raise DoesNotFit(
            "the update of the adapter does not fit into the memory of the device; lower "
            f"`method.r`, try `method.optimizer: adamw8bit`, or rent a larger GPU ({error})"
        ) from error


def save_more(context: TrainContext, state: TrainingState, error: BaseException) -> None:
    """Save memory in the next way there is; raise `DoesNotFit` if there is none left."""
    following = next_saving(common_setup(context, state), available(context, state))
    if following is None:
        raise DoesNotFit(
            "one sequence does not fit into the memory of the device; lower "
            f"`train.max_length` or `method.r`, or rent a larger GPU ({error})"
        ) from error
    setup, words = following
    apply_setup(context, state, setup)
    context.on_saving(f"out of memory in step {state.counters.step + 1}: {words}")


def note_inexact(context: TrainContext, state: TrainingState, refusal: Exception) -> None:
    """Report, and keep for status and receipt, that bits may differ from the present step on."""
    counters = state.counters
    if counters.inexact_from is None:
        counters.inexact_from = counters.step + 1
    reason = str(refusal).partition(",")[0]
    context.on_message(f"{inexact(counters.step + 1)}, even on this machine: {reason}")


def all_passes(context: TrainContext, state: TrainingState) -> torch.Tensor:
    """Accumulate the gradient of a step, micro-batch by micro-batch, and return the summed loss.

    The loss of every micro-batch is divided by the target tokens of the whole step, so that the
    cut into micro-batches does not change the gradient's meaning. Raises `Preempted`, with
    nothing changed, if a notice leaves no time for the rest of the step.
    """
    step = state.counters.step
    context.method.before_step(step)
    rows = context.schedule.batch(step)
    targets = sum(context.examples[row].targets for row in rows)
    passes = micro_batches(rows, state.counters.micro_batch)
    gathered = context.peers.open_sum(summed_tensors(context, state), len(passes))
    began_s = time.perf_counter()
    mine = context.peers.mine(len(passes))
    if state.scaler and not mine:  # its first use on a device makes the scale there
        state.scaler.scale(torch.zeros((), device=context.accelerator.device))
    extra = 0 if context.sharded is None else extra_passes(len(passes), context.peers)
    for done, number in enumerate([*mine, *[0] * extra]):
        if 0 < done < len(mine) and context.flag.notice is not None:
            context.launch_limit.synchronize()  # or the clock would measure launches
            per_pass_s = (time.perf_counter() - began_s) / done
            if context.flag.seconds_left < 3 * per_pass_s * (len(mine) - done):
                if context.sharded is None:  # or the others wait for a block, not for words
                    gathered.give_up(GiveUp.NOTICE, "a notice leaves no time for the step")
                state.optimizer.zero_grad(set_to_none=True)
                raise Preempted
        try:
            loss = backward_pass(
                context,
                state,
                [context.examples[row] for row in passes[number]],
                targets=targets,
                seed=derive_seed(context.seed, "dropout", step, number),
            )
        except MEMORY_ERRORS as error:
            reason = reason_to_give_up(context, error)
            if reason is GiveUp.OUT_OF_MEMORY and context.sharded is not None:
                # The others wait for a block, not for words.
                raise DoesNotFit(
                    f"memory ran out in a pass over a sharded base ({error})"
                ) from error
            if reason is not GiveUp.NO:
                gathered.give_up(reason, str(error))
            raise
        if done < len(mine):  # an extra pass only takes part in gathering the base
            gathered.add(number, loss)
    return gathered.finish()


def reason_to_give_up(context: TrainContext, error: BaseException) -> GiveUp:
    """Return why a pass that raised `error` can be done again in another way, if it can."""
    if is_out_of_memory(error):
        return GiveUp.OUT_OF_MEMORY
    refused = context.determinism.strict and "deterministic" in str(error)
    return GiveUp.NO_FIXED_ORDER if refused else GiveUp.NO


def update(context: TrainContext, state: TrainingState) -> torch.Tensor:
    """Clip the gradient, update the parameters, and return the gradient's length before.

    A length that is not finite updates nothing; a loss scale then learns from it. An optimizer that
    can leave itself out on the device decides there; for the others the host reads the length.
    """
    context.method.after_backward()
    optimizer: Any = state.optimizer
    for group in optimizer.param_groups:
        group["lr"] = context.schedule.lr(state.counters.step)
    if state.scaler:
        state.scaler.unscale_(optimizer)
    limit = context.max_grad_norm or float("inf")
    grad_norm = clip_grad_norm_(state.parameters.values(), limit)
    if decides_on_device(optimizer):
        optimizer.found_inf = (~torch.isfinite(grad_norm)).float()
        try:
            optimizer.step()
        finally:
            del optimizer.found_inf
    elif math.isfinite(grad_norm.item()):
        if state.scaler:
            state.scaler.step(optimizer)
        else:
            optimizer.step()
    if state.scaler:
        state.scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return grad_norm
