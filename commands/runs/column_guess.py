"""Guesses from a file's rows how they become prompt and answer, for the run.yaml of `qft init`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from commands.ui.errors import UsageError
from trainer.config import EvalTable
from trainer.config_errors import describe_errors

ANSWERS = (
    *("label", "labels", "class", "category", "sentiment", "completion", "response", "answer"),
    *("output", "target", "reply", "summary"),
)
"""Names that a column of answers usually has, surest first."""
QUESTIONS = ("instruction", "input", "context", "question", "prompt", "text", "comment", "message")
PLAIN = str | int | float  # what a template can write, as it can a list of words
NOTHING = frozenset({"n/a", "na", "none", "no label", "nothing", "-"})
"""What people write where none of the labels holds."""
LABELS_MAX, ROWS_PER_LABEL_MIN = 50, 3
NO_LABEL: str = EvalTable.model_fields["none"].default


@dataclass(frozen=True, kw_only=True)
class Guess:
    """How rows become prompt and completion, as far as their names and contents tell."""

    prompt: str = ""
    completion: str = ""
    messages: str = ""
    labels: tuple[str, ...] = ()
    none: str = ""
    """What stands for no label at all, if the answers are sets of labels."""

    @property
    def description(self) -> str:
        """The guess in words."""
        if self.messages:
            return f"each row is a conversation in `{self.messages}`"
        kind = f"one of {len(self.labels)} labels" if self.labels else "a text"
        if self.none:
            kind = f"any of {len(self.labels)} labels, {self.none!r} for none of them"
        return f"from {self.prompt!r} the model learns {self.completion!r}, {kind}"


def guess_columns(rows: Sequence[Mapping[str, Any]]) -> Guess:
    """Find the answer among the columns, and its question; UsageError if unclear."""
    from trainer.data.converters import published_format
    from trainer.data.template import as_text

    shared = [name for name in rows[0] if all(name in row for row in rows)]
    for name in shared:
        if all(_is_conversation(row[name]) for row in rows):
            return Guess(messages=_nameable(name))
    plain = [name for name in shared if all(_is_plain(row[name]) for row in rows)]
    folded = {name.strip().casefold(): name for name in plain}
    answer = next((folded[name] for name in ANSWERS if name in folded), "")
    questions = [folded[name] for name in QUESTIONS if name in folded and folded[name] != answer]
    others = [name for name in plain if name != answer]
    if not answer or not others:
        published = published_format(shared)
        hint = f"name it one of {', '.join(ANSWERS)}; or write run.yaml by hand: `qft init`"
        if published:
            hint = f"`qft data {published} FILE` turns this published form into rows"
        raise UsageError(
            f"no telling which of the columns {', '.join(map(repr, rows[0]))} is the answer",
            hint=hint,
        )
    longest = max(others, key=lambda name: sum(len(str(row[name])) for row in rows))
    titles = [(_nameable(name), name.strip().capitalize()) for name in questions or [longest]]
    prompt = "".join(f"{title}: {{{name}}}\n" for name, title in titles)
    counts = Counter(as_text(answer, row[answer]).strip() for row in rows)
    labels, none = _labels(counts)
    title = answer.strip().capitalize()
    if counts[""]:
        fix = f"write `{none}` there" if none else "fill or remove them"
        raise UsageError(
            f"{counts['']} rows have nothing in `{answer}`, the answer to learn",
            hint=f"{fix}, then type the same command again",
        )
    guess = Guess(prompt=f"{prompt}{title}:", completion=f" {{{answer}}}", labels=labels, none=none)
    _check_labels(answer, guess)
    return guess


def _labels(counts: Counter[str]) -> tuple[tuple[str, ...], str]:
    """Find the labels among the answers, if these are few; and the word for none, if they are sets.

    Places such as `Salem, OR` share words, too, but have more words than there are places.
    """
    from trainer.scoring.answers import split_labels

    few = min(LABELS_MAX, counts.total() // ROWS_PER_LABEL_MIN)
    sets = {frozenset(split_labels(answer)) for answer in counts} - {frozenset()}
    words = frozenset().union(*sets)
    if any(len(one) > 1 for one in sets) and len(words) <= min(few, len(sets)):
        together = frozenset().union(*(one for one in sets if len(one) > 1))
        none = [word for word in words - together if word.casefold() in NOTHING]
        return tuple(sorted(words - {*none[:1]})), none[0] if none else NO_LABEL
    return tuple(sorted(counts)) if 1 < len(counts) <= few else (), ""


def _check_labels(answer: str, guess: Guess) -> None:
    """Raise UsageError if a run.yaml with these labels would be refused."""
    if not guess.labels:
        return
    kind: Literal["multilabel", "label"] = "multilabel" if guess.none else "label"
    try:
        EvalTable(kind=kind, labels=list(guess.labels), none=guess.none or NO_LABEL)
    except ValidationError as error:
        raise UsageError(
            f"the labels in `{answer}` cannot be scored",
            problems=[
                *describe_errors(error, EvalTable),
                f"they are {', '.join(map(repr, guess.labels))}",
            ],
            hint="write each in one way in the file, then type the same command again",
        ) from error


def _is_plain(value: object) -> bool:
    """Whether a template can write a cell."""
    if isinstance(value, list):
        return all(isinstance(word, str) for word in value)
    return isinstance(value, PLAIN)


def _nameable(name: str) -> str:
    """A column's name if `{name}` in a template means this column. Raises UsageError otherwise."""
    from trainer.data.template import Template, TemplateError

    try:
        named = Template.parse(f"{{{name}}}").parts == (("", name),)
    except TemplateError:
        named = False
    if not named:
        raise UsageError(
            f"no template can name the column {name!r}",
            hint="rename it in the file, to a word without the marks { } ! :",
        )
    return name


def _is_conversation(value: object) -> bool:
    """Whether a cell holds turns of a conversation."""
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(turn, dict) and {"role", "content"} <= set(turn) for turn in value)
