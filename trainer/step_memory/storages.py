"""Tracks which storages of tensors are alive while code runs, by the operations that make them.

The tensors may be real ones or those of `torch._subclasses.FakeTensorMode`, which have sizes but no
memory. What an operation of torch needs inside of itself is not seen, but for the operations that
are replaced (`replacements.py`), which make such tensors visibly.
"""

# ruff: noqa: SLF001 - torch, transformers and bitsandbytes have no public names for these

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

Operation = Callable[..., Any]
Replacement = Callable[["StorageTracker", Operation, Sequence[Any], Mapping[str, Any]], Any]


class StorageTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types here
    """Sums the bytes of all storages made while it is active, until they are gone.

    `block_bytes` is what an allocator rounds up to: 512 for torch's on CUDA. `replacements` are
    called instead of the operations of their names (`aten::equal`).
    """

    def __init__(
        self, *, block_bytes: int = 1, replacements: Mapping[str, Replacement] | None = None
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.live_bytes = 0
        self.peaks: dict[str, int] = {}
        """The highest sum of each phase so far."""
        self.phase = ""
        self._block_bytes = block_bytes
        self._replacements = replacements or {}
        self._sizes: dict[int, int] = {}
        self._paused = False

    def __torch_dispatch__(
        self,
        func: Operation,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Do the operation, or what replaces it, and note what it returned."""
        replaced = self._replacements.get(func._schema.name)  # type: ignore[attr-defined]
        if replaced is not None:
            made = replaced(self, func, args, kwargs or {})
        else:
            made = func(*args, **(kwargs or {}))
        self.note(made)
        return made

    def note(self, made: Any) -> Any:
        """Count the storages of the tensors in `made`, which is a tensor or holds some."""
        if isinstance(made, torch.Tensor):
            if not self._paused:
                self._add(made.untyped_storage())
        elif isinstance(made, tuple | list):
            for one in made:
                self.note(one)
        return made

    @contextmanager
    def paused(self) -> Iterator[None]:
        """While inside, what is made is not counted: it lies elsewhere."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """While inside, peaks are those of `phase`."""
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before

    def take_peaks(self) -> dict[str, int]:
        """Return the highest sums so far, and forget them."""
        found, self.peaks = self.peaks, {}
        return found

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and asking whether it is takes a tenth of the time

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._sizes:
            return
        size = -(-storage.nbytes() // self._block_bytes) * self._block_bytes
        self._sizes[key] = size
        weakref.finalize(storage, self._remove, key)
        self.live_bytes += size
        if self.live_bytes > self.peaks.get(self.phase, 0):
            self.peaks[self.phase] = self.live_bytes

    def _remove(self, key: int) -> None:
        self.live_bytes -= self._sizes.pop(key)
