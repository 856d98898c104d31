"""Compares answers with each other and with what is read before them.

`spellings` finds one label written in several ways; `ends_with` tells whether a text gives its
own answer away. Both are used where rows are guessed from and where they are audited.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from decimal import Decimal

LABELS_MAX, ROWS_PER_LABEL_MIN = 50, 3
"""So many different answers at most, each so often on average, are taken for labels."""
LONG_CHARACTERS, LONG_WORDS = 20, 4
"""An answer of so many characters and words does not stand in a text by chance."""
INVISIBLE = frozenset("\u200b\u2060\ufeff\u00ad")
"""Characters without a width, which come along when texts are copied."""
NUMBER = re.compile(r"[+-]?(0|[1-9]\d{0,15})(\.\d{1,15})?([eE][+-]?\d{1,2})?")
ENDS = re.compile(r"(\s|<[^<>\s]{1,24}>|### End)+$")
"""What stands behind an answer where a whole example is written out, such as `</s>`."""


def are_labels(counts: Mapping[str, int]) -> bool:
    """Return whether answers, each with how often it stands, are few and recur."""
    few = min(LABELS_MAX, sum(counts.values()) // ROWS_PER_LABEL_MIN)
    return 1 < len(counts) <= few and not any(map(is_text, counts))


def is_text(answer: str) -> bool:
    """Return whether an answer is a text, an object or code, which is no label."""
    start = answer.lstrip()
    return "\n" in answer.strip() or start[:1] in {"{", "<"} or start[:2] in {"[{", "[["}


def spellings(counts: Mapping[str, int]) -> list[Counter[str]]:
    """Return, for each label that is written in several ways, the ways and how often each stands.

    Case, spaces, the form of a number (`1`, `1.0`) and of accents do not make another label.
    """
    groups: dict[str, Counter[str]] = {}
    for answer, count in counts.items():
        groups.setdefault(spelling_key(answer), Counter())[answer] += count
    return [ways for ways in groups.values() if len(ways) > 1]


def spelling_key(answer: str) -> str:
    """Return what all spellings of a label share."""
    return one_spelling(answer).casefold()


def one_spelling(answer: str) -> str:
    """Return a label without outer and double spaces, a whole number without its point."""
    text = unicodedata.normalize("NFC", " ".join(answer.split()))
    if not NUMBER.fullmatch(text):
        return text
    value = Decimal(text)
    return str(int(value)) if value == value.to_integral_value() else str(value.normalize())


def ends_with(answer: str, text: str) -> bool:
    """Return whether a text ends with an answer as words of their own, but for end tokens."""
    answer = answer.strip()
    return bool(answer) and any(
        whole.endswith(answer) and not whole[: -len(answer)][-1:].isalnum()
        for whole in (text.rstrip(), ENDS.sub("", text))
    )


def is_long(answer: str) -> bool:
    """Return whether an answer is too long to stand in a text by chance."""
    return len(answer) >= LONG_CHARACTERS and len(answer.split()) >= LONG_WORDS
