"""Runs the trainer as `python -m trainer` does, and notes its memory and the time of every step.

    python -m gpu.watched NOTES WATCHING train --run-dir DIRECTORY …

WATCHING is a JSON table with the fields of `Watching`. Peaks of memory are those of training: they
begin anew when the base is loaded, though what the allocator reserved for loading stays reserved,
as it does without us.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

BRAKE_S = 0.3


@dataclass(frozen=True, kw_only=True)
class Watching:
    """What is done with a training beside measuring it."""

    brake_after: int = 0
    """After this step (0: never) each step rests a little, so that a run that is to be killed in
    the middle is still there to be killed; resting changes no bit."""
    kernels: str = "all"
    """`all` that the trainer chooses, `none` of them, or the one of that label alone."""


@dataclass(kw_only=True)
class Notes:
    """What one process took; bytes are None without a card, times are since it began."""

    load_began_s: float | None = None  # imports are done, rows and tokenizer are read
    load_ended_s: float | None = None
    load_peak_bytes: int | None = None
    base_bytes: int | None = None  # allocated when training began: the base and a fresh adapter
    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    card_used_bytes: int | None = None  # what the driver says is taken on the card, by everybody
    estimate: dict[str, Any] | None = None  # with the kernels in use, as far as they are known
    planned: dict[str, Any] | None = None  # without any, as `qft plan` does
    estimated_step_s: float | None = None
    kernels: list[str] = field(default_factory=list)
    loss: float | None = None  # mean of the steps, of those who tell no more
    steps: list[dict[str, float]] = field(default_factory=list)


def main(arguments: Sequence[str]) -> int:
    """Run the trainer's command and leave the notes, however it ends."""
    began_s = time.monotonic()
    path, watching, *command = arguments
    from trainer.job.job import prepare_environment

    prepare_environment()
    from trainer import __main__ as trainer_main

    notes = Notes()
    attach(notes, Watching(**json.loads(watching)), began_s=began_s)
    try:
        return trainer_main.main(command)
    finally:
        Path(path).write_text(json.dumps(asdict(notes)), encoding="utf-8")


def attach(notes: Notes, watching: Watching, *, began_s: float) -> None:
    """Look over the shoulder of the training: before it, after each step, and after it."""
    from trainer import model as models
    from trainer.job import stages
    from trainer.saving.checkpointer import Checkpointer

    learn, load_base, after_step = stages.learn, models.load_base, Checkpointer.after_step

    def watched_load(*given: Any, **named: Any) -> Any:
        notes.load_began_s = time.monotonic() - began_s
        base = load_base(*given, **named)
        notes.load_ended_s = time.monotonic() - began_s
        return base

    def watched_learn(job: Any, prepared: Any, adapted: Any) -> Any:
        notes.load_peak_bytes = peak_bytes()
        begin_to_measure(notes, job.config, prepared)
        best = learn(job, prepared, adapted)
        end_measuring(notes)
        estimate_memory(notes, job.config, prepared)  # again: the kernels are known
        return best

    def watched_step(checkpointer: Any, record: dict[str, Any]) -> None:
        after_step(checkpointer, record)
        at_s = time.monotonic() - began_s
        notes.steps.append({"step": record["step"], "tokens": record["tokens"], "at_s": at_s})
        if watching.brake_after and record["step"] > watching.brake_after:
            time.sleep(BRAKE_S)

    only_kernels(notes, watching.kernels)
    setattr(stages, "learn", watched_learn)  # noqa: B010 - a plain assignment is no type
    setattr(models, "load_base", watched_load)  # noqa: B010
    setattr(Checkpointer, "after_step", watched_step)  # noqa: B010


def label(kernel: Any) -> str:
    """Return name and version of a kernel: of several of one name a training uses one."""
    return f"{kernel.name}:{kernel.version}"


