"""Puts the rows of a batch one behind the other, so that no position is padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from trainer.data.codec import NOT_TRAINED, Example
from trainer.data.targets import TARGET_IDS, TARGET_POSITIONS, TARGET_SLOTS

if TYPE_CHECKING:
    import torch

ROWS = "rows"


@dataclass(frozen=True, kw_only=True)
class RowBounds:
    """Where the rows of a packed batch begin and end; moves to a device as tensors do."""

    cu_seqlens: torch.Tensor
    """int32 [rows + 1]: where each row begins, and the end."""
    longest: int
    """Tokens of the longest row, on the host: no device has to be asked for it."""

    def to(self, device: torch.device, *, non_blocking: bool = False) -> RowBounds:
        """Return the same bounds on `device`."""
        return replace(self, cu_seqlens=self.cu_seqlens.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> RowBounds:
        """Return the same bounds in memory that a card copies from by itself."""
        return replace(self, cu_seqlens=self.cu_seqlens.pin_memory())


def collate_packed(examples: Sequence[Example]) -> dict[str, Any]:
    """Return one long row of all tokens of `examples`, which are of a causal model.

    `input_ids`, `labels` and `position_ids` are int64 [1, tokens]; positions begin anew in each
    row, and `rows` are its bounds. The targets are as `collate_targets` returns them. The first
    token of a row is none of them: what stands before it is another row.
    """
    import torch

    ids = [number for example in examples for number in example.input_ids]
    labels = [number for example in examples for number in (NOT_TRAINED, *example.labels[1:])]
    learnt = [at for at, label in enumerate(labels) if label != NOT_TRAINED]
    slots = [len(learnt)] * len(ids)
    for slot, at in enumerate(learnt):
        slots[at - 1] = slot
    return {
        "input_ids": torch.tensor([ids], dtype=torch.long),
        "labels": torch.tensor([labels], dtype=torch.long),
        **bounds_of([len(example.input_ids) for example in examples]),
        TARGET_POSITIONS: torch.tensor([at - 1 for at in learnt], dtype=torch.long),
        TARGET_IDS: torch.tensor([labels[at] for at in learnt], dtype=torch.long),
        TARGET_SLOTS: torch.tensor(slots, dtype=torch.long),
    }


def bounds_of(lengths: Sequence[int]) -> dict[str, Any]:
    """Return `position_ids` and `rows` of rows of these lengths."""
    import torch

    positions = [at for length in lengths for at in range(length)]
    ends = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    return {
        "position_ids": torch.tensor([positions], dtype=torch.long),
        ROWS: RowBounds(cu_seqlens=ends, longest=max(lengths)),
    }
