"""SQuAD's F1 of the words that an answer shares with the right one.

Texts in scripts with spaces are compared by the rules of the published evaluation script
(P. Rajpurkar et al., SQuAD 2.0): lower case, without ASCII punctuation, without `a`, `an` and
`the`, split at space. In scripts without spaces that would compare whole sentences, so there the
tokens are words and single characters (`words_and_characters`), and the answer has the note
`own_tokens`.
"""

from __future__ import annotations

import re
import string
from collections import Counter

from trainer.scoring.measures.measure import SimpleMeasure
from trainer.scoring.measures.words import bounded, has_no_spaces, words_and_characters

ARTICLES = re.compile(r"\b(a|an|the)\b")
WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def tokens_f1() -> SimpleMeasure:
    """Return the measure `tokens_f1`."""
    return SimpleMeasure(name="tokens_f1", scored=_scored)


def _scored(answer: str, reference: str) -> tuple[float, tuple[str, ...]]:
    (found, right), notes = bounded(answer, reference)
    if has_no_spaces(found) or has_no_spaces(right):
        score = shared_f1(words_and_characters(found), words_and_characters(right))
        return score, (*notes, "own_tokens")
    return shared_f1(squad_tokens(found), squad_tokens(right)), notes


def squad_tokens(text: str) -> list[str]:
    """Return the tokens that SQuAD's script compares."""
    bare = text.lower().translate(WITHOUT_PUNCTUATION)
    return ARTICLES.sub(" ", bare).split()


def shared_f1(answer: list[str], reference: list[str]) -> float:
    """Return the F1 of two multisets of tokens; if one is empty, 1 if the other is, too, else 0."""
    if not answer or not reference:
        return float(answer == reference)
    shared = (Counter(answer) & Counter(reference)).total()
    return 2 * shared / (len(answer) + len(reference))
