"""The longest batch is measured before the first step, and what does not fit is made to fit."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny
from support.rig import Rig, outcome, outcome_tensors, restored, rig

from trainer.data.codec import NOT_TRAINED, Example
from trainer.device import activations
from trainer.device.out_of_memory import is_out_of_memory
from trainer.errors import DoesNotFit
from trainer.job import stages
from trainer.job.context import JobOptions
from trainer.job.fit_memory import fit_memory
from trainer.job.job import run_job
from trainer.job.replay import replay
from trainer.method_table import OptimizerKind
from trainer.rundir.memory_record import read_memory_record
from trainer.saving.memory_savings import NO_SAVINGS, MemorySavings, read_savings
from trainer.training.fit import extrapolated, fit
from trainer.training.longest import longest_passes
from trainer.training.measure import measure
from trainer.training.saving_order import (
    Available,
    MemorySetup,
    next_saving,
    smaller_optimizers,
)

TRAIN: dict[str, Any] = {"steps": 4, "batch_size": 4, "lr": 1e-2}
EVERYTHING = Available(
    checkpointing=True,
    offloading=True,
    optimizers=smaller_optimizers(OptimizerKind.ADAMW, on_card=True),
)


def run_to_end(run: Path) -> list[str]:
    """Do a whole job and return what it said."""
    messages: list[str] = []
    run_job(JobOptions(run_dir=run), messages.append)
    return messages


@pytest.mark.parametrize(
    "method",
    [
        {"kind": "qdylora", "optimizer": "adamw8bit", "r": 64},
        {"kind": "dora", "dropout": 0.1},
        {"kind": "nola"},
    ],
)
def test_the_measurement_changes_no_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: dict[str, Any]
) -> None:
    """With and without it, log and adapter of a run are the same bytes, whatever is trained."""
    measured = tiny.make_run(tmp_path / "measured", rows=12, method=method, train=TRAIN)
    run_to_end(measured)
    monkeypatch.setattr(stages, "fit_memory", lambda *_: None)
    plain = tiny.make_run(tmp_path / "plain", rows=12, method=method, train=TRAIN)
    run_to_end(plain)

    assert read_memory_record(measured) is not None
    assert read_memory_record(plain) is None
    assert tiny.losses(measured) == tiny.losses(plain)
    results = [sorted((run / "adapter").glob("*.safetensors")) for run in (measured, plain)]
    assert [one.read_bytes() for one in results[0]] == [one.read_bytes() for one in results[1]]


def test_after_a_measurement_state_and_generators_are_as_before(tmp_path: Path) -> None:
    """In the middle of a training, too: parameters, moments, random generator and log stay."""
    made = rig(tiny.make_run(tmp_path, rows=12, train=TRAIN))
    made.train(until=2)
    before, random = outcome(made), torch.get_rng_state()
    one = longest_passes(made.context.schedule, made.context.examples, micro_batch=4)[0]
    found = measure(made.context, made.state, one)

    assert outcome(made) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert all(value.grad is None for value in made.state.parameters.values())
    assert found.allocated_bytes >= found.extra_bytes > 0


def test_a_measured_pass_is_one_of_training(tmp_path: Path) -> None:
    """Dropout and recomputation are on, as in a step; afterwards the model is in its old mode."""
    train = {**TRAIN, "gradient_checkpointing": True}
    made = rig(tiny.make_run(tmp_path, rows=12, train=train))
    made.context.model.eval()
    block = made.context.model.get_base_model().model.layers[0].mlp
    modes: list[bool] = []
    block.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    one = longest_passes(made.context.schedule, made.context.examples, micro_batch=2)[0]
    measure(made.context, made.state, one)

    assert modes == [True, True]  # forward, and again in the backward pass
    assert not any(module.training for module in made.context.model.modules())


def test_a_run_that_was_made_to_fit_replays_from_its_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Verified from the first weights on, its steps are cut as they were found to fit."""
    run = tiny.make_run(tmp_path, rows=12, train=TRAIN)

    def with_less(job: Any, prepared: Any, context: Any, state: Any) -> None:
        state.counters.micro_batch = 2
        fit_memory(job, prepared, context, state)

    monkeypatch.setattr(stages, "fit_memory", with_less)
    run_to_end(run)
    monkeypatch.undo()
    found = replay(run, steps=4, clock=time.monotonic, on_message=lambda _text: None)

    assert (found.after_step, found.steps, found.equal) == (0, 4, True)


def passes_only(made: Rig, able: Callable[[dict[str, Any]], bool]) -> None:
    """Let the memory of a rig's device suffice for passes that are `able` alone."""
    original = made.context.model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled() and not able(kwargs):
            raise torch.OutOfMemoryError("test")
        return original(*args, **kwargs)

    made.context.model.forward = forward


