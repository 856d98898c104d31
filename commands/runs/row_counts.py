"""Counts rows as far as it shows without a tokenizer: which labels they have, and how many words.

Tokenizers split a text at its blanks first, so that it has at least as many tokens as words.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from trainer.eval_tables.labels import LabelEvalTable
from trainer.scoring.answers import label_problem, read_answer

SIMILAR = 0.75


@dataclass(kw_only=True)
class RowCounts:
    """What the rows of one file have in all."""

    answers: set[str] = field(default_factory=set)
    """The different answers, stripped; counted only where they are labels."""
    rows: int = 0
    words_min: int = 0
    """Words of the shortest row's longer text: its prompt or its answer."""

    def add(self, texts: Sequence[str], *, labelled: bool) -> None:
        """Take a row by its texts, of which the last is its answer."""
        words = max(len(text.split()) for text in texts)
        self.words_min = min(self.words_min, words) if self.rows else words
        self.rows += 1
        if labelled:
            self.answers.add(texts[-1].strip())

    def length_problem(self, *, too_long: str, tokens_max: int) -> str | None:
        """Return that every row is surely left out as too long; None if one may be learnt."""
        if too_long != "drop" or not self.rows or self.words_min <= tokens_max:
            return None
        return (
            f"all of its {self.rows} rows have more than {tokens_max} tokens (`too_long: drop`; "
            f"the shortest has {self.words_min} words); raise `train.max_length`"
        )


def row_length_problem(texts: Sequence[str], *, too_long: str, tokens_max: int) -> str | None:
    """Return why a row is surely too long to be learnt, by its words; None if it may be.

    Only what is before the answer can be shortened. Rows that are dropped are no problem each.
    """
    if too_long == "drop":
        return None
    answer = len(texts[-1].split())
    if answer > tokens_max and len(texts) > 1:
        return (
            f"the completion has {answer} words, and `train.max_length` is {tokens_max} tokens; "
            "raise it or shorten the completion"
        )
    most = max(len(text.split()) for text in texts)
    if too_long == "refuse" and most > tokens_max:
        return (
            f"the row has more than {most} tokens, and `train.max_length` is {tokens_max} "
            "(`too_long: refuse`); raise it, shorten the row, or choose `cut` or `drop`"
        )
    return None


def answer_problem(answer: str, table: LabelEvalTable) -> str | None:
    """Return what is wrong with the labels of an answer, with the label that was probably meant."""
    problem = label_problem(answer, table)
    if problem is None:
        return None
    unknown = read_answer(answer, table).unknown or (answer.strip(),)
    lower = {label.lower(): label for label in table.labels}
    near = [
        lower[one]
        for word in unknown
        for one in difflib.get_close_matches(word.lower(), lower, n=1, cutoff=SIMILAR)
    ]
    return f"{problem}; did you mean {near[0]!r}?" if near else problem


def unseen_labels(answers: Collection[str], table: LabelEvalTable) -> list[str]:
    """Return the labels that none of these answers has, in the order of the table."""
    seen = {label for answer in answers for label in read_answer(answer, table).labels}
    return [label for label in table.labels if label not in seen]
