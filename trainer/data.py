"""Turns rows into tokens and labels so that what is trained is exactly what is asked for later.

One function renders and tokenizes for training, evaluation and generation alike. In every example
the completion and the end-of-sequence token are whole and supervised, the prompt is not, there is
at most one BOS, and only the prompt is ever shortened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from trainer.rows import DataError, Row, read_rows
from trainer.template import MissingFieldError, Template, TemplateError

if TYPE_CHECKING:
    import torch

NOT_TRAINED = -100  # the label that cross_entropy ignores
NUMBERS_KEPT_MAX = 100


class Templates(Protocol):
    """What this module needs of the data table: how a row becomes a prompt and a completion."""

    @property
    def prompt(self) -> str:
        """The template of what the model is given."""

    @property
    def completion(self) -> str:
        """The template of what the model shall answer."""

    @property
    def loss_on(self) -> str:
        """`completion`, or `all` to learn the prompt too."""

    @property
    def messages(self) -> str | None:
        """The field that holds a conversation, instead of the two templates."""

    @property
    def chat(self) -> str:
        """`markers` or `template`: how turns are written."""


@dataclass(frozen=True)
class Example:
    """One row ready to train on.

    For a causal model `input_ids` is prompt + completion + EOS and `labels` has the same length,
    NOT_TRAINED over the prompt (the model shifts). For an encoder-decoder `input_ids` is the
    prompt alone and `labels` the completion + EOS.
    """

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    prompt: str
    completion: str
    row: int
    prompt_length: int

    @property
    def answer_length(self) -> int:
        """How many tokens the right answer has, its EOS included."""
        return len(self.labels) - (self.prompt_length if self._causal else 0)

    @property
    def targets(self) -> int:
        """How many tokens are learnt: a causal model predicts none where it has read none."""
        predicted = self.labels[1:] if self._causal else self.labels
        return len(predicted) - predicted.count(NOT_TRAINED)

    @property
    def _causal(self) -> bool:
        return len(self.input_ids) > self.prompt_length

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """The tokens to generate from: exactly those that stood before the completion."""
        return self.input_ids[: self.prompt_length]


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """What became of the rows of one file; lengths and totals are in tokens."""

    path: str
    rows: int
    truncated: int
    truncated_rows: tuple[int, ...]
    tokens: int
    supervised_tokens: int
    longest: int


@dataclass(frozen=True)
class Examples:
    """The examples of one file in file order, and the report on them."""

    items: tuple[Example, ...]
    report: DataReport


def load_examples(
    table: Templates, path: Path, tokenizer: Any, *, max_length: int, seq2seq: bool = False
) -> Examples:
    """Read, render and tokenize all rows of `path`; no example is longer than `max_length` tokens.

    Raises:
        DataError: with every problem of the file at once, each as `file:row`.
    """
    codec = Codec.of(tokenizer, max_length=max_length, seq2seq=seq2seq)
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
    table: Templates, path: Path, codec: Codec, problems: list[str]
) -> list[tuple[Example, bool]]:
    """Return the examples of rows that fill two templates, and which of them were shortened."""
    prompt_of, completion_of = _parse(table)
    texts: list[tuple[Row, str, str]] = []
    for row in read_rows(path):
        try:
            prompt, completion = prompt_of.render(row.fields), completion_of.render(row.fields)
        except MissingFieldError as error:
            problems.append(f"{path}:{row.number}: {error}")
            continue
        for text, template in ((prompt, prompt_of), (completion, completion_of)):
            problems += [
                f"{path}:{row.number}: {fault}" for fault in codec.smuggled(text, template)
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
    table: Templates, path: Path, codec: Codec, problems: list[str]
) -> list[tuple[Example, bool]]:
    """Return the examples of rows that hold conversations, and which of them were shortened."""
    from trainer.chat import encode_conversation  # it builds on this module

    if codec.seq2seq:
        raise DataError(["`data.messages`: an encoder-decoder reads a prompt, not a conversation"])
    template = Template.parse("{" + (table.messages or "") + "}")
    found: list[tuple[Example, bool]] = []
    for row in read_rows(path):
        try:
            value = template.value(row.fields)
            found.append(encode_conversation(codec, value, style=table.chat, row=row.number))
        except (MissingFieldError, TooLongError) as error:
            problems.append(f"{path}:{row.number}: {error}")
    return found


def load_texts(table: Templates, path: Path) -> list[tuple[int, str, str]]:
    """Return row number, prompt and completion of every row, for whoever needs no tokens.

    Raises:
        DataError: the rows cannot be read, lack a field, or are conversations.
    """
    if table.messages is not None:
        raise DataError([f"{path}: conversations are no pairs of prompt and completion"])
    prompt_of, completion_of = _parse(table)
    try:
        return [
            (row.number, prompt_of.render(row.fields), completion_of.render(row.fields))
            for row in read_rows(path)
        ]
    except MissingFieldError as error:
        raise DataError([f"{path}: {error}"]) from error


def encode_prompt(
    table: Templates, fields: dict[str, Any], tokenizer: Any, *, max_length: int, seq2seq: bool
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
    codec = Codec.of(tokenizer, max_length=max_length, seq2seq=seq2seq)
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


def padding_id(tokenizer: Any) -> int:
    """Return a token id to pad with; no token is ever added, since the mask makes it invisible."""
    for name in ("pad_token_id", "unk_token_id", "eos_token_id"):
        value = getattr(tokenizer, name, None)
        if value is not None:
            return int(value)
    return 0


class TooLongError(Exception):
    """A completion that does not fit, so that shortening the prompt cannot help."""


@dataclass(frozen=True, kw_only=True)
class Codec:
    """How one tokenizer frames a sequence: learnt from what it does itself, never from its name."""

    tokenizer: Any
    max_length: int
    seq2seq: bool
    prefix: tuple[int, ...]  # what the tokenizer puts before a text: BOS, [CLS] or nothing
    suffix: tuple[int, ...]  # what an encoder expects after it: T5's EOS, BERT's [SEP]
    eos_id: int
    control_tokens: Mapping[str, int]  # text -> id

    @classmethod
    def of(cls, tokenizer: Any, *, max_length: int, seq2seq: bool) -> Codec:
        """Probe the tokenizer.

        Raises:
            DataError: it has no token to end a sequence with, so no model could learn to stop.
        """
        eos_id = tokenizer.eos_token_id
        if eos_id is None:
            eos_id = getattr(tokenizer, "sep_token_id", None)
        if eos_id is None:
            raise DataError(
                ["the tokenizer has no end-of-sequence token: the model could not learn to stop"]
            )
        bare = tokenizer("a", add_special_tokens=False)["input_ids"]
        framed = tokenizer("a", add_special_tokens=True)["input_ids"]
        start = _find(framed, bare)
        added = tokenizer.added_tokens_decoder.items()
        return cls(
            tokenizer=tokenizer,
            max_length=max_length,
            seq2seq=seq2seq,
            prefix=tuple(framed[:start]),
            suffix=tuple(framed[start + len(bare) :]) if seq2seq else (),
            eos_id=int(eos_id),
            control_tokens={token.content: number for number, token in added if token.special},
        )

    def encode(self, texts: Sequence[str], template: Template) -> list[list[int]]:
        """Tokenize rendered texts without framing.

        Control tokens count only where the template itself writes them; elsewhere a `</s>` in
        somebody's comment is harmless characters.
        """
        if self._writes_control(template):
            return self._tokenize(texts, split_special_tokens=False)
        encoded = self._tokenize(texts, split_special_tokens=True)
        for at, (text, ids) in enumerate(zip(texts, encoded, strict=True)):
            # A Unigram vocabulary lists `</s>` as a piece, so asking for a split is not enough.
            held = self.control_tokens.items()
            armed = [token for token, number in held if token in text and number in ids]
            if armed:
                encoded[at] = self._tokenize([_disarm(text, armed)], split_special_tokens=True)[0]
        return encoded

    def _tokenize(self, texts: Sequence[str], *, split_special_tokens: bool) -> list[list[int]]:
        if not texts:
            return []
        encoded = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            split_special_tokens=split_special_tokens,
            return_attention_mask=False,
            verbose=False,
        )
        return [list(ids) for ids in encoded["input_ids"]]

    def smuggled(self, text: str, template: Template) -> list[str]:
        """Name control tokens that a row's own words would bring in beside the template's."""
        if not self._writes_control(template):
            return []
        return [
            f"the text holds the control token {token!r}, which this template would act on; "
            "remove it from the row"
            for token in self.control_tokens
            if text.count(token) > template.literals.count(token)
        ]

    def _writes_control(self, template: Template) -> bool:
        return any(token in template.literals for token in self.control_tokens)

    def assemble(
        self, prompt: list[int], completion: list[int]
    ) -> tuple[tuple[int, ...], tuple[int, ...], int, bool]:
        """Return input ids, labels, the prompt's length, and whether the prompt was shortened.

        A long prompt loses its middle: its head holds the instruction, its end the question.

        Raises:
            TooLongError: completion and EOS alone exceed `max_length`.
        """
        answer = completion if completion[-1:] == [self.eos_id] else [*completion, self.eos_id]
        if prompt[: len(self.prefix)] == list(self.prefix):
            prompt = prompt[len(self.prefix) :]  # the template writes its BOS itself
        frame = len(self.prefix) + len(self.suffix)
        needed = len(answer) if self.seq2seq else len(answer) + len(self.prefix)
        if needed > self.max_length:
            raise TooLongError(
                f"the completion needs {needed} tokens with its end, and `max_length` is "
                f"{self.max_length}; raise it or shorten the completion"
            )
        room = self.max_length - frame - (0 if self.seq2seq else len(answer))
        cut = len(prompt) > room
        if cut:
            tail = (room + 1) // 2
            prompt = prompt[: room - tail] + prompt[len(prompt) - tail :]
        head = (*self.prefix, *prompt, *self.suffix)
        if self.seq2seq:
            return head, tuple(answer), len(head), cut
        return (*head, *answer), (*(NOT_TRAINED,) * len(head), *answer), len(head), cut


def _disarm(text: str, tokens: Sequence[str]) -> str:
    for token in tokens:
        text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def _find(haystack: list[int], needle: list[int]) -> int:
    for start in range(len(haystack) - len(needle) + 1):
        if haystack[start : start + len(needle)] == needle:
            return start
    return 0


def _parse(table: Templates) -> tuple[Template, Template]:
    try:
        return Template.parse(table.prompt), Template.parse(table.completion)
    except TemplateError as error:
        raise DataError([str(error)]) from error


def _report(path: Path, found: Sequence[tuple[Example, bool]]) -> DataReport:
    items = [item for item, _ in found]
    truncated = [item.row for item, cut in found if cut]
    return DataReport(
        path=str(path),
        rows=len(items),
        truncated=len(truncated),
        truncated_rows=tuple(truncated[:NUMBERS_KEPT_MAX]),
        tokens=sum(len(item.input_ids) for item in items),
        supervised_tokens=sum(sum(label != NOT_TRAINED for label in item.labels) for item in items),
        longest=max((len(item.input_ids) for item in items), default=0),
    )
