"""Parses labels from the text of a model and writes labels as text; what is unreadable is counted.

The same parser checks the training rows and scores the answers, so a label is the same in both.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from trainer.errors import ConfigError
from trainer.eval_tables.labels import LabelEvalTable
from trainer.text import bare

SETS_MAX = 256  # more sets of labels than this are not listed for constrained decoding


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The labels parsed from a text; `unknown` are words in their place that are no labels."""

    labels: frozenset[str]
    unknown: tuple[str, ...]
    readable: bool


def read_answer(text: str, table: LabelEvalTable) -> Answer:
    """Parse one label, or a set written as a comma list, a line list or a JSON list.

    Case, outer spaces and a closing full stop do not matter. A single label is the first line, and
    may be followed by further words; a set may be the word for "none". Nothing readable is the
    empty set with `readable` false.
    """
    if table.kind == "label":
        return _read_one(text, {label.casefold(): label for label in table.labels})
    by_casefold = {bare(label).casefold(): label for label in table.labels}
    words = split_labels(text)
    if [word.casefold() for word in words] == [bare(table.none).casefold()]:
        return Answer(labels=frozenset(), unknown=(), readable=True)
    labels = frozenset(
        by_casefold[word.casefold()] for word in words if word.casefold() in by_casefold
    )
    unknown = tuple(word for word in words if word.casefold() not in by_casefold)
    return Answer(labels=labels, unknown=unknown, readable=bool(labels))


def write_answer(labels: Sequence[str] | frozenset[str], table: LabelEvalTable) -> str:
    """Write a set of labels in canonical order, as `read_answer` reads it back."""
    if not labels:
        return table.none
    return ", ".join(label for label in table.labels if label in labels)


def label_problem(completion: str, table: LabelEvalTable) -> str | None:
    """Return what is wrong with the labels that a completion names; None if all are listed."""
    answer = read_answer(completion, table)
    exact = write_answer(answer.labels, table).casefold() == completion.strip().casefold()
    if answer.readable and not answer.unknown and (table.kind == "multilabel" or exact):
        return None
    words = ", ".join(map(repr, answer.unknown)) or repr(completion.strip())
    return f"{words} is not among the labels ({', '.join(table.labels)})"


def all_answers(
    table: LabelEvalTable, learnt_sets: Sequence[frozenset[str]] = ()
) -> Iterator[frozenset[str]]:
    """Yield every possible answer: each label, or each set of labels, small sets first.

    If there are more than SETS_MAX sets: none, every single label, the `learnt_sets` (those of the
    training rows, the commonest first) and then small ones, as many as there is room for. Then a
    right answer may be missing, and the caller must report that.
    """
    labels = table.labels
    if table.kind == "label":
        yield from (frozenset([label]) for label in labels)
        return
    alone = [frozenset[str](), *(frozenset([label]) for label in labels)]
    small = (
        frozenset(chosen)
        for size in range(2, len(labels) + 1)
        for chosen in itertools.combinations(labels, size)
    )
    learnt = learnt_sets if possible_answers(table) > SETS_MAX else ()
    yielded: set[frozenset[str]] = set()
    for answer in itertools.chain(alone, learnt, small):
        if len(yielded) >= max(SETS_MAX, len(alone)):
            return
        if answer not in yielded:
            yielded.add(answer)
            yield answer


def possible_answers(table: LabelEvalTable) -> int:
    """Return the number of possible answers."""
    count = len(table.labels)
    return count if table.kind == "label" else 2**count


def require_apart(listed: Sequence[Sequence[int]], texts: Sequence[str]) -> None:
    """Raise `ConfigError` if two answers have the same tokens, as words unknown to some have."""
    first: dict[tuple[int, ...], str] = {}
    for ids, text in zip(listed, texts, strict=True):
        other = first.setdefault(tuple(ids), text)
        if other != text:
            same = f"the tokenizer of the base writes {other!r} and {text!r} with the same tokens"
            raise ConfigError(
                [f"eval.labels: {same}; rename one, also in the rows, with letters that it knows"]
            )


def _read_one(text: str, by_casefold: dict[str, str]) -> Answer:
    lines = text.strip().splitlines()
    line = lines[0] if lines else ""
    whole = line.casefold()
    forms = (whole, whole.lstrip("\"'`*[( "))  # a label may itself begin with such a sign
    # The longest first: with `toxic` and `toxic spam` the text `toxic spam` is the latter.
    for word in sorted(by_casefold, key=len, reverse=True):
        begun = [form[len(word) :] for form in forms if form.startswith(word)]
        if any(not rest[:1].isalnum() for rest in begun):
            return Answer(labels=frozenset([by_casefold[word]]), unknown=(), readable=True)
    return Answer(labels=frozenset(), unknown=(line,) if line else (), readable=False)


def split_labels(text: str) -> list[str]:
    """Split a text into the words of a set of labels, as `read_answer` does."""
    stripped = text.strip()
    if stripped.startswith("["):
        try:
            value = json.loads(stripped)
        except json.JSONDecodeError:
            value = None
        if isinstance(value, list) and all(isinstance(word, str) for word in value):
            return [bare(word) for word in value if bare(word)]
    parts = (part for line in stripped.splitlines() for part in line.replace(";", ",").split(","))
    return [word for word in map(bare, parts) if word]
