"""Says how a training step is shared by several cards, before anything is loaded."""

from __future__ import annotations

from trainer.config import TrainerConfig


def share_of_card(batch_size: int, cards: int) -> int:
    """Return how many sequences of a step one of several cards has at most."""
    return -(-batch_size // cards)


def describe_split(config: TrainerConfig, cards: int) -> str:
    """Return in words how a step is cut for several cards, and which of them have nothing to do.

    Nothing is loaded for it: a smaller micro-batch, if memory asks for one, has more parts.
    """
    rows, wanted = config.train.batch_size, config.train.micro_batch
    size = share_of_card(rows, cards)
    if wanted != "auto":
        size = min(wanted, size)
    parts = -(-rows // size)
    each = f"{size} sequence{'s' * (size > 1)}"
    text = f"a step of {rows} has {parts} micro-batches of at most {each} for {cards} cards"
    idle = cards - parts
    if idle <= 0:
        return text
    are = "1 card has" if idle == 1 else f"{idle} cards have"
    return f"warning: {text}: {are} nothing to do; raise `train.batch_size` to {cards * size}"
