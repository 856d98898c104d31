"""Says of rows, without a tokenizer or a model, which of them could not be scored as asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trainer.data.chat.conversation import read_conversation
from trainer.data.row import Row
from trainer.data.template import MissingFieldError, Template
from trainer.data_table import DataTable
from trainer.eval_tables.choice import ChoiceEvalTable
from trainer.eval_tables.common import EvalFields
from trainer.eval_tables.text import AnswerFields
from trainer.scoring.measures.reference_problems import reference_problems
from trainer.scoring.options import OptionsError, read_options, written_otherwise


def scored_row_problems(
    rows: Sequence[Row], data: DataTable, table: EvalFields | None
) -> list[tuple[int, str]]:
    """Return what keeps rows from being scored, each with the row's number and what to do.

    A row that cannot even be learnt is passed over: whoever reads it says so.
    """
    if isinstance(table, ChoiceEvalTable):
        return list(_without_option(rows, data, table))
    if not isinstance(table, AnswerFields):
        return []
    every = table.kind == "chat" and data.answers == "all"
    answers = [
        (row.number, text) for row in rows for text in _right_answers(row.fields, data, every=every)
    ]
    return reference_problems(answers, table.measures)


def _without_option(
    rows: Sequence[Row], data: DataTable, table: ChoiceEvalTable
) -> Iterator[tuple[int, str]]:
    """Yield the problem of each row whose right answer is not one of its options."""
    template = None if data.messages is not None else Template.parse(data.completion)
    ways: dict[bool, int] = {}
    for row in rows:
        for answer in _right_answers(row.fields, data, every=False):
            try:
                by_letter = read_options(row.fields, answer, table, template).by_letter
            except OptionsError as error:
                yield row.number, str(error)
                continue
            if not ways:
                ways[by_letter] = row.number
            elif by_letter not in ways:
                yield row.number, written_otherwise(by_letter=by_letter, row=ways[not by_letter])


def _right_answers(fields: Mapping[str, Any], data: DataTable, *, every: bool) -> list[str]:
    """Return the right answer of a row; of a conversation the last one, or `every` one learnt."""
    try:
        if data.messages is None:
            return [Template.parse(data.completion).render(fields)]
        found = read_conversation(fields, data.messages, ignore=data.ignore)
    except MissingFieldError:
        return []
    pairs = zip(found.messages, found.learnt, strict=True)
    answers = [one for one, learnt in pairs if learnt] if every else [found.messages[-1]]
    return [str(one["content"]) for one in answers if one.get("content")]
