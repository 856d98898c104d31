"""Guesses from a file's rows how they become prompt and answer, for the run.yaml of `qft init`.

Every column is used, or named among those that are not; every row likewise.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import ValidationError

from commands.runs.columns import (
    CONVERSATION_NAMES,
    Column,
    answered,
    columns_of,
    conversation,
    ignorable,
    is_used,
    nameable,
)
from commands.ui.errors import UsageError
from trainer.config_errors import describe_errors
from trainer.data.row import Row, rows_text
from trainer.eval_tables.labels import LabelEvalTable

ANSWERS = (
    *("label", "labels", "class", "category", "sentiment", "completion", "response", "answer"),
    *("output", "target", "reply", "summary"),
)
"""Names that a column of answers usually has, surest first."""
QUESTIONS = ("instruction", "input", "context", "question", "prompt", "text", "comment", "message")
TEXTS = frozenset({"text", "content", "document", "body", "article", "raw_content", "code"})
"""Names of a column that is learnt whole, where it is the only one."""
NOTHING = frozenset({"n/a", "na", "none", "no label", "nothing", "-"})
"""What people write where none of the labels holds."""
EMPTY_MAX = 0.3
"""The largest share of rows with an empty text for an answer that is taken for an oversight."""
LEAKING = 0.9
"""The share of rows in which a column gives the answer away, from which on it is left out."""
WHOLE = re.compile(r"-?\d+\.0")
NO_LABEL: str = LabelEvalTable.model_fields["none"].default


@dataclass(frozen=True, kw_only=True)
class Guess:
    """How rows become prompt and completion, as far as their names and contents tell."""

    prompt: str = ""
    completion: str = ""
    messages: str = ""
    text: str = ""
    answer: str = ""
    """The column of the answer, of the conversation, or of the text that is learnt whole."""
    ignored: tuple[str, ...] = ()
    """The columns beside a conversation that are not used."""
    labels: tuple[str, ...] = ()
    none: str = ""
    """What stands for no label at all, if the answers are sets of labels."""
    spelled: Mapping[str, str] = field(default_factory=dict)
    """Answers that are written anew, so that a label has one spelling."""
    notes: tuple[str, ...] = ()
    """What the rows have that is not used, or used otherwise than it is written."""

    @property
    def description(self) -> str:
        """The guess in words."""
        if self.messages:
            return f"each row is a conversation in `{self.messages}`"
        if self.text:
            return f"each row is a text in `{self.text}`, of which every token is learnt"
        kind = f"one of {len(self.labels)} labels" if self.labels else "a text"
        if self.none:
            kind = f"any of {len(self.labels)} labels, {self.none!r} for none of them"
        return f"from {self.prompt!r} the model learns {self.completion!r}, {kind}"


def guess_columns(rows: Sequence[Row]) -> Guess:
    """Find the answer among the columns, and its question; UsageError if unclear."""
    columns = columns_of(rows)
    for column in columns:
        if column.conversations:
            return _conversations(column, columns, rows)
    _check_preferences(rows)
    plain = [column for column in columns if column.plain]
    whole = [column for column in plain if not column.index]
    telling = {column.folded for column in columns} & {*ANSWERS, *QUESTIONS, *CONVERSATION_NAMES}
    if len(whole) == 1 and whole[0].folded in TEXTS and telling <= {whole[0].folded}:
        name = nameable(whole[0].name)
        notes = [*_lacking(whole, rows), *_unused(whole, columns, {})]
        return Guess(text=name, answer=name, notes=tuple(notes))
    folded = {column.folded: column for column in plain}
    answer = next((folded[name] for name in ANSWERS if name in folded), None)
    others = [column for column in plain if column is not answer and not column.index]
    if answer is None or not others:
        raise _unclear(rows, columns)
    leaks = {one.name: "it holds the answer" for one in others if _leaks(one, answer, others)}
    usable = [column for column in others if column.name not in leaks]
    named = {column.folded: column for column in usable}
    questions = [named[name] for name in QUESTIONS if name in named]
    if not usable:
        raise UsageError(
            f"every column beside `{answer.name}` holds the answer itself: "
            f"{', '.join(f'`{name}`' for name in leaks)}",
            hint="give the rows a column with the question alone",
        )
    longest = max(usable, key=lambda column: column.characters)
    questions = questions or [longest]
    prompt = "".join(f"{_title(column)}: {{{nameable(column.name)}}}\n" for column in questions)
    counts = Counter(text for _, text in answer.texts)
    spelled = _one_spelling(counts, gaps=bool(answer.lacking or counts[""]))
    counts = Counter(spelled.get(text, text).strip() for text in counts.elements())
    labels, none = _labels(counts)
    _check_empty(answer, counts, none)
    notes = [
        *_lacking([*questions, answer], rows),
        *_unused([*questions, answer], columns, leaks),
        *_respelt(spelled),
        *_numbers(labels),
    ]
    guess = Guess(
        prompt=f"{prompt}{_title(answer)}:",
        completion=f" {{{nameable(answer.name)}}}",
        answer=answer.name,
        labels=labels,
        none=none,
        spelled=spelled,
        notes=tuple(notes),
    )
    _check_labels(answer.name, guess)
    return guess


def _check_preferences(rows: Sequence[Row]) -> None:
    """Raise UsageError for rows that say which of several answers is the better one."""
    from trainer.data.preferences import describe_preferences

    kinds = [describe_preferences(row.fields) for row in rows]
    if rows and all(kinds):
        raise UsageError(
            "what is to be learnt from preferences is for you to say",
            problems=[f"row {rows[0].number}: {kinds[0]}"],
            hint="`qft init` without --data writes a run.yaml; name the file and its columns there",
        )


def _conversations(column: Column, columns: Sequence[Column], rows: Sequence[Row]) -> Guess:
    """Return the guess for rows with conversations in a column."""
    name = nameable(column.name)
    used = [column, *(one for one in columns if is_used(one))]
    return Guess(
        messages=name,
        answer=name,
        ignored=ignorable([one for one in columns if one not in used]),
        notes=(*_cut_conversations(name, rows), *_unused(used, columns, {})),
    )


def _cut_conversations(name: str, rows: Sequence[Row]) -> list[str]:
    """Return notes on the conversations that are left out or lose a last question."""
    turns = {row.number: conversation(row.fields.get(name)) for row in rows}
    without = [number for number, one in turns.items() if not answered(one)]
    cut = [number for number, one in turns.items() if one and one != answered(one) != []]
    notes = []
    if without:
        notes.append(f"left out: rows without an answer in `{name}` ({rows_text(without)})")
    if cut:
        notes.append(f"last questions that nobody answered are cut off ({rows_text(cut)})")
    return notes


def _unclear(rows: Sequence[Row], columns: Sequence[Column]) -> UsageError:
    """Return the error for rows among whose columns there is no answer, or no question."""
    from trainer.data.converters import published_format
    from trainer.data.header import header_problem

    names = [column.name for column in columns]
    published = published_format(names)
    hint = f"name it one of {', '.join(ANSWERS)}; or write run.yaml by hand: `qft init`"
    if published:
        hint = f"`qft data {published} FILE` turns this published form into rows"
    headless = header_problem(row.fields for row in rows)
    reasons = [f"`{column.name}`: {column.problem}" for column in columns if column.problem]
    return UsageError(
        f"no telling which of the columns {', '.join(map(repr, names))} is the answer",
        problems=[*([headless] if headless else []), *reasons],
        hint=hint,
    )


def _leaks(column: Column, answer: Column, others: Sequence[Column]) -> bool:
    """Return whether a column gives the answer away, as the `text` of Alpaca does.

    It ends with the answer, or holds a long one together with what another column asks.
    """
    from trainer.data.answer_checks import ends_with, is_long

    answers = {number: text.strip() for number, text in answer.texts if text.strip()}
    texts = dict(column.texts)
    contents = [dict(other.texts) for other in others if other is not column]
    found = 0
    for number, wanted in answers.items():
        text = texts.get(number, "")
        whole = is_long(wanted) and wanted in text
        parts = [one.get(number, "").strip() for one in contents]
        found += ends_with(wanted, text) or (whole and any(part and part in text for part in parts))
    return len(set(answers.values())) > 1 and found >= LEAKING * len(answers)


def _one_spelling(counts: Counter[str], *, gaps: bool) -> dict[str, str]:
    """Return answers with what they are to be written as, so that each label has one spelling.

    Only spaces and the form of numbers are mended; what differs in case is for people to decide.
    Whole numbers with a point are so where there are `gaps`: pandas writes them for NaN's sake.
    """
    from trainer.data.answer_checks import are_labels, one_spelling, spellings

    stripped = Counter(text.strip() for text in counts.elements() if text.strip())
    keys = Counter(one_spelling(text) for text in stripped.elements())
    if not are_labels(keys):
        return {}
    ways = {way for group in spellings(stripped) for way in group}
    if gaps and all(WHOLE.fullmatch(text) for text in stripped):
        ways = set(stripped)
    return {
        text: new
        for text in counts
        if text.strip()
        and (new := one_spelling(text) if text.strip() in ways else text.strip()) != text
    }


def _respelt(spelled: Mapping[str, str]) -> list[str]:
    if not spelled:
        return []
    shown = ", ".join(f"{old!r} is written {new!r}" for old, new in list(spelled.items())[:10])
    return [f"one label in several spellings: {shown}"]


def _numbers(labels: Sequence[str]) -> list[str]:
    """Return a note if the labels are numbers, whose meaning no base can know."""
    if not labels or not all(label.lstrip("-").replace(".", "", 1).isdecimal() for label in labels):
        return []
    return [f"the labels are numbers ({', '.join(labels)}): if they stand for words, write these"]


def _lacking(used: Sequence[Column], rows: Sequence[Row]) -> list[str]:
    """Return a note for each used column that is null or absent in some rows."""
    notes = []
    for column in used:
        empty = column.lacking
        if column is used[-1]:  # the answer, or the conversation
            blank = [number for number, text in column.texts if not text.strip()]
            empty = sorted([*empty, *blank])
        if empty and column is used[-1]:
            notes.append(f"left out: rows with nothing in `{column.name}` ({rows_text(empty)})")
        elif empty:
            notes.append(
                f"`{column.name}` is null or absent in {len(empty)} of {len(rows)} rows: "
                "empty text there"
            )
    return notes


def _unused(
    used: Sequence[Column], columns: Sequence[Column], leaks: Mapping[str, str]
) -> list[str]:
    """Return a note that names the columns that are not used, with the reason if there is one."""
    left = [column for column in columns if column not in used]
    named = [
        (f"`{column.name}`" if column.name.strip() else "a column without a name")
        + (f" ({reason})" if reason else "")
        for column in left
        for reason in [leaks.get(column.name) or column.problem]
    ]
    return [f"not used: {', '.join(named)}"] if named else []


def _title(column: Column) -> str:
    return column.name.strip().capitalize()


def _labels(counts: Counter[str]) -> tuple[tuple[str, ...], str]:
    """Find the labels among the answers, if these are few; and the word for none, if they are sets.

    Places such as `Salem, OR` share words, too, but have more words than there are places.
    """
    from trainer.data.answer_checks import LABELS_MAX, ROWS_PER_LABEL_MIN, is_text
    from trainer.scoring.answers import split_labels

    few = min(LABELS_MAX, counts.total() // ROWS_PER_LABEL_MIN)
    if any(map(is_text, counts)):
        return (), ""
    sets = {frozenset(split_labels(answer)) for answer in counts} - {frozenset()}
    words = frozenset().union(*sets)
    if any(len(one) > 1 for one in sets) and len(words) <= min(few, len(sets)):
        together = frozenset().union(*(one for one in sets if len(one) > 1))
        none = [word for word in words - together if word.casefold() in NOTHING]
        return tuple(sorted(words - {*none[:1]})), none[0] if none else NO_LABEL
    kept = sorted(answer for answer in counts if answer)
    return tuple(kept) if 1 < len(kept) <= few else (), ""


def _check_empty(answer: Column, counts: Counter[str], none: str) -> None:
    """Raise UsageError for empty answers that may mean something: in sets, or in many rows.

    Null means nothing; a few empty texts are left out with what is null.
    """
    empty = counts[""]
    if not empty or (not none and empty <= EMPTY_MAX * counts.total()):
        return
    fix = f"write `{none}` there" if none else "fill or remove them"
    raise UsageError(
        f"{empty} rows have nothing in `{answer.name}`, the answer to learn",
        hint=f"{fix}, then type the same command again",
    )


def _check_labels(answer: str, guess: Guess) -> None:
    """Raise UsageError if a run.yaml with these labels would be refused."""
    if not guess.labels:
        return
    kind: Literal["multilabel", "label"] = "multilabel" if guess.none else "label"
    try:
        LabelEvalTable(kind=kind, labels=list(guess.labels), none=guess.none or NO_LABEL)
    except ValidationError as error:
        raise UsageError(
            f"the labels in `{answer}` cannot be scored",
            problems=[
                *describe_errors(error, LabelEvalTable),
                f"they are {', '.join(map(repr, guess.labels))}",
            ],
            hint="write each in one way in the file, then type the same command again",
        ) from error
