"""Does a training step with fake tensors by the trainer's own functions, and counts its memory."""

# ruff: noqa: SLF001 - torch, transformers and bitsandbytes have no public names for these

from __future__ import annotations

import gc
import time
import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from trainer import model as models
from trainer.adapters import methods, new_tokens, nola
from trainer.config import TrainTable
from trainer.data.codec import NOT_TRAINED, Example
from trainer.device.precision import Precision, choose_precision
from trainer.eviction import PreemptionFlag
from trainer.method_table import MethodKind
from trainer.rundir.status import MetricsLog
from trainer.saving.state import TrainingState
from trainer.schedule import make_schedule
from trainer.step_memory.cuda import like_cuda
from trainer.step_memory.depth import Depth, deep_peak, find_depth, mark_layers, truncate
from trainer.step_memory.fake_base import EmptyBase, empty_base, is_seq2seq
from trainer.step_memory.like_real import like_real
from trainer.step_memory.loop_parts import (
    CountedObjective,
    CountingAccelerator,
    make_optimizer,
    make_scaler,
)
from trainer.step_memory.replacements import Values, replacements
from trainer.step_memory.request import CountedPass, StepMemory, StepRequest
from trainer.step_memory.storages import StorageTracker
from trainer.training.loop import all_passes, update
from trainer.training.train_context import TrainContext

CUDA_BLOCK_BYTES = 512  # what the caching allocator rounds up to


@dataclass(frozen=True, kw_only=True)
class _Sums:
    """What was counted of one model: what stays, and the peaks of the phases of each pass."""

    base: int
    adapter: int
    optimizer: int
    peaks: tuple[dict[str, int], ...]


