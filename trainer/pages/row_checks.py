"""Looks through rows for what trains wrongly without an error, and says where it is.

`check_files` returns one sentence for each finding, with the rows it is in. Nothing here refuses a
row: what cannot be trained at all is an error of whoever reads it.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.config import TrainerConfig
from trainer.data.answer_checks import (
    INVISIBLE,
    LABELS_MAX,
    ROWS_PER_LABEL_MIN,
    are_labels,
    ends_with,
    is_long,
    spelling_key,
    spellings,
)
from trainer.data.cell import SPREADSHEET_CHARACTERS_MAX
from trainer.data.examples import Examples
from trainer.data.row import Notes, Row, rows_text
from trainer.data.rows import read_rows
from trainer.data.template import MissingFieldError, Template, as_text
from trainer.eval_tables.labels import LabelEvalTable
from trainer.hub import Shards
from trainer.pages.tokenizer_checks import check_answer_tokens
from trainer.scoring.answers import read_answer
from trainer.scoring.scored_rows import scored_row_problems

SHORT_LEAK = 0.9
"""The share of rows whose text ends with a short answer from which on that is no chance."""
EMPTY_WORDS = frozenset({"nan", "null", "<na>", "nat", "undefined", "#n/a", "\\n"})
DAMAGED = frozenset({"#name?", "#ref!", "#value!", "#div/0!", "#num!", "[object object]"})
"""What spreadsheets and JavaScript write where a text was lost."""
PERHAPS_EMPTY = frozenset({"none", "n/a", "na"})
MOJIBAKE = re.compile("[\u00c3\u00c2][\u0080-\u00bf]|\u00e2\u20ac|\u00ef\u00bb\u00bf")
"""UTF-8 that was read as Windows-1252: e with an acute as two signs, an apostrophe as three."""
ENTITY = re.compile(r"&(amp|lt|gt|quot|nbsp|#39|#x27);")


def check_files(
    config: TrainerConfig, files: Sequence[tuple[str, Path | Shards, Examples]], tokenizer: Any
) -> list[str]:
    """Return what is to be said about files of rows.

    Each is given with its key in the config, its place and the examples that it became; it is read
    again, as only the examples are kept.
    """
    return [
        f"{key}: {line}"
        for key, path, examples in files
        for line in _check_rows(config, path, examples, tokenizer)
    ]


def _check_rows(
    config: TrainerConfig, path: Path | Shards, examples: Examples, tokenizer: Any
) -> list[str]:
    notes = Notes()
    rows = read_rows(path, notes)
    found, data = notes.lines(), config.data
    if data.messages is None:
        prompt, completion = Template.parse(data.prompt), Template.parse(data.completion)
        found += _empty_fields(rows, prompt, completion)
        found += _leaks(rows, prompt, examples)
    answers = [(item.row, item.completion) for item in examples.items]
    found += _characters(answers)
    found += _lost_words(answers, config.label_table)
    found += _spellings(answers)
    found += _set_spellings(answers, config.label_table)
    found += _cut_cells(rows)
    found += _not_scorable(rows, config)
    return [*found, *check_answer_tokens(examples.items, tokenizer)]


def _empty_fields(rows: Sequence[Row], prompt: Template, completion: Template) -> Iterator[str]:
    """Tell of each field that is empty text in some rows."""
    for name in dict.fromkeys([*prompt.fields, *completion.fields]):
        field = Template.parse(f"{{{name}}}").for_rows(row.fields for row in rows)
        absent = [row.number for row in rows if _value(field, row) is None]
        if absent:
            yield (
                f"`{name}` is null or absent in {len(absent)} of {len(rows)} rows, and is empty "
                f"text there ({rows_text(absent)})"
            )
        elif rows and not any(_text(field, row).strip() for row in rows):
            yield f"`{name}` is empty in every row"


def _leaks(rows: Sequence[Row], prompt: Template, examples: Examples) -> Iterator[str]:
    """Tell of each field of the prompt that holds the answer."""
    fields = {row.number: row for row in rows}
    for name in prompt.fields:
        field = Template.parse(f"{{{name}}}").for_rows(row.fields for row in rows)
        long: list[int] = []
        short: list[int] = []
        for item in examples.items:
            answer, text = item.completion.strip(), _text(field, fields[item.row])
            if is_long(answer):
                long += [item.row] * (answer in text)
            else:
                short += [item.row] * ends_with(answer, text)
        if long:
            yield (
                f"`{name}`, a field of the prompt, holds the answer in {len(long)} of "
                f"{len(examples.items)} rows ({rows_text(long)}): right for extracts only; "
                "otherwise leave it out of the prompt"
            )
        several = len({item.completion for item in examples.items}) > 1
        if several and len(short) >= SHORT_LEAK * len(examples.items):
            yield (
                f"`{name}`, a field of the prompt, ends with the answer in {len(short)} of "
                f"{len(examples.items)} rows ({rows_text(short)}): nothing is to be learnt"
            )


def _characters(answers: Sequence[tuple[int, str]]) -> Iterator[str]:
    """Tell of characters in answers that nobody means to teach."""
    breaks = any("\n" in text for _, text in answers)
    checks: Mapping[str, Callable[[str], object]] = {
        r"hold `\r`, Windows' line ends, which are learnt; write `\n` alone": lambda text: (
            "\r" in text
        ),
        "hold control characters such as NUL": _has_control_characters,
        "hold characters without a width, such as U+200B or U+FEFF": lambda text: (
            not INVISIBLE.isdisjoint(text)
        ),
        "hold U+FFFD, which stands for a character that was lost": lambda text: "\ufffd" in text,
        "look like UTF-8 that was read as Windows-1252 (such as `Ã©` for `é`); read the file "
        "that it came from as UTF-8": MOJIBAKE.search,
        r"hold `\n` as a backslash and a letter, and none a line break; if the file came from a "
        "database, write line breaks": lambda text: r"\n" in text and not breaks,
        "hold entities of HTML such as `&amp;`": ENTITY.search,
    }
    for what, is_so in checks.items():
        rows = [row for row, text in answers if is_so(text)]
        if rows:
            yield f"{len(rows)} of {len(answers)} answers {what} ({rows_text(rows)})"


def _has_control_characters(text: str) -> bool:
    if text.isprintable():
        return False
    return any(unicodedata.category(char) == "Cc" and char not in "\n\r\t" for char in text)


def _lost_words(answers: Sequence[tuple[int, str]], scored: LabelEvalTable | None) -> Iterator[str]:
    """Tell of answers that are a program's word for nothing, unless they are labels."""
    listed = {label.casefold() for label in [*scored.labels, scored.none]} if scored else set()
    places: dict[str, list[int]] = {}
    for row, text in answers:
        places.setdefault(text.strip(), []).append(row)
    common = are_labels({text: len(rows) for text, rows in places.items()})
    for text, rows in places.items():
        word = text.casefold()
        lost = word in EMPTY_WORDS or word in DAMAGED or (word in PERHAPS_EMPTY and not common)
        if lost and word not in listed:
            yield (
                f"{len(rows)} of {len(answers)} answers are the word {text!r} ({rows_text(rows)}): "
                "if that stands for nothing, remove these rows"
            )


