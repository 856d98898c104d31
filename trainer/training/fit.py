"""Makes a training fit before its first step, by measuring its longest batch on the machine.

A card says by an error that it has no more memory. A CPU often does not: the kernel ends a process
that passes the limit of its control group. So nothing is tried there that will not fit by what
shorter rows, or fewer, took before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from trainer.device.activations import can_checkpoint, set_checkpointing
from trainer.device.out_of_memory import MEMORY_ERRORS, give_memory_back, is_out_of_memory
from trainer.errors import DoesNotFit
from trainer.saving.state import TrainingState
from trainer.training.longest import Pass, longest_passes
from trainer.training.measure import DeviceLimit, Measured, Shortage, device_limit, measure
from trainer.training.saving_order import (
    Available,
    MemorySetup,
    next_saving,
    smaller_optimizers,
)
from trainer.training.train_context import TrainContext

CAUTION = 1.1
"""What is extrapolated from smaller passes may be so many times more."""
AMPLE = 2.0
"""With so many times the estimate free, the longest batch is tried at once."""
AMPLE_BYTES = 256 << 20
NOISE_BYTES = 32 << 20
"""Differences of two measurements below this say nothing of how memory grows."""
SHORTENED = (8, 4, 2)
"""The parts of one row that are tried before the whole row."""


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A training that fits: its longest pass, what that took, and what had to be done for it."""

    longest: Pass
    measured: Measured
    limit_bytes: int | None
    limit: str
    steps_taken: tuple[str, ...]


def apply_setup(context: TrainContext, state: TrainingState, setup: MemorySetup) -> None:
    """Compute with this micro-batch and these savings from now on."""
    state.counters.micro_batch = setup.micro_batch
    state.save_memory(setup.savings)
    if context.unpacked is not None and not setup.unpacked:
        context.unpacked.release()
    set_checkpointing(context.model, on=context.checkpointing or setup.savings.checkpointing)


def current_setup(context: TrainContext, state: TrainingState) -> MemorySetup:
    """Return how steps are computed at present."""
    return MemorySetup(
        micro_batch=state.counters.micro_batch,
        savings=state.savings,
        unpacked=context.unpacked is not None and context.unpacked.is_held,
    )


def available(context: TrainContext, state: TrainingState) -> Available:
    """Return what can be switched on for this model, here, with the state as it is."""
    on_card = context.accelerator.device.type == "cuda"
    return Available(
        checkpointing=can_checkpoint(context.model) and not context.checkpointing,
        offloading=on_card,
        optimizers=(
            () if state.optimizer.state else smaller_optimizers(context.optimizer, on_card=on_card)
        ),
    )


def fit(
    context: TrainContext,
    state: TrainingState,
    *,
    estimated_bytes: float | None,
    on_saving: Callable[[str], None],
    advise: Callable[[Shortage], list[str]],
) -> Fitted:
    """Measure the longest batch from the present step on, and save memory until it fits.

    `estimated_bytes` is what a step should take beside the base; None if that is not known. Every
    saving is reported to `on_saving`. The measuring itself changes no bit of the training.

    Raises:
        DoesNotFit: all was done, and it is not enough; `advise` says what else would fit.
    """
    trials = _Trials(context=context, state=state, estimated_bytes=estimated_bytes)
    setup = current_setup(context, state)
    taken: list[str] = []
    tried: list[str] = []
    while True:
        apply_setup(context, state, setup)
        found = trials.try_out(setup)
        if isinstance(found, Fitted):
            return replace(found, steps_taken=tuple(taken))
        following = next_saving(setup, available(context, state))
        if following is None:
            raise DoesNotFit(
                [
                    f"one sequence at a time does not fit: {found.to_text()}",
                    *([f"tried, one after the other: {'; '.join(tried)}"] if tried else []),
                    *advise(found),
                ]
            )
        setup, words = following
        tried.append(words.partition(":")[0])
        taken.append(f"{words} ({found.to_text()})")
        on_saving(taken[-1])


