"""Prepares the rows of a file as `qft init --data` writes them beside the run.yaml."""

from __future__ import annotations

from collections.abc import Sequence

from commands.runs.column_guess import Guess
from commands.runs.columns import answered, conversation
from trainer.data.row import Row


def prepared_rows(rows: Sequence[Row], guess: Guess) -> list[Row]:
    """Return the rows as they are written beside the run.yaml of a guess.

    Rows without an answer are left out, labels have one spelling, a conversation that stood in a
    cell as text is a list, and each row has every field that the templates name.
    """
    from trainer.data.template import Template, as_text

    names = Template.parse(guess.prompt).fields
    found = []
    for row in rows:
        fields = {**row.fields, **{name: row.fields.get(name) for name in names}}
        value = row.fields.get(guess.answer)
        if guess.messages:
            turns = answered(conversation(value))
            if not turns:
                continue
            fields[guess.answer] = turns
        else:
            text = as_text(guess.answer, value)
            if not text.strip():
                continue
            fields[guess.answer] = guess.spelled.get(text, value)
        found.append(Row(number=row.number, fields=fields))
    return found