def _spellings(answers: Sequence[tuple[int, str]]) -> Iterator[str]:
    """Tell of labels that are written in several ways, each of which is learnt."""
    counts = Counter(text.removeprefix(" ") for _, text in answers)
    keys = Counter(spelling_key(text) for text in counts.elements())
    if len(keys) > LABELS_MAX or len(keys) * ROWS_PER_LABEL_MIN > len(answers):
        return
    for ways in spellings(counts):
        shown = ", ".join(f"{way!r} ({count} rows)" for way, count in ways.most_common())
        yield f"one label is written in several ways: {shown}; write it in one"


def _set_spellings(
    answers: Sequence[tuple[int, str]], scored: LabelEvalTable | None
) -> Iterator[str]:
    """Tell of sets of labels that are written in several orders or with several separators."""
    if scored is None or scored.kind != "multilabel":
        return
    ways: dict[frozenset[str], Counter[str]] = {}
    for _, text in answers:
        labels = read_answer(text, scored).labels
        ways.setdefault(labels, Counter())[text.strip()] += 1
    several = [found for labels, found in ways.items() if labels and len(found) > 1]
    if several:
        shown = ", ".join(f"{way!r} ({count} rows)" for way, count in several[0].most_common())
        yield (
            f"{len(several)} sets of labels are written in several ways, such as {shown}; write "
            "the labels in one order"
        )


def _cut_cells(rows: Sequence[Row]) -> Iterator[str]:
    """Tell of cells that have as many characters as a spreadsheet's can have at most."""
    cut = [
        row.number
        for row in rows
        if any(
            isinstance(value, str) and len(value) == SPREADSHEET_CHARACTERS_MAX
            for value in row.fields.values()
        )
    ]
    if cut:
        yield (
            f"cells have {SPREADSHEET_CHARACTERS_MAX} characters, the most that Excel keeps, and "
            f"may be cut ({rows_text(cut)})"
        )


def _not_scorable(rows: Sequence[Row], config: TrainerConfig) -> Iterator[str]:
    """Tell of right answers that are not of the kind that `eval` scores."""
    problems = scored_row_problems(rows, config.data, config.scored)
    if problems:
        number, problem = problems[0]
        more = f" (and {len(problems) - 1} more such rows)" * (len(problems) > 1)
        yield f"row {number}: {problem}{more}"


def _value(field: Template, row: Row) -> object:
    try:
        return field.cell(row.fields)
    except MissingFieldError:  # told as an error of its row
        return ""


def _text(field: Template, row: Row) -> str:
    try:
        return as_text(field.fields[0], _value(field, row))
    except MissingFieldError:
        return ""