@dataclass(kw_only=True)
class _Trials:
    """What was measured so far, and what follows from it for what was not."""

    context: TrainContext
    state: TrainingState
    estimated_bytes: float | None
    _seen: dict[MemorySetup, dict[int, Measured]] = field(default_factory=dict)  # by tokens

    def try_out(self, setup: MemorySetup) -> Fitted | Shortage:
        """Measure the longest passes of a setup, if they are safe to try."""
        passes = self._passes(setup.micro_batch)
        if self._kills and not self._has_ample():
            shortage = self._approach(setup, passes[0])
            if shortage is not None:
                return shortage
        found = [self._measure(setup, one) for one in passes]
        lacking = [one for one in found if isinstance(one, Shortage)]
        if lacking:
            return lacking[0]
        limit = self._limit()
        return Fitted(
            longest=passes[0],
            measured=max(
                (one for one in found if isinstance(one, Measured)),
                key=lambda one: one.allocated_bytes,
            ),
            limit_bytes=limit.reach_bytes if limit else None,
            limit=limit.name if limit else "",
            steps_taken=(),
        )

    @property
    def _kills(self) -> bool:
        """Whether a pass that is too large may end the process, as it does on a CPU."""
        return self.context.accelerator.device.type != "cuda"

    def _limit(self) -> DeviceLimit | None:
        return device_limit(self.context.accelerator.device)

    def _passes(self, micro_batch: int) -> list[Pass]:
        return longest_passes(
            self.context.schedule,
            self.context.examples,
            micro_batch=micro_batch,
            first_step=self.state.counters.step,
            packed=self.context.kernels.packed,
        )

    def _has_ample(self) -> bool:
        """Tell whether there is so much memory that the longest batch can simply be tried."""
        limit, estimated = self._limit(), self.estimated_bytes
        if limit is None:
            return True
        return estimated is not None and AMPLE * estimated + AMPLE_BYTES <= limit.free_bytes

    def _approach(self, setup: MemorySetup, goal: Pass) -> Shortage | None:
        """Measure ever larger parts of `goal`; return what it lacks as soon as that is clear."""
        single = self._passes(1)[0]
        steps = [(single.shortened(divisor), True) for divisor in SHORTENED]
        steps += [(single, True)]
        steps += [(self._passes(size)[0], False) for size in _sizes_up_to(setup.micro_batch)]
        for one, of_one_row in steps:
            lacking = self._shortage_of(setup, one, of_one_row=of_one_row)
            if lacking is None and one.padded < goal.padded:
                found = self._measure(setup, one)
                lacking = found if isinstance(found, Shortage) else None
            if lacking is not None:
                return self._shortage_of(setup, goal, of_one_row=of_one_row) or lacking
        return None

    def _shortage_of(self, setup: MemorySetup, one: Pass, *, of_one_row: bool) -> Shortage | None:
        """Return what a pass will lack by what smaller ones took; None if it should fit."""
        seen = {at: each.extra_bytes for at, each in self._seen_of(setup).items()}
        limit, need = self._limit(), extrapolated(seen, one.padded, of_one_row=of_one_row)
        if one.padded in seen or limit is None or need is None:
            return None
        if CAUTION * need <= limit.usable_bytes:
            return None
        return limit.lacking(round(CAUTION * need))

    def _seen_of(self, setup: MemorySetup) -> dict[int, Measured]:
        """Return what passes took that were computed in this way, whatever the micro-batch."""
        return self._seen.setdefault(replace(setup, micro_batch=1), {})

    def _measure(self, setup: MemorySetup, one: Pass) -> Measured | Shortage:
        """Return what a pass took, measured once; what it lacks if memory ran out, or nearly."""
        limit = self._limit()
        found = self._seen_of(setup).get(one.padded) or self._run(one)
        if found is None:
            return limit.lacking(None) if limit else Shortage()
        self._seen_of(setup)[one.padded] = found
        if limit and self._kills and found.extra_bytes > limit.usable_bytes:
            return limit.lacking(found.extra_bytes)
        return found

    def _run(self, one: Pass) -> Measured | None:
        """Return what a pass took, None if memory ran out."""
        try:
            return measure(self.context, self.state, one)
        except MEMORY_ERRORS as error:
            if not is_out_of_memory(error):
                raise
        give_memory_back()  # here, where the error no longer keeps the tensors of its frames
        return None


def _sizes_up_to(micro_batch: int) -> list[int]:
    """Return the sizes between one row and `micro_batch` that halving it goes through, and it."""
    sizes = [micro_batch]
    while sizes[-1] > 1:
        sizes.append(-(-sizes[-1] // 2))
    return sizes[-2::-1]


def extrapolated(seen: Mapping[int, int], tokens: int, *, of_one_row: bool) -> float | None:
    """Return the bytes of a pass with so many tokens, by those with fewer; None without two.

    With more rows bytes grow linearly. Within one row, where attention may grow with the square,
    each doubling adds to the last one's growth by the factor that was seen before, 2 to 4.
    """
    below = sorted(at for at in seen if at < tokens)
    if len(below) < 2:
        return None
    first, last = below[-2:]
    growth = max(0, seen[last] - seen[first])
    doublings = (tokens - last) / (last - first)
    if of_one_row and len(below) > 2 and growth > NOISE_BYTES:
        before = max(1, seen[first] - seen[below[-3]])
        doublings *= min(2.0, max(1.0, growth / before / 2))
    return seen[last] + growth * doublings
