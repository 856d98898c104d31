"""Estimates what loading a base takes of the machine's own memory, beside that of its card.

transformers maps safetensors files, and pickles written as zip files, into memory: the kernel reads
what is touched and may drop it again. What it holds at once are a few tensors: one where the base
is quantised while it is loaded, one for each of its threads otherwise. A pickle of torch before 1.6
cannot be mapped: all of its shards are read, and stay until the last tensor is on the card
(`PreTrainedModel._load_pretrained_model` of transformers 5.23 merges them into one table).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PROCESS_BYTES = 3e9
"""Python, torch with CUDA's libraries, and the system beside them: an allowance, not measured."""
THREADS = 4
"""Of transformers (`core_model_loading.GLOBAL_WORKERS`), none if it quantises."""
COPIES = 2
"""Of each: as it is in the file, and in the type of the run."""


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """A file of weights as far as the memory to load it depends on it; sizes in bytes."""

    size: int
    mapped: bool = True
    """Whether it can be mapped into memory instead of read."""
    largest: int | None = None
    """Its largest tensor; None if that is not known."""


def loading_bytes(
    files: Sequence[WeightFile], *, quantised: bool, kept_bytes: float = 0.0
) -> float:
    """Return what a process takes of the host's memory to load these files, beside itself.

    `kept_bytes` stay there afterwards: the weights of the base where no card takes them. Of a file
    whose tensors are not known, the largest is taken to be an eighth.
    """
    held = sum(one.size for one in files if not one.mapped)
    largest = max(
        (one.size // 8 if one.largest is None else one.largest for one in files), default=0
    )
    return held + (1 if quantised else THREADS) * COPIES * largest + kept_bytes


def host_bytes_needed(
    files: Sequence[WeightFile], *, quantised: bool, kept_bytes: float = 0.0
) -> float:
    """Return the memory that a machine needs to load these files, its system included.

    For a plan: compare it with the memory of the sizes that are offered.
    """
    return PROCESS_BYTES + loading_bytes(files, quantised=quantised, kept_bytes=kept_bytes)
