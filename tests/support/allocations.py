"""Counts the bytes of tensors that are alive while code runs, on a CPU, without any allocator."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types here
    """Notes every storage that an operation returns, until it is gone."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.peak_bytes = 0
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Do the operation and note what it returned."""
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else (made,):
            if isinstance(one, torch.Tensor):
                self._note(one.untyped_storage())
        return made

    def _note(self, storage: torch.UntypedStorage) -> None:
        address = storage.data_ptr()
        if address not in self._alive:
            self._alive[address] = storage.nbytes()
            self.peak_bytes = max(self.peak_bytes, sum(self._alive.values()))
            weakref.finalize(storage, self._alive.pop, address, None)
