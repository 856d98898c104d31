"""Renders and tokenizes rows to examples, with the same code for training and for inference.

In every example the completion and the EOS are whole and in the loss, the prompt is not, there is
at most one BOS, and only the prompt is ever truncated. A plain text is learnt from its first token
to its EOS; one that is cut has lost its end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.data.chat.conversation import read_conversation
from trainer.data.chat.encoder import ChatEncoder
from trainer.data.codec import NOT_TRAINED, Codec, Example, TooLongError
from trainer.data.preferences import bad_answer, describe_preferences
from trainer.data.rows import Row, read_rows
from trainer.data.template import MissingFieldError, Template, TemplateError
from trainer.data_table import DataTable
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
    dropped: int = 0
    """Left out as too long (`data.too_long: drop`)."""
    dropped_rows: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()
    """What is learnt, and perhaps not meant."""

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


@dataclass(kw_only=True)
class _Collected:
    """What is made of the rows of one file: examples, rows left out, problems and warnings."""

    table: DataTable
    path: Path | Shards
    max_length: int
    found: list[tuple[Example, bool]] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    bad: Counter[str] = field(default_factory=Counter)
    """How many rows call what is learnt of them a bad answer, by how they say it."""

    def judge(self, rows: Sequence[Row], learnt: Sequence[str]) -> Iterator[Row]:
        """Yield the rows, counting those that call one of the `learnt` fields a bad answer."""
        for row in rows:
            if why := bad_answer(row.fields, learnt):
                self.bad[why] += 1
            yield row

    def add(self, item: Example, *, was_shortened: bool, tokens: int | None = None) -> None:
        """Take an example, or what `data.too_long` says if it had to be shortened to fit."""
        if not was_shortened or self.table.too_long == "cut":
            self.found.append((item, was_shortened))
        elif self.table.too_long == "drop":
            self.dropped.append(item.row)
        else:
            has = f"{tokens} tokens" if tokens else "more tokens"
            self.refuse(
                item.row,
                f"the row has {has}, and `max_length` is {self.max_length} (`too_long: refuse`); "
                "raise it, shorten the row, or choose `cut` or `drop`",
            )

    def fail(self, row: Row, error: MissingFieldError | TooLongError) -> None:
        """Note why a row gives no example."""
        if isinstance(error, TooLongError) and self.table.too_long == "drop":
            self.dropped.append(row.number)
            return
        kind = describe_preferences(row.fields) if isinstance(error, MissingFieldError) else ""
        self.refuse(row.number, f"{error}; {kind}" if kind else str(error))

    def refuse(self, row: int, problem: str) -> None:
        """Note what is wrong with a row."""
        self.problems.append(f"{self.path}:{row}: {problem}")

    def report(self) -> DataReport:
        """Count what was found; raise `DataError` if there is nothing, or any row has a problem."""
        if self.problems:
            raise DataError(self.problems)
        if self.dropped and not self.found:
            count, most = len(self.dropped), self.max_length
            why = f"all of its {count} rows have more than {most} tokens (`too_long: drop`)"
            raise DataError([f"{self.path}: {why}; raise `train.max_length`"])
        items = [item for item, _ in self.found]
        dropped = list(dict.fromkeys(self.dropped))  # a row may be several examples
        truncated = [item.row for item, cut in self.found if cut]
        return DataReport(
            path=str(self.path),
            rows=len({item.row for item in items}),
            examples=len(items),
            truncated=len(truncated),
            truncated_rows=tuple(truncated[:NUMBERS_KEPT_MAX]),
            tokens=sum(len(item.input_ids) for item in items),
            supervised_tokens=sum(
                len(item.labels) - item.labels.count(NOT_TRAINED) for item in items
            ),
            longest=max((len(item.input_ids) for item in items), default=0),
            dropped=len(dropped),
            dropped_rows=tuple(dropped[:NUMBERS_KEPT_MAX]),
            warnings=(
                *self.warnings,
                *(
                    f"bad answers among those to learn: {n} ({why}); leave these rows out"
                    for why, n in self.bad.items()
                ),
            ),
        )


def load_examples(
    table: DataTable, path: Path | Shards, tokenizer: Any, *, max_length: int, seq2seq: bool = False
) -> Examples:
    """Read, render and tokenize all rows of `path`; no example is longer than `max_length` tokens.

    Raises:
        DataError: with every problem of the file at once, each as `file:row`.
    """
    codec = Codec.from_tokenizer(tokenizer, max_length=max_length, seq2seq=seq2seq, day=table.day)
    collected = _Collected(table=table, path=path, max_length=max_length)
    if table.messages is not None:
        _conversations(codec, collected)
    elif table.text is not None:
        _plain_texts(codec, collected)
    else:
        _templated(codec, collected)
    report = collected.report()
    items = tuple(item for item, _ in collected.found)
    if table.loss_on == "all" and not seq2seq:
        items = tuple(map(_learnt_whole, items))
        report = replace(report, supervised_tokens=report.tokens)
    return Examples(items=items, report=report)


def _learnt_whole(item: Example) -> Example:
    """Return an example of which every token is learnt (`data.loss_on: all`).

    Of a conversation only the answers' texts are at hand, so what its tokens stand for is left out.
    """
    learnt = item.learnt
    if len(item.labels) > sum(tokens for tokens, _ in learnt):
        learnt = ((item.prompt_length, item.prompt), *learnt) if len(learnt) == 1 else ()
    return replace(item, labels=item.input_ids, learnt=learnt)


def _templated(codec: Codec, collected: _Collected) -> None:
    """Make the examples of rows that fill two templates."""
    rows = read_rows(collected.path)
    prompt_of, completion_of = _parse(collected.table, rows)
    texts: list[tuple[Row, str, str]] = []
    for row in collected.judge(rows, completion_of.fields):
        try:
            prompt, completion = prompt_of.render(row.fields), completion_of.render(row.fields)
        except MissingFieldError as error:
            collected.fail(row, error)
            continue
        for text, template in ((prompt, prompt_of), (completion, completion_of)):
            for problem in codec.special_tokens_in(text, template):
                collected.refuse(row.number, problem)
        texts.append((row, prompt, completion))
    prompts = codec.encode([prompt for _, prompt, _ in texts], prompt_of)
    completions = codec.encode([completion for _, _, completion in texts], completion_of)
    for (row, prompt, completion), head, tail in zip(texts, prompts, completions, strict=True):
        if not tail or not completion.strip():  # characters that a tokenizer drops are none
            hint = "write a word for it (such as N/A) or leave the row out"
            collected.refuse(row.number, f"the completion is empty; {hint}")
            continue
        try:
            ids, labels, length, cut = codec.assemble(head, tail)
        except TooLongError as error:
            collected.fail(row, error)
            continue
        learnt = ((len(labels) - (0 if codec.seq2seq else length), completion),)
        item = Example(ids, labels, prompt, completion, row.number, length, learnt=learnt)
        collected.add(item, was_shortened=cut, tokens=codec.framed_length(head, tail))


def _conversations(codec: Codec, collected: _Collected) -> None:
    """Make the examples of rows with conversations."""
    if codec.seq2seq:
        raise DataError(["`data.messages`: an encoder-decoder reads a prompt, not a conversation"])
    table = collected.table
    assert table.messages is not None
    whole = table.loss_on == "all"  # every token once, so one example a conversation
    encoder = ChatEncoder(codec=codec, style=table.chat, answers="last" if whole else table.answers)
    for row in collected.judge(read_rows(collected.path), [table.messages]):
        try:
            conversation = read_conversation(row.fields, table.messages, ignore=table.ignore)
            if whole:
                conversation.require_all_learnt()
            for item, was_shortened in encoder.encode(conversation, row=row.number):
                collected.add(item, was_shortened=was_shortened)
        except (MissingFieldError, TooLongError) as error:
            collected.fail(row, error)


def _plain_texts(codec: Codec, collected: _Collected) -> None:
    """Make the examples of rows with a text of which every token is learnt."""
    if codec.seq2seq:
        raise DataError(["`data.text`: an encoder-decoder reads a prompt and learns the answer"])
    template = Template.parse("{" + (collected.table.text or "") + "}")
    texts: list[tuple[Row, str]] = []
    for row in collected.judge(read_rows(collected.path), template.fields):
        try:
            text = template.render(row.fields)
        except MissingFieldError as error:
            collected.fail(row, error)
            continue
        if problem := text_problem(text):
            collected.refuse(row.number, problem)
        else:
            texts.append((row, text))
    controls, seen = {*codec.special_tokens.values()}, set[int]()
    for (row, text), written in zip(
        texts, codec.encode_written([text for _, text in texts]), strict=True
    ):
        ids, cut = codec.frame_text(written)
        if not written or len(ids) < 2:  # characters that a tokenizer drops are none
            collected.refuse(row.number, "the text is empty; leave the row out")
            continue
        # Who lets the model go on with a text, to compare models, begins in its middle.
        middle = max(1, len(ids) // 2)
        item = Example(ids, ids, "", text, row.number, middle, learnt=((len(ids), text),))
        collected.add(item, was_shortened=cut, tokens=codec.framed_length([], written))
        seen.update(controls.intersection(written))
    if seen:
        marked = [token for token, number in codec.special_tokens.items() if number in seen]
        collected.warnings.append(
            f"the texts hold control tokens ({', '.join(marked[:5])}), which count as such: where "
            "they are only words of a text, leave them out"
        )


def text_problem(text: str) -> str | None:
    """Return why a text of `data.text` is nothing to learn; None if it is."""
    return None if text.strip() else "the text is empty; leave the row out"


def load_texts(table: DataTable, path: Path | Shards) -> list[tuple[int, str, str]]:
    """Return row number, prompt and completion of every row as text.

    Raises:
        DataError: the rows cannot be read, lack a field, or are conversations.
    """
    if table.messages is not None or table.text is not None:
        what = "conversations" if table.text is None else "texts"
        raise DataError([f"{path}: {what} are no pairs of prompt and completion"])
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
