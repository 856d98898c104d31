"""Chooses which held-out rows are scored, where `eval.rows` bounds their number."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from trainer.data.codec import Example


def choose_rows(items: Sequence[Example], rows: int | None) -> tuple[Example, ...]:
    """Return the examples of at most `rows` rows, in their order; all of them for None.

    Which rows depends on their words alone: a file that is sorted by answer is not cut to its
    first answers, and the same rows are chosen before and after, in every run. The examples of a
    conversation stay together.
    """
    texts: dict[int, str] = {}
    for item in items:
        texts[item.row] = f"{texts.get(item.row, '')}{item.prompt}\0{item.completion}\0"
    if rows is None or len(texts) <= rows:
        return tuple(items)
    ranked = sorted(texts, key=lambda row: (_sha256(texts[row]), row))
    chosen = set(ranked[:rows])
    return tuple(item for item in items if item.row in chosen)


def _sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
