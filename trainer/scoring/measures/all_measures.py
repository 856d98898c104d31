"""The measures of free answers by name, as run.yaml names them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from trainer.eval_tables.text import AnswerFields, TextEvalTable
from trainer.scoring.measures.contains import contains
from trainer.scoring.measures.corpus import bleu, chrf
from trainer.scoring.measures.exact import exact
from trainer.scoring.measures.json_fields import JsonFields
from trainer.scoring.measures.measure import Figure, Measure
from trainer.scoring.measures.number import number
from trainer.scoring.measures.rouge_l import rouge_l
from trainer.scoring.measures.tokens_f1 import tokens_f1

MAKERS: Mapping[str, Callable[[AnswerFields, Sequence[str]], Measure]] = MappingProxyType(
    {
        "exact": lambda table, _references: exact(ignore_case=table.ignore_case),
        "tokens_f1": lambda _table, _references: tokens_f1(),
        "chrf": lambda _table, _references: chrf(),
        "rouge_l": lambda _table, _references: rouge_l(),
        "contains": lambda table, _references: contains(ignore_case=table.ignore_case),
        "json": lambda table, _references: JsonFields(
            tolerance=table.tolerance, unordered=table.lists == "unordered"
        ),
        "number": lambda table, _references: number(table.tolerance),
        "bleu": lambda _table, references: bleu(references),
    }
)
"""Makes a measure from the table `eval` and all right answers."""


def make_measures(table: AnswerFields, references: Sequence[str]) -> dict[str, Measure]:
    """Return the measures that a table asks for, in its order."""
    return {name: MAKERS[name](table, references) for name in table.measures}


def figures_of_measure(name: str) -> Mapping[str, Figure]:
    """Return the figures of a measure; compares no text, and loads no library but for BLEU.

    Raises:
        KeyError: there is no such measure.
    """
    return MAKERS[name](TextEvalTable(), ()).figures
