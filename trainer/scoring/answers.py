"""Reads what a model wrote as labels; whatever cannot be read is counted, never dropped.

The same reader checks the training rows and scores the answers, so both mean the same by a label.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from trainer.config import ConfigError
from trainer.text import bare

SETS_MAX = 256  # more sets of labels than this are not listed for constrained decoding


class Vocabulary(Protocol):
    """What this module needs of the eval table."""

    @property
    def kind(self) -> str:
        """`label` for exactly one label, `multilabel` for a set."""

    @property
    def labels(self) -> list[str]:
        """All labels there are, in their canonical order."""

    @property
    def none(self) -> str:
        """What is written for the empty set."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The labels read from a text; `unknown` are words in their place that are no labels."""

    labels: frozenset[str]
    unknown: tuple[str, ...]
    readable: bool


def read_answer(text: str, vocabulary: Vocabulary) -> Answer:
    """Read one label, or a set written as a comma list, a line list or a JSON list.

    Case, outer spaces and a closing full stop do not matter. A single label is the first line, and
    may be followed by further words; a set may be the word for "none". Nothing readable is the
    empty set with `readable` false.
    """
    if vocabulary.kind == "label":
        return _read_one(text, {label.casefold(): label for label in vocabulary.labels})
    known = {bare(label).casefold(): label for label in vocabulary.labels}
    words = split_labels(text)
    if [word.casefold() for word in words] == [bare(vocabulary.none).casefold()]:
        return Answer(labels=frozenset(), unknown=(), readable=True)
    labels = frozenset(known[word.casefold()] for word in words if word.casefold() in known)
    unknown = tuple(word for word in words if word.casefold() not in known)
    return Answer(labels=labels, unknown=unknown, readable=bool(labels))


def write_answer(labels: Sequence[str] | frozenset[str], vocabulary: Vocabulary) -> str:
    """Write a set of labels in canonical order, as `read_answer` reads it back."""
    if not labels:
        return vocabulary.none
    return ", ".join(label for label in vocabulary.labels if label in labels)


def label_problem(completion: str, vocabulary: Vocabulary) -> str | None:
    """Say what is wrong with the right answer that a row gives; None if it is one of the listed."""
    answer = read_answer(completion, vocabulary)
    exact = write_answer(answer.labels, vocabulary).casefold() == completion.strip().casefold()
    if answer.readable and not answer.unknown and (vocabulary.kind == "multilabel" or exact):
        return None
    words = ", ".join(map(repr, answer.unknown)) or repr(completion.strip())
    return f"{words} is not among the labels ({', '.join(vocabulary.labels)})"


def all_answers(
    vocabulary: Vocabulary, seen: Sequence[frozenset[str]] = ()
) -> Iterator[frozenset[str]]:
    """Yield every answer there can be: each label, or each set of them, small sets first.

    If there are more than SETS_MAX sets: none, every single label, the sets in `seen` (those that
    were learnt, the commonest first) and then small ones, as many as there is room for. Then a
    right answer may be missing, and whoever asks must say so.
    """
    labels = vocabulary.labels
    if vocabulary.kind == "label":
        yield from (frozenset([label]) for label in labels)
        return
    alone = [frozenset[str](), *(frozenset([label]) for label in labels)]
    small = (
        frozenset(chosen)
        for size in range(2, len(labels) + 1)
        for chosen in itertools.combinations(labels, size)
    )
    known = seen if possible_answers(vocabulary) > SETS_MAX else ()
    told: set[frozenset[str]] = set()
    for answer in itertools.chain(alone, known, small):
        if len(told) >= max(SETS_MAX, len(alone)):
            return
        if answer not in told:
            told.add(answer)
            yield answer


def possible_answers(vocabulary: Vocabulary) -> int:
    """Return how many answers there can be at all."""
    count = len(vocabulary.labels)
    return count if vocabulary.kind == "label" else 2**count


def require_apart(listed: Sequence[Sequence[int]], texts: Sequence[str]) -> None:
    """Raise `ConfigError` if two answers are the same tokens, as unknown words are to some."""
    first: dict[tuple[int, ...], str] = {}
    for ids, text in zip(listed, texts, strict=True):
        other = first.setdefault(tuple(ids), text)
        if other != text:
            same = f"the tokenizer of the base writes {other!r} and {text!r} with the same tokens"
            raise ConfigError(
                [f"eval.labels: {same}; rename one, also in the rows, with letters that it knows"]
            )


def _read_one(text: str, known: dict[str, str]) -> Answer:
    lines = text.strip().splitlines()
    line = lines[0] if lines else ""
    whole = line.casefold()
    forms = (whole, whole.lstrip("\"'`*[( "))  # a label may itself begin with such a sign
    # The longest first: with `toxic` and `toxic spam` the text `toxic spam` is the latter.
    for word in sorted(known, key=len, reverse=True):
        begun = [form[len(word) :] for form in forms if form.startswith(word)]
        if any(not rest[:1].isalnum() for rest in begun):
            return Answer(labels=frozenset([known[word]]), unknown=(), readable=True)
    return Answer(labels=frozenset(), unknown=(line,) if line else (), readable=False)


def split_labels(text: str) -> list[str]:
    """Return the words of a set of labels, written as `read_answer` reads them."""
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
