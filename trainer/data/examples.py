"""Renders and tokenizes rows to examples, with the same code for training and for inference.

In every example the completion and the EOS are whole and in the loss, the prompt is not, there is
at most one BOS, and only the prompt is ever truncated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.config import DataTable
from trainer.data.chat.conversation import read_conversation
from trainer.data.chat.encoder import ChatEncoder
from trainer.data.codec import NOT_TRAINED, Codec, Example, TooLongError
from trainer.data.rows import Row, read_rows
from trainer.data.template import MissingFieldError, Template, TemplateError
from trainer.errors import DataError
from trainer.hub import Shards

if TYPE_CHECKING:
    import torch

NUMBERS_KEPT_MAX = 100


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """Counts over the rows of one file; lengths and totals are in tokens."""

    path: str
    rows: int
    examples: int  # more than rows where a conversation is one for each of its answers
    truncated: int
    truncated_rows: tuple[int, ...]
    tokens: int
    supervised_tokens: int
    longest: int

    @property
    def expansion(self) -> str | None:
        """What many conversations become where each answer is an example of its own, or None."""
        if self.examples == self.rows:
            return None
        words = f"{self.rows:,} conversation{'s' * (self.rows != 1)} become{'s' * (self.rows == 1)}"
        return f"{words} {self.examples:,} examples, {_in_millions(self.tokens)} tokens"


@dataclass(frozen=True)
class Examples:
    """The examples of one file in file order, and the report on them."""

    items: tuple[Example, ...]
    report: DataReport


def load_examples(
    table: DataTable, path: Path | Shards, tokenizer: Any, *, max_length: int, seq2seq: bool = False
) -> Examples:
    """Read, render and tokenize all rows of `path`; no example is longer than `max_length` tokens.

    Raises:
        DataError: with every problem of the file at once, each as `file:row`.
    """
    codec = Codec.from_tokenizer(tokenizer, max_length=max_length, seq2seq=seq2seq)
    problems: list[str] = []
    if table.messages is not None:
        found = _conversations(table, path, codec, problems)
    else:
        found = _templated(table, path, codec, problems)
    if problems:
        raise DataError(problems)
    if table.loss_on == "all" and not seq2seq:
        found = [(replace(item, labels=item.input_ids), cut) for item, cut in found]
    items = tuple(item for item, _ in found)
    return Examples(items=items, report=_report(path, found))


def _templated(
    table: DataTable, path: Path | Shards, codec: Codec, problems: list[str]
) -> list[tuple[Example, bool]]:
    """Return the examples of rows that fill two templates, and which were truncated."""
    rows = read_rows(path)
    prompt_of, completion_of = _parse(table, rows)
    texts: list[tuple[Row, str, str]] = []
    for row in rows:
        try:
            prompt, completion = prompt_of.render(row.fields), completion_of.render(row.fields)
        except MissingFieldError as error:
            problems.append(f"{path}:{row.number}: {error}")
            continue
        for text, template in ((prompt, prompt_of), (completion, completion_of)):
            problems += [
                f"{path}:{row.number}: {problem}"
                for problem in codec.special_tokens_in(text, template)
            ]
        texts.append((row, prompt, completion))
    prompts = codec.encode([prompt for _, prompt, _ in texts], prompt_of)
    completions = codec.encode([completion for _, _, completion in texts], completion_of)
    found: list[tuple[Example, bool]] = []
    for (row, prompt, completion), head, tail in zip(texts, prompts, completions, strict=True):
        if not tail or not completion.strip():  # characters that a tokenizer drops are none
            hint = "write a word for it (such as N/A) or leave the row out"
            problems.append(f"{path}:{row.number}: the completion is empty; {hint}")
            continue
        try:
            ids, labels, length, cut = codec.assemble(head, tail)
        except TooLongError as error:
            problems.append(f"{path}:{row.number}: {error}")
            continue
        found.append((Example(ids, labels, prompt, completion, row.number, length), cut))
    return found


def _conversations(
    table: DataTable, path: Path | Shards, codec: Codec, problems: list[str]
) -> list[tuple[Example, bool]]:
    """Return the examples of rows with conversations, and which were truncated."""
    if codec.seq2seq:
        raise DataError(["`data.messages`: an encoder-decoder reads a prompt, not a conversation"])
    assert table.messages is not None
    whole = table.loss_on == "all"  # every token once, so one example a conversation
    encoder = ChatEncoder(codec=codec, style=table.chat, answers="last" if whole else table.answers)
    found: list[tuple[Example, bool]] = []
    for row in read_rows(path):
        try:
            conversation = read_conversation(row.fields, table.messages, ignore=table.ignore)
            if whole:
                conversation.require_all_learnt()
            found += encoder.encode(conversation, row=row.number)
        except (MissingFieldError, TooLongError) as error:
            problems.append(f"{path}:{row.number}: {error}")
    return found


def load_texts(table: DataTable, path: Path | Shards) -> list[tuple[int, str, str]]:
    """Return row number, prompt and completion of every row as text.

    Raises:
        DataError: the rows cannot be read, lack a field, or are conversations.
    """
    if table.messages is not None:
        raise DataError([f"{path}: conversations are no pairs of prompt and completion"])
    rows = read_rows(path)
    prompt_of, completion_of = _parse(table, rows)
    try:
        return [
            (row.number, prompt_of.render(row.fields), completion_of.render(row.fields))
            for row in rows
        ]
    except MissingFieldError as error:
        raise DataError([f"{path}: {error}"]) from error


def encode_prompt(
    table: DataTable, fields: dict[str, Any], tokenizer: Any, *, max_length: int, seq2seq: bool
) -> tuple[int, ...]:
    """Return the tokens to generate from for one row, as training saw such prompts.

    Raises:
        DataError: the row lacks a field that the prompt names.
    """
    prompt_of, _ = _parse(table)
    try:
        text = prompt_of.render(fields)
    except MissingFieldError as error:
        raise DataError([str(error)]) from error
    codec = Codec.from_tokenizer(tokenizer, max_length=max_length, seq2seq=seq2seq)
    ids, _, length, _ = codec.assemble(codec.encode([text], prompt_of)[0], [])
    return ids[:length]


def collate(examples: Sequence[Example], pad_id: int) -> dict[str, torch.Tensor]:
    """Return `input_ids`, `attention_mask` and `labels`, right-padded, as int64 [batch, length].

    The mask comes from the lengths, never from the token ids: an EOS that doubles as padding stays
    visible and supervised.
    """
    import torch

    width = max(len(example.input_ids) for example in examples)
    label_width = max(len(example.labels) for example in examples)
    ids, mask, labels = [], [], []
    for example in examples:
        gap = width - len(example.input_ids)
        ids.append([*example.input_ids, *[pad_id] * gap])
        mask.append([1] * len(example.input_ids) + [0] * gap)
        labels.append([*example.labels, *[NOT_TRAINED] * (label_width - len(example.labels))])
    return {
        "input_ids": torch.tensor(ids, dtype=torch.long),
        "attention_mask": torch.tensor(mask, dtype=torch.long),
        "labels": torch.tensor(labels, dtype=torch.long),
    }


def padding_id(tokenizer: Any, rows: int | None = None) -> int:
    """Return a token id to pad with; none is ever added, since the mask hides it.

    `rows` are those of the base's embedding, if they are known: a padding token that was added to
    the tokenizer alone has no row there, and looking it up would end the process.
    """
    for name in ("pad_token_id", "unk_token_id", "eos_token_id"):
        value = getattr(tokenizer, name, None)
        if value is not None and (rows is None or value < rows):
            return int(value)
    return 0


def _parse(table: DataTable, rows: Sequence[Row] = ()) -> tuple[Template, Template]:
    """Return the templates of prompt and completion; a row may lack what another of `rows` has."""
    try:
        both = Template.parse(table.prompt), Template.parse(table.completion)
    except TemplateError as error:
        raise DataError([str(error)]) from error
    prompt, completion = (one.for_rows(row.fields for row in rows) for one in both)
    return prompt, completion


def _in_millions(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1_000_000 else f"{count:,}"


def _report(path: Path | Shards, found: Sequence[tuple[Example, bool]]) -> DataReport:
    items = [item for item, _ in found]
    truncated = [item.row for item, cut in found if cut]
    return DataReport(
        path=str(path),
        rows=len({item.row for item in items}),
        examples=len(items),
        truncated=len(truncated),
        truncated_rows=tuple(truncated[:NUMBERS_KEPT_MAX]),
        tokens=sum(len(item.input_ids) for item in items),
        supervised_tokens=sum(sum(label != NOT_TRAINED for label in item.labels) for item in items),
        longest=max((len(item.input_ids) for item in items), default=0),
    )
