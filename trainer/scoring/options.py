"""Reads the options of rows, and which of them is the right one; without a tokenizer or a model."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.data.template import MissingFieldError, Template, as_text
from trainer.eval_tables.choice import OPTIONS_MAX, ChoiceEvalTable
from trainer.scoring.measures.words import normalised

NAMES_OF_LISTS = (("text", "label"), ("texts", "labels"), ("choices", "labels"))
"""Keys of published data sets whose options are two lists: of texts, and of their letters."""


class OptionsError(ValueError):
    """The options of a row cannot be used; the message says what is wrong with the row."""


@dataclass(frozen=True, kw_only=True)
class RowOptions:
    """The options of one row as an answer writes them: as words, or by their letters.

    `right` is the place of the right one; `by_letter` says that the row's right answer is a letter.
    `listing` has a line for each option, with its letter.
    """

    words: tuple[str, ...]
    letters: tuple[str, ...]
    right: int
    by_letter: bool
    listing: str

    def place_of(self, answer: str) -> int | None:
        """Return the place of the option that an answer is; None if it is none of them."""
        for texts in (self.words, self.letters):
            for at, text in enumerate(texts):
                if normalised(text) == normalised(answer):
                    return at
        return None

    @property
    def candidates(self) -> tuple[str, ...]:
        """The options as right answers of this kind write them."""
        return self.letters if self.by_letter else self.words


def read_options(
    fields: Mapping[str, Any], completion: str, table: ChoiceEvalTable, template: Template | None
) -> RowOptions:
    """Return the options of a row whose right answer is `completion`.

    `template` is that of a completion, which the options fill in turn; None in conversations.

    Raises:
        OptionsError: there are no options, or the right answer is none of them.
    """
    texts, names = _listed(fields, table)
    words, letters = (tuple(_filled(template, one) for one in each) for each in (texts, names))
    if len({normalised(one) for one in words}) < len(words):
        raise OptionsError(f"two of the options are the same: {_shown(texts)}")
    wanted = normalised(completion)
    for by_letter, candidates in ((False, words), (True, letters)):
        for at, one in enumerate(candidates):
            if normalised(one) == wanted:
                return RowOptions(
                    words=words,
                    letters=letters,
                    right=at,
                    by_letter=by_letter,
                    listing="\n".join(f"{a}. {b}" for a, b in zip(names, texts, strict=True)),
                )
    raise OptionsError(
        f"the right answer {_cut(completion.strip())!r} is not among the options "
        f"({_shown(texts)}), nor one of their letters ({names[0]} to {names[-1]}); correct the row "
        "or `eval.options`"
    )


def written_otherwise(*, by_letter: bool, row: int) -> str:
    """Return what to say of a right answer that is written in another way than that of `row`."""
    here, there = ("a letter", "the option itself")[:: 1 if by_letter else -1]
    return f"the right answer is {here}, and in row {row} it is {there}; write all in one way"


def _listed(fields: Mapping[str, Any], table: ChoiceEvalTable) -> tuple[list[str], Sequence[str]]:
    """Return the options of a row as texts, and their letters."""
    if not isinstance(table.options, str):
        return list(table.options), string.ascii_uppercase[: len(table.options)]
    name = table.options
    try:
        value = Template.parse("{" + name + "}").value(fields)
    except MissingFieldError as error:
        raise OptionsError(f"`eval.options`: {error}") from error
    labels: Any = None
    if isinstance(value, dict):
        keys = [(one, other) for one, other in NAMES_OF_LISTS if one in value]
        if keys:
            value, labels = value[keys[0][0]], value.get(keys[0][1])
        else:
            value, labels = list(value.values()), list(value)
    if not isinstance(value, list) or not 2 <= len(value) <= OPTIONS_MAX:
        raise OptionsError(
            f"`eval.options` names `{name}`, which is no list of 2 to {OPTIONS_MAX} options here"
        )
    try:
        texts = [as_text(name, one) for one in value]
        names = [as_text(name, one) for one in labels] if isinstance(labels, list) else []
    except MissingFieldError as error:
        raise OptionsError(f"`eval.options`: {error}") from error
    if not all(one.strip() for one in texts):
        raise OptionsError(f"one of the options in `{name}` is empty")
    if len(names) != len(texts) or len(set(names)) < len(names) or not all(names):
        return texts, string.ascii_uppercase[: len(texts)]
    return texts, names


def _filled(template: Template | None, option: str) -> str:
    """Return a completion with an option in its field; without exactly one field, the option."""
    if template is None or len(template.fields) != 1:
        return option
    return "".join(literal + ("" if field is None else option) for literal, field in template.parts)


def _shown(texts: Sequence[str]) -> str:
    return ", ".join(repr(_cut(one)) for one in texts[:6]) + ", …" * (len(texts) > 6)


def _cut(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:59]}…"