def fitted(made: Rig) -> list[str]:
    """Fit a rig to its memory; return what was said to be done."""
    taken: list[str] = []
    fit(
        made.context, made.state, estimated_bytes=0.0, on_saving=taken.append,
        advise=lambda _: ["hint: test"],
    )  # fmt: skip
    return taken


def test_everything_is_tried_in_order_and_the_last_changes_nothing_but_rounding(
    tmp_path: Path,
) -> None:
    """Micro-batch, checkpointing, then 8-bit moments; the bits are those of such a config."""
    made = rig(tiny.make_run(tmp_path / "short", rows=12, train=TRAIN, method={"r": 64}))
    passes_only(
        made,
        lambda batch: (
            len(batch["input_ids"]) == 1
            and activations.is_checkpointing(made.context.model)
            and made.state.savings.optimizer is OptimizerKind.ADAMW8BIT
        ),
    )
    taken = fitted(made)
    made.train(until=4)
    made.save()

    assert [line.partition(" (")[0] for line in taken] == [
        "micro-batch 4 -> 2",
        "micro-batch 2 -> 1",
        "gradient checkpointing on: activations are computed again in the backward pass",
        "optimizer adamw8bit: its moments take 8 bits, and are rounded",
    ]
    assert made.state.savings == MemorySavings(
        checkpointing=True, optimizer=OptimizerKind.ADAMW8BIT
    )
    so_from_the_start = tiny.make_run(
        tmp_path / "so",
        rows=12,
        method={"r": 64, "optimizer": "adamw8bit"},
        train={**TRAIN, "micro_batch": 1, "gradient_checkpointing": True},
    )
    configured = rig(so_from_the_start)
    configured.train(until=4)
    assert outcome(made) == outcome(configured)

    again = restored(made.run_dir)  # before its loop begins, the optimizer is the other one already
    assert again.state.savings == made.state.savings
    assert outcome(again)[1:] == outcome(made)[1:]
    again.train(until=4)
    assert activations.is_checkpointing(again.context.model)


def test_what_never_fits_is_refused_with_what_was_tried(tmp_path: Path) -> None:
    """After the last of the order the error names the shortage, the attempts and the advice."""
    made = rig(tiny.make_run(tmp_path, rows=12, train=TRAIN))
    before = outcome_tensors(made)
    passes_only(made, lambda _: False)

    with pytest.raises(DoesNotFit) as refused:
        fitted(made)
    lines = refused.value.problems
    assert lines[0].startswith("one sequence at a time does not fit: ")
    assert lines[1] == (
        "tried, one after the other: micro-batch 4 -> 2; micro-batch 2 -> 1; "
        "gradient checkpointing on; optimizer adamw8bit"
    )
    assert lines[2:] == ["hint: test"]
    assert outcome_tensors(made) == before


def test_on_a_card_activations_go_to_the_host_and_moments_to_pages() -> None:
    """The whole order: nothing is skipped, nothing comes twice, and it ends."""
    setup = MemorySetup(micro_batch=5, savings=NO_SAVINGS)
    words = []
    while following := next_saving(setup, EVERYTHING):
        setup, line = following
        words.append(line.partition(":")[0])

    assert words == [
        "micro-batch 5 -> 3",
        "micro-batch 3 -> 2",
        "micro-batch 2 -> 1",
        "gradient checkpointing on",
        "activations wait in the host's memory for the backward pass",
        "optimizer adamw8bit",
        "optimizer paged_adamw8bit",
    ]
    assert read_savings(json.loads(json.dumps(setup.savings.to_json()))) == setup.savings


