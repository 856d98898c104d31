"""Exact match: the answer is the right one, apart from space and from how Unicode writes it."""

from __future__ import annotations

from trainer.scoring.measures.measure import SimpleMeasure
from trainer.scoring.measures.words import CHARACTERS_MAX, normalised


def exact(*, ignore_case: bool) -> SimpleMeasure:
    """Return the measure `exact`."""

    def scored(answer: str, reference: str) -> tuple[float, tuple[str, ...]]:
        return float(same_text(answer, reference, ignore_case=ignore_case)), ()

    return SimpleMeasure(name="exact", scored=scored, share=True)


def same_text(answer: str, reference: str, *, ignore_case: bool = False) -> bool:
    """Return whether two texts are equal once both are normalised (form C, space, perhaps case).

    Texts of more than `CHARACTERS_MAX` are equal only as they are written: to normalise long runs
    of combining marks takes time by the square of their number.
    """
    if answer == reference:
        return True
    if max(len(answer), len(reference)) > CHARACTERS_MAX:
        return answer.split() == reference.split()
    found, right = (normalised(one, ignore_case=ignore_case) for one in (answer, reference))
    return found == right
