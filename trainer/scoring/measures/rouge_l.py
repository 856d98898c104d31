"""ROUGE-L, the F1 of the longest common subsequence of words, equal to rouge-score's.

Tokens are those of rouge-score 0.1.2 without a stemmer while both texts are ASCII. Its tokenizer
drops whatever else there is, all of Chinese, so that equal texts would get 0: otherwise the tokens
are words and single characters (`words_and_characters`), and the answer has the note `own_tokens`.

The package itself is what tests compare with. It has no wheel, and machines install wheels only;
its table of subsequences would take a second for two answers of a thousand words.
"""

from __future__ import annotations

import re

from trainer.scoring.measures.measure import SimpleMeasure
from trainer.scoring.measures.words import bounded, words_and_characters

ASCII_TOKEN = re.compile("[a-z0-9]+")
SIGNATURE = "rougeL|stemmer:no|as:rouge-score-0.1.2"


def rouge_l() -> SimpleMeasure:
    """Return the measure `rouge_l`: the mean F1 over answers."""
    return SimpleMeasure(name="rouge_l", scored=_scored, about={"signature": SIGNATURE})


def _scored(answer: str, reference: str) -> tuple[float, tuple[str, ...]]:
    (found, right), notes = bounded(answer, reference)
    if found.isascii() and right.isascii():
        tokens = [ASCII_TOKEN.findall(one.lower()) for one in (found, right)]
    else:
        tokens = [words_and_characters(one) for one in (found, right)]
        notes = (*notes, "own_tokens")
    shared = subsequence_length(*tokens)
    if not shared:
        return 0.0, notes
    precision, recall = shared / len(tokens[0]), shared / len(tokens[1])
    return 2 * precision * recall / (precision + recall), notes


def subsequence_length(one: list[str], other: list[str]) -> int:
    """Return the length of the longest common subsequence.

    The table of the usual algorithm is kept a row at a time, as the bits of a number (H. Hyyrö,
    "Bit-parallel LCS-length computation revisited", 2004).
    """
    places: dict[str, int] = {}
    for at, token in enumerate(one):
        places[token] = places.get(token, 0) | 1 << at
    every = (1 << len(one)) - 1
    row = every
    for token in other:
        matches = row & places.get(token, 0)
        row = ((row + matches) | (row - matches)) & every
    return len(one) - row.bit_count()
