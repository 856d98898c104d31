"""What a training minimises: how its rows become batches, and a batch a loss.

A further objective, such as one over preferred and rejected answers, is a class in a file of its
own and a row in `OBJECTIVES`; loop, validation and checkpoints stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch

from trainer.config import TrainerConfig
from trainer.data.codec import Example
from trainer.data.examples import Examples, collate, load_examples, padding_id
from trainer.data.packed import collate_packed
from trainer.data.targets import collate_targets
from trainer.data_table import DataTable
from trainer.device.out_of_memory import MEMORY_ERRORS, give_memory_back, is_out_of_memory
from trainer.errors import DoesNotFit
from trainer.hub import Shards
from trainer.kernels.kernel_set import NO_KERNELS, KernelSet
from trainer.loss import summed_cross_entropy

Batch = dict[str, torch.Tensor]


class Objective(Protocol):
    """One way to learn from rows; stateless, so that a resumed run needs nothing of it."""

    def load(self, rows: Path | Shards) -> Examples:
        """Read all rows; `targets` of an example says how much its loss counts.

        Raises:
            DataError: the rows cannot be used, with every problem of the file at once.
        """

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Return the padded tensors of some examples, on the CPU."""

    def loss(self, model: Any, batch: Batch, kernels: KernelSet = NO_KERNELS) -> torch.Tensor:
        """Return the loss summed over the targets of a batch, float32, with its graph.

        `kernels` are given while training, and switched on around the call.
        """


@dataclass(frozen=True, kw_only=True)
class SupervisedFineTuning:
    """Cross-entropy over the tokens of the answers, or of all of a text (`data.loss_on`)."""

    table: DataTable
    tokenizer: Any
    max_length: int
    seq2seq: bool
    embedding_rows: int | None = None
    """For so many token ids the base has an embedding; None if that is not known."""

    def load(self, rows: Path | Shards) -> Examples:
        """Read all rows as prompts with their completions, or as conversations."""
        return load_examples(
            self.table, rows, self.tokenizer, max_length=self.max_length, seq2seq=self.seq2seq
        )

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Return `input_ids`, `attention_mask` and `labels`, and where the targets are."""
        padded = collate(examples, padding_id(self.tokenizer, self.embedding_rows))
        return {**padded, **collate_targets(examples)}

    def loss(self, model: Any, batch: Batch, kernels: KernelSet = NO_KERNELS) -> torch.Tensor:
        """Return the summed cross-entropy (nats)."""
        return summed_cross_entropy(model, batch, kernels)


@dataclass(frozen=True, kw_only=True)
class Packed:
    """An objective whose batches have no padding, for kernels that keep rows apart by themselves.

    Only for a causal model, and where a batch of the objective is nothing but rows.
    """

    inner: Objective

    def load(self, rows: Path | Shards) -> Examples:
        """Read rows as ever."""
        return self.inner.load(rows)

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Put the rows one behind the other."""
        return collate_packed(examples)

    def loss(self, model: Any, batch: Batch, kernels: KernelSet = NO_KERNELS) -> torch.Tensor:
        """Return the loss of all rows."""
        return self.inner.loss(model, batch, kernels)


OBJECTIVES: Mapping[str, Callable[..., Objective]] = MappingProxyType({"sft": SupervisedFineTuning})


def make_objective(
    config: TrainerConfig, tokenizer: Any, *, seq2seq: bool, embedding_rows: int | None = None
) -> Objective:
    """Return the objective of a run; every config asks for supervised fine-tuning so far."""
    return OBJECTIVES["sft"](
        table=config.data,
        tokenizer=tokenizer,
        max_length=config.train.max_length,
        seq2seq=seq2seq,
        embedding_rows=embedding_rows,
    )


def mean_loss(
    model: Any,
    examples: Sequence[Example],
    *,
    objective: Objective,
    micro_batch: int,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> float:
    """Return the loss of `examples` per target (nats per token in fine-tuning), in no-grad mode.

    Rows of similar length go through the model together, the longest first, `micro_batch` at a
    time, and fewer if memory runs out. `on_progress` is called with the rows done and in all before
    the first pass and after every one, and may raise. The caller sets the model's mode.

    Raises:
        DoesNotFit: memory does not even suffice for one row.
    """
    rows = longest_first(examples)
    targets = sum(item.targets for item in rows)
    device = next(model.parameters()).device
    total = torch.zeros((), dtype=torch.float64, device=device)
    done = 0
    on_progress(done, len(rows))
    while done < len(rows):
        batch = objective.collate(rows[done : done + micro_batch])
        try:
            with torch.no_grad():
                total += objective.loss(
                    model, {name: value.to(device) for name, value in batch.items()}
                )
        except MEMORY_ERRORS as error:
            if not is_out_of_memory(error):
                raise
            if micro_batch == 1:
                raise DoesNotFit(row_does_not_fit(error)) from error
            micro_batch = -(-micro_batch // 2)
        else:
            done = min(done + micro_batch, len(rows))
            on_progress(done, len(rows))
            continue
        give_memory_back()
    return (total / max(1, targets)).item()


def longest_first(examples: Sequence[Example]) -> list[Example]:
    """Return rows in the order in which their loss is computed."""
    return sorted(examples, key=lambda item: -len(item.input_ids) - len(item.labels))


def row_does_not_fit(error: BaseException) -> str:
    """Say what to do if memory does not even suffice for one held-out row."""
    return (
        "one held-out row does not fit into the memory of the device; lower "
        f"`train.max_length`, or rent a larger GPU ({error})"
    )
