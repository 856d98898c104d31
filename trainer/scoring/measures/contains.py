"""Contains: the right answer stands somewhere in the answer, as whole words."""

from __future__ import annotations

from trainer.scoring.measures.measure import SimpleMeasure
from trainer.scoring.measures.words import bounded, in_word, is_without_spaces, normalised


def contains(*, ignore_case: bool) -> SimpleMeasure:
    """Return the measure `contains`."""

    def scored(answer: str, reference: str) -> tuple[float, tuple[str, ...]]:
        (whole, part), notes = bounded(answer, reference)
        found = has_words(
            normalised(whole, ignore_case=ignore_case), normalised(part, ignore_case=ignore_case)
        )
        return float(found), notes

    return SimpleMeasure(name="contains", scored=scored, share=True)


def has_words(text: str, words: str) -> bool:
    """Return whether `words` stand in `text` with no part of a word before or behind them.

    Characters of scripts without spaces are words of their own. Empty words are nowhere.
    """
    at = text.find(words) if words else -1
    while at >= 0:
        end = at + len(words)
        if not _joined(text[at - 1 : at], words[0]) and not _joined(words[-1], text[end : end + 1]):
            return True
        at = text.find(words, at + 1)
    return False


def _joined(left: str, right: str) -> bool:
    """Return whether two neighbours, either of which may be empty, are within one word."""
    return all(one and in_word(one) and not is_without_spaces(one) for one in (left, right))
