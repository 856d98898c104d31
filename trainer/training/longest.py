"""Finds the passes of a training that need the most memory, by the lengths of their rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from trainer.data.codec import Example
from trainer.schedule import Schedule, micro_batches

ROWS_MAX = 200_000
"""Rows of a schedule that are looked through; of a longer one, its worst case is made up."""
MORE_TARGETS = 1.1
"""A pass with so many times the targets of the longest may need more memory than that one."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """The rows of one forward and backward pass."""

    examples: tuple[Example, ...]
    packed: bool = False
    """Whether its rows lie one behind the other, without padding."""

    @property
    def padded(self) -> int:
        """Tokens with padding, if there is any, of what is read and what is written."""
        if self.packed:
            return sum(len(one.input_ids) + len(one.labels) for one in self.examples)
        longest = max(len(one.input_ids) for one in self.examples)
        return len(self.examples) * (longest + max(len(one.labels) for one in self.examples))

    @property
    def tokens(self) -> int:
        """Tokens that are read, with padding, if there is any."""
        if self.packed:
            return sum(len(one.input_ids) for one in self.examples)
        return len(self.examples) * max(len(one.input_ids) for one in self.examples)

    @property
    def targets(self) -> int:
        """Tokens that are learnt."""
        return sum(one.targets for one in self.examples)

    def shortened(self, divisor: int) -> Pass:
        """Return the pass with the last `1/divisor` of each row, where its targets are."""
        rows = tuple(_shortened(one, divisor) for one in self.examples)
        return Pass(examples=rows, packed=self.packed)


def longest_passes(
    schedule: Schedule,
    examples: Sequence[Example],
    *,
    micro_batch: int,
    first_step: int = 0,
    packed: bool = False,
) -> list[Pass]:
    """Return the pass with the most tokens of all steps from `first_step` on.

    Without padding (`packed`) that may be another one than with it.

    One with clearly more targets follows it, if there is one: it has the most logits.
    """
    steps = range(min(first_step, schedule.steps - 1), schedule.steps)
    if len(steps) * schedule.batch_size > ROWS_MAX:
        return [replace(_worst_case(examples, micro_batch, packed=packed), packed=packed)]
    found: set[tuple[int, ...]] = set()
    for step in steps:
        found.update(micro_batches(schedule.batch(step), micro_batch))
    passes = [
        Pass(examples=tuple(examples[row] for row in rows), packed=packed) for rows in sorted(found)
    ]
    longest = max(passes, key=lambda one: (one.padded, one.targets))
    widest = max(passes, key=lambda one: (one.targets, one.padded))
    return [longest, widest] if widest.targets > MORE_TARGETS * longest.targets else [longest]


def _worst_case(examples: Sequence[Example], micro_batch: int, *, packed: bool) -> Pass:
    """Return the longest row, with those that have the most targets beside it.

    Without padding those beside it are the next longest ones: each token counts by itself.
    """
    longest = max(
        range(len(examples)), key=lambda at: len(examples[at].input_ids) + len(examples[at].labels)
    )
    others = sorted(
        range(len(examples)),
        key=lambda at: -len(examples[at].input_ids) if packed else -examples[at].targets,
    )
    rows = [longest, *(at for at in others if at != longest)][:micro_batch]
    return Pass(examples=tuple(examples[at] for at in rows))


def _shortened(example: Example, divisor: int) -> Example:
    ids = example.input_ids[-max(2, len(example.input_ids) // divisor) :]
    labels = example.labels[-max(2, len(example.labels) // divisor) :]
    causal = len(example.input_ids) > example.prompt_length
    return replace(example, input_ids=ids, labels=labels, prompt_length=0 if causal else len(ids))