def count_step(request: StepRequest, *, whole: bool = False) -> StepMemory:
    """Return what a step takes.

    Of a model whose layers repeat, two shallow ones are counted (`depth.py`), unless the `whole`
    one shall be.

    Raises:
        ConfigError: the method does not go with this base, or the precision with this device.
        NotCountableError, UnknownShapeError, or what transformers raises: it cannot be counted.
    """
    precision = choose_precision(
        request.train.precision, device="cpu" if request.capability is None else "cuda",
        capability=request.capability, seq2seq=is_seq2seq(request.config),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        empty = _empty(request, precision)
        depth = None if whole else find_depth(empty.model)
        if depth is None:
            return _summed(request, _count(request, precision, empty))
        truncate(empty.model, depth.shallow[0])
        low = _count(request, precision, empty)
        empty = _empty(request, precision)
        truncate(empty.model, depth.shallow[1])
        return _extended(request, low, _count(request, precision, empty), depth)


def _empty(request: StepRequest, precision: Precision) -> EmptyBase:
    return empty_base(
        request.config, request.method, compute=models.DTYPES[precision.compute],
        attention=request.attention,
    )  # fmt: skip


def _summed(request: StepRequest, sums: _Sums) -> StepMemory:
    passes = []
    for size, peaks in zip(request.micro_batches, sums.peaks, strict=True):
        peak, phase = max((peak, phase) for phase, peak in peaks.items())
        passes.append(CountedPass(micro_batch=size, peak=peak, at=phase.partition(" ")[0]))
    return StepMemory(
        base=sums.base, adapter=sums.adapter, optimizer=sums.optimizer, passes=tuple(passes)
    )


def _extended(request: StepRequest, low: _Sums, high: _Sums, depth: Depth) -> StepMemory:
    passes = []
    for size, *shallow in zip(request.micro_batches, low.peaks, high.peaks, strict=True):
        peak, part = deep_peak(shallow, depth)
        passes.append(CountedPass(micro_batch=size, peak=peak, at=part))
    return StepMemory(
        base=depth.extend(low.base, high.base),
        adapter=depth.extend(low.adapter, high.adapter),
        optimizer=depth.extend(low.optimizer, high.optimizer),
        passes=tuple(passes),
    )


def _count(request: StepRequest, precision: Precision, empty: EmptyBase) -> _Sums:
    """Count one model, as deep as it is."""
    cuda, values = request.capability is not None, Values()
    tracker = StorageTracker(
        block_bytes=CUDA_BLOCK_BYTES if cuda else 1, replacements=replacements(values, cuda=cuda)
    )
    with ExitStack() as stack:
        nola._hadamard.cache_clear()
        stack.callback(nola._hadamard.cache_clear)  # what it remembers is real, or fake
        if request.capability is not None:
            stack.enter_context(like_cuda(request.capability))
        stack.enter_context(like_real())
        stack.enter_context(FakeTensorMode())
        stack.enter_context(tracker)
        return _Counting(request, precision, values, tracker).count(empty)


class _Counting:
    """One count, from the empty base to the peaks."""

    def __init__(
        self, request: StepRequest, precision: Precision, values: Values, tracker: StorageTracker
    ) -> None:
        self._request = request
        self._precision = precision
        self._values = values
        self._tracker = tracker

    def count(self, empty: EmptyBase) -> _Sums:
        """Return what a step takes, for each size of a pass."""
        base = empty.materialise()
        base_bytes = self._live_bytes()
        self._grow(base)
        mark_layers(base, self._tracker)
        model = models.attach_adapter(base, self._request.method, self._train_table(base))
        model.train()
        adapter_bytes = self._live_bytes() - base_bytes
        remember_head(base, self._values)
        state = self._state(model)
        before = self._tracker.live_bytes
        self._tracker.take_peaks()
        _give_gradients(model, state)
        with self._tracker.during("update"):
            update(self._context(model, 1), state)
        optimizer_bytes = self._live_bytes() - before
        updating = self._tracker.take_peaks()
        peaks = [updating | self._pass(model, state, size) for size in self._request.micro_batches]
        return _Sums(
            base=base_bytes, adapter=adapter_bytes, optimizer=optimizer_bytes, peaks=tuple(peaks)
        )

    def _live_bytes(self) -> int:
        gc.collect()
        return self._tracker.live_bytes

    def _grow(self, base: Any) -> None:
        """Let rows of the embedding be trained; which, changes no size."""
        if count := self._request.new_tokens:
            rows = base.get_input_embeddings().weight.shape[0]
            setattr(base, new_tokens.ROWS, tuple(range(rows - count, rows)))

    def _train_table(self, base: Any) -> TrainTable:
        """Return the table with checkpointing decided, as the trainer decides it on the device."""
        table = self._request.train
        if table.gradient_checkpointing != "auto":
            return table
        wanted = self._request.capability is not None and bool(base.supports_gradient_checkpointing)
        return table.model_copy(update={"gradient_checkpointing": wanted})

    def _state(self, model: Any) -> TrainingState:
        parameters = models.trainable(model)
        return TrainingState(
            parameters=parameters,
            optimizer=make_optimizer(self._request, list(parameters.values()), self._tracker),
            scaler=make_scaler() if self._precision.loss_scaling else None,
            log=MetricsLog(Path("metrics.jsonl")),
        )

    def _pass(self, model: Any, state: TrainingState, size: int) -> dict[str, int]:
        """Do a pass of `size` rows; return the peaks of its phases.

        Of several passes of a step the last is counted, when the gradients are there already. For
        NOLA two are done: it begins each step without gradients of its matrices.
        """
        several = size < self._request.train.batch_size
        twice = several and self._request.method.kind is MethodKind.NOLA
        context = self._context(model, size, passes=1 + twice)
        self._describe_values(context.examples[:size])
        state.counters.micro_batch = size
        if several:
            _give_gradients(model, state)
        self._tracker.take_peaks()
        with self._tracker.during("forward"):
            all_passes(context, state)
        found = self._tracker.take_peaks()
        context.method.after_backward()
        state.optimizer.zero_grad(set_to_none=True)
        return found

    def _context(self, model: Any, size: int, *, passes: int = 1) -> TrainContext:
        """Return what the loop works with for a step of so many passes."""
        row = self._row(seq2seq=models.is_seq2seq(model.config))
        table = self._request.train.model_copy(
            update={"steps": 1, "epochs": None, "batch_size": passes * size}
        )
        return TrainContext(
            model=model,
            method=methods.method_of(model),
            objective=CountedObjective(self._request.all_logits),  # type: ignore[arg-type]  # reads no rows
            accelerator=CountingAccelerator(self._tracker, self._precision),
            schedule=make_schedule(table, [len(row.input_ids)] * passes * size),
            examples=(row,) * passes * size,
            seed=table.seed,
            max_grad_norm=table.max_grad_norm,
            flag=PreemptionFlag(time.monotonic),
            on_message=lambda _: None,
        )

    def _row(self, *, seq2seq: bool) -> Example:
        """Return a row of the length that was asked for."""
        tokens = self._request.tokens
        learnt = self._request.loss_tokens or tokens
        read = (1,) * tokens
        if seq2seq:
            return Example(read, (1,) * learnt, "", "", 0, tokens)
        learnt = min(learnt, tokens)
        labels = (NOT_TRAINED,) * (tokens - learnt) + (1,) * learnt
        return Example(read, labels, "", "", 0, tokens - learnt)

    def _describe_values(self, rows: Sequence[Example]) -> None:
        """Say what the pass would find in its masks."""
        wanted = self._request.padded
        self._values.padded = len(rows) > 1 if wanted is None else wanted


def remember_head(base: Any, values: Values) -> None:
    """Note what the head returns: whether the logits are just that decides how the loss is made."""

    def remember(_: Any, __: Any, result: torch.Tensor) -> None:
        values.head_results.append(weakref.ref(result.untyped_storage()))

    base.get_output_embeddings().register_forward_hook(remember)


def _give_gradients(model: Any, state: TrainingState) -> None:
    """Give what is trained gradients, as a pass before would have."""
    for tensor in (*state.parameters.values(), *_matrices(model)):
        tensor.grad = torch.zeros_like(tensor)


def _matrices(model: Any) -> Iterator[torch.Tensor]:
    """Yield the buffers that collect gradients: NOLA's matrices."""
    yield from (one for one in model.buffers() if one.requires_grad)