def only_kernels(notes: Notes, wanted: str) -> None:
    """Let the trainer choose among the wanted kernels only, and note which it uses."""
    from trainer.job import use_kernels
    from trainer.kernels import choose

    candidates, choose_kernels = choose.candidates, choose.choose_kernels

    def some(table: Any) -> Any:
        return [one for one in candidates(table) if wanted in {"all", label(one)}]

    def noted(*given: Any, **named: Any) -> Any:
        found = choose_kernels(*given, **named)
        notes.kernels = [label(one) for one in found.kernels]
        return found

    setattr(choose, "candidates", some)  # noqa: B010
    setattr(use_kernels, "choose_kernels", noted)  # noqa: B010


def begin_to_measure(notes: Notes, config: Any, prepared: Any) -> None:
    """Take the forecast for this card and this run, and let the peaks begin anew."""
    import torch

    from trainer.estimate.training import estimate_training

    card = estimate_memory(notes, config, prepared)
    if card is None:
        return
    notes.planned = notes.estimate
    rate = card_rate(card.name)
    if rate is not None:
        card = replace(rate, memory_bytes=card.memory_bytes, precision=card.precision)
        lengths = [len(row.input_ids) for row in prepared.rows.items]
        timed = estimate_training(config, prepared.model_config, gpu=card, lengths=lengths)
        notes.estimated_step_s = timed["step_seconds"]
    torch.cuda.synchronize()
    notes.base_bytes = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()


def estimate_memory(notes: Notes, config: Any, prepared: Any) -> Any:
    """Take the forecast with the kernels that are noted; return the card, None without one."""
    from trainer.estimate.training import estimate_training
    from trainer.job.set_up import gpu_at_hand

    card = gpu_at_hand(prepared)
    if card is not None:
        lengths = [len(row.input_ids) for row in prepared.rows.items]
        card = replace(card, kernels=tuple(one.partition(":")[0] for one in notes.kernels))
        estimated = estimate_training(config, prepared.model_config, gpu=card, lengths=lengths)
        notes.estimate = estimated["memory_bytes"]
    return card


def card_rate(name: str) -> Any:
    """Return the speed that `qft plan` counts with for a card of torch's name for it, None if none.

    The H200 is not rented by qft; it is scaled by its data sheet, as other cards are.
    """
    from trainer.estimate.gpus import BYTES_SHARE, GPUS

    h100 = GPUS["H100"]
    h200 = replace(h100, name="H200", flops=989e12 * 0.62, bytes_per_s=4800e9 * BYTES_SHARE)
    words = name.replace("-", " ").split()
    if "A100" in words and "40GB" in words:
        return GPUS["A100-40GB"]
    return next((rate for key, rate in {**GPUS, "H200": h200}.items() if key in words), None)


def end_measuring(notes: Notes) -> None:
    """Take the peaks since the base was loaded."""
    import torch

    if not torch.cuda.is_available():
        return
    torch.cuda.synchronize()
    notes.peak_allocated_bytes = torch.cuda.max_memory_allocated()
    notes.peak_reserved_bytes = torch.cuda.max_memory_reserved()
    free, total = torch.cuda.mem_get_info()
    notes.card_used_bytes = total - free


def peak_bytes() -> int | None:
    """Return the most that was allocated so far, None without a card."""
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


def speed(steps: Sequence[dict[str, float]], *, warm_up: int) -> float | None:
    """Return tokens per second over all steps after the first `warm_up`; None of too few.

    Everything between two steps counts: the digest, the log, and what a save holds up.
    """
    seconds = step_seconds(steps, warm_up=warm_up)
    counted = steps[warm_up:]
    return sum(step["tokens"] for step in counted) / (seconds * len(counted)) if seconds else None


def step_seconds(steps: Sequence[dict[str, float]], *, warm_up: int) -> float | None:
    """Return the mean seconds of the steps after the first `warm_up`; None of too few."""
    if len(steps) <= warm_up + 1 or warm_up < 1:
        return None
    counted = steps[warm_up:]
    seconds = counted[-1]["at_s"] - steps[warm_up - 1]["at_s"]
    return seconds / len(counted) if seconds > 0 else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
