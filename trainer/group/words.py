"""What the ranks tell each other about a step and its rounds, as a few integers on the host."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.errors import CardsDisagree
from trainer.group.peers import GiveUp

BITS = 62
"""Of the integers that hold which tensors have a gradient; each has 64, one is the sign."""
NO_NOTICE = -1


@dataclass(frozen=True, kw_only=True)
class StepWord:
    """A rank's state between two steps: what all must have alike, and what they must hear of."""

    step: int
    digest: int
    seconds_left: float
    """Until the announced end; infinite without a notice."""

    def to_ints(self) -> list[int]:
        """Return what travels."""
        left = self.seconds_left
        return [
            self.step,
            self.digest,
            NO_NOTICE if math.isinf(left) else max(0, round(1000 * left)),
        ]


def read_step_word(values: Sequence[int]) -> StepWord:
    """Return the word that `StepWord.to_ints` wrote."""
    step, digest, left_ms = values
    left = math.inf if left_ms == NO_NOTICE else left_ms / 1000
    return StepWord(step=step, digest=digest, seconds_left=left)


def require_same(words: Sequence[StepWord]) -> None:
    """Return if all ranks have done the same steps and have the same bits.

    Raises:
        CardsDisagree: they have not; the cards in question are named.
    """
    steps = [word.step for word in words]
    if len(set(steps)) > 1:
        each = ", ".join(f"card {rank} at {step}" for rank, step in enumerate(steps))
        raise CardsDisagree(
            f"the cards have not done the same steps ({each}); start the same command again"
        )
    counts = Counter(word.digest for word in words)
    if len(counts) == 1:
        return
    usual, votes = counts.most_common(1)[0]
    advice = "the checkpoints before that step stand; start again, if need be on other cards"
    if 2 * votes > len(words):
        others = [rank for rank, word in enumerate(words) if word.digest != usual]
        raise CardsDisagree(f"{_cards(others)} computed other bits at step {steps[0]}; {advice}")
    raise CardsDisagree(
        f"{_cards(range(len(words)))} computed different bits at step {steps[0]}, and it cannot be "
        f"told which of them is at fault; {advice}"
    )


def _cards(ranks: Sequence[int]) -> str:
    if len(ranks) == 1:
        return f"card {ranks[0]}"
    *first, last = map(str, ranks)
    return f"cards {', '.join(first)} and {last}"


@dataclass(frozen=True, kw_only=True)
class RoundWord:
    """What a rank tells in a round: whether it goes on, and which tensors got a gradient so far."""

    reason: GiveUp
    count: int
    """The micro-batches of the step, which all ranks must have cut alike."""
    number: int
    """Of the round."""
    present: frozenset[int]
    """The tensors, by their place, that got a gradient from any micro-batch of this rank."""

    def to_ints(self, tensors: int) -> list[int]:
        """Return what travels if there are so many tensors."""
        masks = [0] * (-(-tensors // BITS))
        for place in self.present:
            masks[place // BITS] |= 1 << place % BITS
        return [self.reason, self.count, self.number, *masks]


def read_round_word(values: Sequence[int]) -> RoundWord:
    """Return the word that `RoundWord.to_ints` wrote."""
    reason, count, number, *masks = values
    present = (
        BITS * at + bit for at, mask in enumerate(masks) for bit in range(BITS) if mask >> bit & 1
    )
    return RoundWord(reason=GiveUp(reason), count=count, number=number, present=frozenset(present))
