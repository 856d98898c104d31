"""Runs the trainer as `python -m trainer` does, and notes its memory and the time of every step.

    python -m gpu.watched NOTES BRAKE_AFTER train --run-dir DIRECTORY …

Peaks of memory are those of training: they begin anew when the base is loaded, though what the
allocator reserved for loading stays reserved, as it does without us. After step
BRAKE_AFTER (0: never) each step rests a little, so that a run that is to be killed in the middle is
still there to be killed; resting changes no bit.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

BRAKE_S = 0.3


@dataclass(kw_only=True)
class Notes:
    """What one process took; bytes are None without a card."""

    load_peak_bytes: int | None = None
    base_bytes: int | None = None  # allocated when training began: the base and a fresh adapter
    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    card_used_bytes: int | None = None  # what the driver says is taken on the card, by everybody
    estimate: dict[str, Any] | None = None
    steps: list[dict[str, float]] = field(default_factory=list)


def main(arguments: Sequence[str]) -> int:
    """Run the trainer's command and leave the notes, however it ends."""
    path, brake_after, *command = arguments
    from trainer.job.job import prepare_environment

    prepare_environment()
    from trainer import __main__ as trainer_main

    notes = Notes()
    attach(notes, brake_after=int(brake_after))
    try:
        return trainer_main.main(command)
    finally:
        Path(path).write_text(json.dumps(asdict(notes)), encoding="utf-8")


def attach(notes: Notes, *, brake_after: int) -> None:
    """Look over the shoulder of the training: before it, after each step, and after it."""
    from trainer.job import stages
    from trainer.saving.checkpointer import Checkpointer

    learn, after_step = stages.learn, Checkpointer.after_step

    def watched_learn(job: Any, prepared: Any, adapted: Any) -> Any:
        notes.load_peak_bytes = peak_bytes()
        begin_to_measure(notes, job.config, prepared)
        best = learn(job, prepared, adapted)
        end_measuring(notes)
        return best

    def watched_step(checkpointer: Any, record: dict[str, Any]) -> None:
        after_step(checkpointer, record)
        step = {"step": record["step"], "tokens": record["tokens"], "at_s": time.monotonic()}
        notes.steps.append(step)
        if brake_after and record["step"] > brake_after:
            time.sleep(BRAKE_S)

    setattr(stages, "learn", watched_learn)  # noqa: B010 - a plain assignment is no type
    setattr(Checkpointer, "after_step", watched_step)  # noqa: B010


def begin_to_measure(notes: Notes, config: Any, prepared: Any) -> None:
    """Take the forecast for this card and this run, and let the peaks begin anew."""
    import torch

    from trainer.estimate.training import estimate_training
    from trainer.job.stages import _gpu

    card = _gpu(prepared)
    if card is None:
        return
    lengths = [len(row.input_ids) for row in prepared.rows.items]
    estimated = estimate_training(config, prepared.model_config, gpu=card, lengths=lengths)
    notes.estimate = estimated["memory_bytes"]
    torch.cuda.synchronize()
    notes.base_bytes = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()


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
    if len(steps) <= warm_up + 1 or warm_up < 1:
        return None
    counted = steps[warm_up:]
    seconds = counted[-1]["at_s"] - steps[warm_up - 1]["at_s"]
    return sum(step["tokens"] for step in counted) / seconds if seconds > 0 else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
