"""Names the sizes of the machines that this computer plays, by how many cards they have."""

from __future__ import annotations

SIZE = "local-gpu"
_SEVERAL = f"{SIZE}-x"


def size_with(cards: int) -> str:
    """Return the size of a machine with so many cards."""
    return SIZE if cards == 1 else f"{_SEVERAL}{cards}"


def cards_of(size: str) -> int:
    """Return how many cards a machine of that size has; 1 for a size of another name."""
    count = size.removeprefix(_SEVERAL)
    return int(count) if size.startswith(_SEVERAL) and count.isdecimal() else 1
