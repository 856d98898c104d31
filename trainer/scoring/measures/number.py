"""Numbers within a tolerance: the last number of an answer against that of the right one."""

from __future__ import annotations

from trainer.eval_tables.text import ToleranceTable
from trainer.scoring.measures.exact import same_text
from trainer.scoring.measures.measure import UNREADABLE, SimpleMeasure
from trainer.scoring.measures.number_text import last_number, same_number
from trainer.scoring.measures.words import bounded


def number(tolerance: ToleranceTable) -> SimpleMeasure:
    """Return the measure `number`.

    An answer without a number is wrong, with the note `unreadable`. A right answer without a number
    must be met word for word.
    """

    def scored(answer: str, reference: str) -> tuple[float, tuple[str, ...]]:
        (found_text, right_text), notes = bounded(answer, reference)
        right, found = last_number(right_text), last_number(found_text)
        if right is None:
            return float(same_text(answer, reference)), notes
        if found is None:
            return 0.0, (*notes, UNREADABLE)
        return float(same_number(found, right, tolerance)), notes

    return SimpleMeasure(name="number", scored=scored, share=True)
