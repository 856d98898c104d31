"""Finds on the host what a batch is learnt from, so that no device has to be asked for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trainer.data.codec import NOT_TRAINED, Example

if TYPE_CHECKING:
    import torch

TARGET_POSITIONS = "target_positions"
TARGET_IDS = "target_ids"
TARGET_SLOTS = "target_slots"


def collate_targets(examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """Return which hidden states of a batch predict a target, and which token that is, as int64.

    `target_positions` [targets] counts through the padded positions of `labels` [batch, length],
    row by row, each once: in a causal model the place before the token, in an encoder-decoder its
    own. `target_ids` [targets] are the tokens. `target_slots` [batch * length] is the inverse: the
    target that a position predicts, or their number where there is none.
    """
    import torch

    width = max(len(example.labels) for example in examples)
    positions: list[int] = []
    ids: list[int] = []
    for row, example in enumerate(examples):
        first = row * width - (1 if example.is_causal else 0)
        learnt = [at for at, label in enumerate(example.labels) if label != NOT_TRAINED]
        if example.is_causal and learnt[:1] == [0]:  # nothing predicts the first token
            del learnt[0]
        positions += [first + at for at in learnt]
        ids += [example.labels[at] for at in learnt]
    slots = [len(ids)] * (len(examples) * width)
    for slot, position in enumerate(positions):
        slots[position] = slot
    return {
        TARGET_POSITIONS: torch.tensor(positions, dtype=torch.long),
        TARGET_IDS: torch.tensor(ids, dtype=torch.long),
        TARGET_SLOTS: torch.tensor(slots, dtype=torch.long),
    }
