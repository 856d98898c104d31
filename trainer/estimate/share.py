"""Says how a training step is shared by several cards, before anything is loaded."""

from __future__ import annotations

from trainer.config import TrainerConfig
from trainer.estimate.cards import idle_warning, rounds


def share_of_card(batch_size: int, cards: int) -> int:
    """Return how many sequences of a step one of several cards has at most."""
    return rounds(batch_size, cards)


def describe_split(config: TrainerConfig, cards: int) -> str:
    """Return in words how a step is cut for several cards, and which of them have nothing to do.

    Nothing is loaded for it: a smaller micro-batch, if memory asks for one, has more parts.
    """
    rows, wanted = config.train.batch_size, config.train.micro_batch
    size = share_of_card(rows, cards)
    if wanted != "auto":
        size = min(wanted, size)
    parts = rounds(rows, size)
    # What is sharded is known only with the base; then fewer cards may not hold it.
    found = {"cards": cards, "portions": parts, "idle": max(0, cards - parts), "sharded": True}
    if idle := idle_warning(found, batch_size=rows):
        return f"warning: {idle}"
    each = f"{size} row{'s' * (size > 1)}"
    return f"a step of {rows} rows has {parts} micro-batches of at most {each} for {cards} cards"