def test_activations_that_were_moved_give_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a pass saves is moved and brought back, weights are not, and nothing else changes."""
    train = {**TRAIN, "gradient_checkpointing": True, "max_length": 250}
    plain = rig(tiny.make_run(tmp_path / "plain", rows=12, train=train))
    plain.train(until=2)
    moved: list[torch.Tensor] = []

    class Copying:
        """Copies as if to another device."""

        def __init__(self, *, pin_memory: bool) -> None:
            assert not pin_memory

        def pack_hook(self, tensor: torch.Tensor) -> tuple[torch.Tensor]:
            moved.append(tensor)
            return (tensor.detach().clone(),)

        def unpack_hook(self, packed: tuple[torch.Tensor]) -> torch.Tensor:
            return packed[0]

    monkeypatch.setattr(activations, "save_on_cpu", Copying)
    monkeypatch.setattr(activations, "MOVED_BYTES_MIN", 1)
    made = rig(tiny.make_run(tmp_path / "moved", rows=12, train=train))
    made.state.save_memory(MemorySavings(offloading=True))
    made.train(until=2)

    weights = {value.untyped_storage().data_ptr() for value in made.context.model.parameters()}
    layers = [one for one in moved if one.dim() == 3 and one.shape[-1] == 32]
    assert len(layers) >= 2 * 2  # the input of each of two layers, in two steps
    assert not weights & {one.untyped_storage().data_ptr() for one in moved}
    assert outcome(plain) == outcome(made)


def test_a_second_start_takes_up_what_the_first_had_found(tmp_path: Path) -> None:
    """Killed before its first checkpoint, a run computes again as it was found to fit."""
    run = tiny.make_run(tmp_path / "a", rows=12, train=TRAIN)
    first = run_to_end(run)
    record = read_memory_record(run)
    assert record is not None
    for name in ("adapter", "checkpoints"):
        (run / name).rename(run / f"{name}.before")
    replace(record, micro_batch=2, steps_taken=("micro-batch 4 -> 2 (test)",)).write(run)
    second = run_to_end(run)
    configured = tiny.make_run(tmp_path / "b", rows=12, train={**TRAIN, "micro_batch": 2})
    run_to_end(configured)

    assert [line for line in first if line.startswith("longest batch measured: ")]
    assert [line for line in second if line.startswith("longest batch, as measured before: ")]
    assert tiny.adapter_bytes(run) == tiny.adapter_bytes(configured)
    receipt = json.loads((run / "adapter" / "qft.json").read_text())
    assert receipt["memory"]["steps_taken"] == ["micro-batch 4 -> 2 (test)"]


def test_a_record_of_other_settings_is_not_taken_up(tmp_path: Path) -> None:
    """What another config, or another machine, was found to need says nothing of this one."""
    run = tiny.make_run(tmp_path, rows=12, train={**TRAIN, "steps": 1})
    run_to_end(run)
    record = read_memory_record(run)
    assert record is not None
    (run / "adapter").rename(run / "adapter.before")
    replace(record, key="0" * 64, micro_batch=1).write(run)
    messages = run_to_end(run)

    assert [line for line in messages if line.startswith("longest batch measured: ")]
    assert json.loads((run / "memory.json").read_text())["micro_batch"] == 4


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"key": 1}', '{"micro_batch": -1}'])
def test_a_record_that_is_none_counts_as_absent(tmp_path: Path, text: str) -> None:
    """A torn or foreign file costs a measurement, not the run."""
    (tmp_path / "memory.json").write_text(text)

    assert read_memory_record(tmp_path) is None


def row(tokens: int, targets: int) -> Example:
    """Return a row of so many tokens of which so many are learnt."""
    labels = (NOT_TRAINED,) * (tokens - targets) + (5,) * targets
    return Example((5,) * tokens, labels, "", "", 1, tokens - targets)


def test_the_longest_pass_is_one_that_the_schedule_makes(tmp_path: Path) -> None:
    """It has the most tokens of all passes to come; one with far more targets is measured, too."""
    made = rig(tiny.make_run(tmp_path, rows=12, train={**TRAIN, "steps": 9}))
    schedule = made.context.schedule
    lengths = [8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 40, 41]
    schedule = replace(schedule, lengths=tuple(lengths))
    rows = [row(length, 30 if length == 40 else 2) for length in lengths]
    passes = longest_passes(schedule, rows, micro_batch=2)
    made_ones = [schedule.batch(step)[at : at + 2] for step in range(9) for at in range(0, 4, 2)]

    assert passes[0].tokens == max(
        2 * max(lengths[each] for each in one) for one in made_ones if len(one) == 2
    )
    assert passes[-1].targets == max(sum(rows[each].targets for each in one) for one in made_ones)
    half = passes[0].shortened(2)
    assert half.tokens == 2 * 20
    assert half.targets > 0


def test_bytes_are_extrapolated_by_what_was_seen() -> None:
    """More rows add what they added before; longer ones up to four times the last growth."""
    linear = {10: 100 << 20, 20: 150 << 20, 40: 250 << 20}
    square = {at: 100 + (at * at << 20) for at in (10, 20, 40)}

    assert extrapolated({10: 5}, 20, of_one_row=True) is None
    assert extrapolated(linear, 80, of_one_row=False) == 450 << 20
    assert extrapolated(linear, 80, of_one_row=True) == 450 << 20
    assert extrapolated(square, 80, of_one_row=True) == pytest.approx(100 + (6400 << 20), rel=0.01)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (OSError(12, "Cannot allocate memory"), True),
        (ImportError("libtorch.so: failed to map segment from shared object"), True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
        (OSError(28, "No space left on device"), False),
    ],
)
def test_errors_of_memory_are_distinguished(error: BaseException, expected: bool) -> None:  # noqa: FBT001
    """Every library has its own error for it; a bug is none of them."""
    assert is_out_of_memory(error) == expected


def test_the_allocator_of_a_processor_raises_what_is_recognised() -> None:
    """More than any machine has: torch's own error on a CPU counts as memory that ran out."""
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60, dtype=torch.uint8)

    assert is_out_of_memory(raised.value)
