"""Makes every run give the same bits: fixed orders of summing, and a fixed number of threads.

Of an operation without a fixed order torch can warn or refuse it. While it only warns, the backward
passes of its fast attentions (flash, memory-efficient) add up in any order, although they could do
better; only if it would refuse, they keep to one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from trainer.config import TrainTable
from trainer.device.waiting import cores


def make_deterministic() -> None:
    """Ask torch for the same bits in every run; on CUDA this needs the workspace setting too."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    _set_mode()
    # Filling memory that is overwritten anyway costs 7 % of a step and guards against bugs only.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a property that torch does not declare


def _set_mode(*, exact: bool = True, strict: bool = False) -> None:
    """Let torch refuse operations without a fixed order, or warn of them, or take any.

    `torch.use_deterministic_algorithms` does the same and imports the compiler for it.
    """
    otherwise = "warn" if exact else "default"
    torch.set_deterministic_debug_mode("error" if exact and strict else otherwise)


def set_threads(train: TrainTable, *, ranks: int = 1, cores: Callable[[], int] = cores) -> int:
    """Apply the configured number of CPU threads and return the number in use.

    Several ranks that are to choose by themselves share the cores of their machine.
    """
    if train.threads != "auto":
        torch.set_num_threads(train.threads)
    elif ranks > 1:
        torch.set_num_threads(max(1, cores() // ranks))
    return torch.get_num_threads()


class Determinism:
    """Lets torch refuse operations without a fixed order, until the first that it refuses.

    With `exact` false (`train.exact`) it may add up in any order from the start.
    """

    def __init__(self, *, exact: bool = True) -> None:
        self.exact = exact
        self.strict = exact

    @contextmanager
    def enforced(self) -> Iterator[None]:
        """Let torch refuse inside what it only warns of outside, unless that was relaxed."""
        _set_mode(exact=self.exact, strict=self.strict)
        try:
            yield
        finally:
            _set_mode()

    def relax(self, error: RuntimeError) -> bool:
        """Only warn from now on if `error` is such a refusal; tell whether it was one."""
        refused = self.strict and "deterministic" in str(error)
        self.strict = self.strict and not refused
        return refused
