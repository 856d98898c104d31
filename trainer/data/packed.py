"""Puts the rows of a batch one behind the other, so that no position is padding."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from trainer.data.codec import NOT_TRAINED, Example

CU_SEQLENS = "cu_seqlens"
LONGEST = "longest"


def collate_packed(examples: Sequence[Example]) -> dict[str, Any]:
    """Return one long row of all tokens of `examples`, which are of a causal model.

    `input_ids`, `labels` and `position_ids` are int64 [1, tokens]; positions begin anew in each
    row. `cu_seqlens` is int32 [rows + 1], where each row begins, and the end; `longest` is the
    length of the longest row as a Python int, so that no device has to be asked for it. The first
    token of a row is never a target: what stands before it is another row.
    """
    import torch

    ids = [number for example in examples for number in example.input_ids]
    labels = [number for example in examples for number in (NOT_TRAINED, *example.labels[1:])]
    lengths = [len(example.input_ids) for example in examples]
    return {
        "input_ids": torch.tensor([ids], dtype=torch.long),
        "labels": torch.tensor([labels], dtype=torch.long),
        **row_bounds(lengths),
    }


def row_bounds(lengths: Sequence[int]) -> dict[str, Any]:
    """Return `position_ids`, `cu_seqlens` and `longest` of rows of these lengths."""
    import torch

    positions = [at for length in lengths for at in range(length)]
    return {
        "position_ids": torch.tensor([positions], dtype=torch.long),
        CU_SEQLENS: torch.tensor([0, *accumulate(lengths)], dtype=torch.int32),
        LONGEST: max(lengths),
    }
