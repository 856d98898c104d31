"""Encodes prompt and completion with one BOS and an EOS; only the prompt is ever truncated."""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cached_property
from typing import Any

from trainer.data.template import Template
from trainer.errors import DataError, TrainerError
from trainer.exit_codes import ExitCode

NOT_TRAINED = -100  # the label that cross_entropy ignores


@dataclass(frozen=True)
class Example:
    """The tokens and labels of one row.

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
    opening: tuple[int, ...] = ()  # of the answer's tokens, those before its own words
    learnt: tuple[tuple[int, str], ...] = ()
    """For each stretch of `labels` that is learnt, its tokens and the text that they stand for."""

    @property
    def answer_length(self) -> int:
        """The number of tokens of the right answer, its EOS included."""
        return len(self.labels) - (self.prompt_length if self.is_causal else 0)

    @property
    def targets(self) -> int:
        """The number of tokens learnt; a causal model cannot predict the first of a sequence."""
        predicted = self.labels[1:] if self.is_causal else self.labels
        return len(predicted) - predicted.count(NOT_TRAINED)

    @property
    def is_causal(self) -> bool:
        """Whether the answer is read behind the prompt, not written from it by a decoder."""
        return len(self.input_ids) > self.prompt_length

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """The tokens to generate from: exactly those before the completion."""
        return self.input_ids[: self.prompt_length]


def tokens_sha256(examples: Iterable[Example]) -> str:
    """Return one SHA-256 over the ids and labels of all examples, in order."""
    total = hashlib.sha256()
    for example in examples:
        for numbers in (example.input_ids, example.labels):
            packed = array("i", numbers)
            if sys.byteorder == "big":
                packed.byteswap()
            total.update(len(packed).to_bytes(8, "little") + packed.tobytes())
    return total.hexdigest()


class TooLongError(TrainerError):
    """A completion alone does not fit, so that truncating the prompt cannot help."""

    exit_code = ExitCode.BAD_DATA


@dataclass(frozen=True, kw_only=True)
class Codec:
    """Frames sequences as one tokenizer does, probed by what it returns, never by its name."""

    tokenizer: Any
    max_length: int
    seq2seq: bool
    prefix: tuple[int, ...]  # what the tokenizer puts before a text: BOS, [CLS] or nothing
    suffix: tuple[int, ...]  # what an encoder expects after it: T5's EOS, BERT's [SEP]
    eos_id: int
    special_tokens: Mapping[str, int]  # text -> id
    day: date  # what a chat template sees as today

    @classmethod
    def from_tokenizer(
        cls, tokenizer: Any, *, max_length: int, seq2seq: bool, day: date | None = None
    ) -> Codec:
        """Probe the tokenizer; without a `day`, chat templates see today's, in UTC.

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
            special_tokens={token.content: number for number, token in added if token.special},
            day=day or datetime.now(tz=UTC).date(),
        )

    def encode(self, texts: Sequence[str], template: Template) -> list[list[int]]:
        """Tokenize rendered texts without framing.

        Special tokens count only where the template itself writes them; elsewhere a `</s>` in
        somebody's comment is tokenized as the characters that it is.
        """
        if self._has_special_tokens(template):
            return self._tokenize(texts, split_special_tokens=False)
        encoded = self._tokenize(texts, split_special_tokens=True)
        joined = "\0".join(texts)  # hardly anybody writes one, so all texts are searched at once
        if not any(token in joined for token in self.special_tokens):
            return encoded
        for at, (text, ids) in enumerate(zip(texts, encoded, strict=True)):
            # A Unigram vocabulary lists `</s>` as a piece, so asking for a split is not enough.
            special = self.special_tokens.items()
            found = [token for token, number in special if token in text and number in ids]
            if found:
                encoded[at] = self._tokenize([_split_up(text, found)], split_special_tokens=True)[0]
        return encoded

    def encode_written(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenize texts in which special tokens count as such, as they do for whoever wrote them.

        Texts that were rendered for a model hold its turns' marks (`<s>[INST] ...`).
        """
        return self._tokenize(texts, split_special_tokens=False)

    def frame_text(self, written: list[int]) -> tuple[tuple[int, ...], bool]:
        """Return a text's tokens between one BOS and an EOS, and whether its end was cut off."""
        start = len(self.prefix) * (tuple(written[: len(self.prefix)]) == self.prefix)
        end = () if written[-1:] == [self.eos_id] else (self.eos_id,)
        ids = (*self.prefix, *written[start:], *end)
        return ids[: self.max_length], len(ids) > self.max_length

    def framed_length(self, prompt: Sequence[int], completion: Sequence[int]) -> int:
        """Return the tokens of a row with its frame, however long it is."""
        first = prompt or completion
        twice = len(self.prefix) * (tuple(first[: len(self.prefix)]) == self.prefix)
        end = completion[-1:] != [self.eos_id] and not self.seq2seq
        answer = 0 if self.seq2seq else len(completion)
        return len(self.prefix) - twice + len(prompt) + len(self.suffix) + answer + end

    def _tokenize(self, texts: Sequence[str], *, split_special_tokens: bool) -> list[list[int]]:
        if not texts:
            return []
        by_library = texts[:1] if self._is_plain_backend else texts
        encoded = self.tokenizer(
            list(by_library),
            add_special_tokens=False,
            split_special_tokens=split_special_tokens,
            return_attention_mask=False,
            verbose=False,
        )
        found = [list(ids) for ids in encoded["input_ids"]]
        rest = list(texts[len(by_library) :])
        if rest:  # as the library has just set the backend, without what it keeps beside the ids
            backend = self.tokenizer.backend_tokenizer
            found += [one.ids for one in backend.encode_batch_fast(rest, add_special_tokens=False)]
        return found

    @cached_property
    def _is_plain_backend(self) -> bool:
        """Whether transformers only hands texts to the Rust tokenizer, and changes none itself."""
        from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

        kind = type(self.tokenizer)
        if not issubclass(kind, PreTrainedTokenizerFast):
            return False
        unchanged = kind._encode_plus is PreTrainedTokenizerFast._encode_plus  # noqa: SLF001
        return bool(unchanged and kind.__call__ is PreTrainedTokenizerBase.__call__)

    def special_tokens_in(self, text: str, template: Template) -> list[str]:
        """Return a problem for each special token in a row's text beside the template's own."""
        if not self._has_special_tokens(template):
            return []
        return [
            f"the text holds the control token {token!r}, which this template would act on; "
            "remove it from the row"
            for token in self.special_tokens
            if text.count(token) > template.literals.count(token)
        ]

    def _has_special_tokens(self, template: Template) -> bool:
        return any(token in template.literals for token in self.special_tokens)

    def assemble(
        self, prompt: list[int], completion: list[int]
    ) -> tuple[tuple[int, ...], tuple[int, ...], int, bool]:
        """Return input ids, labels, the prompt's length, and whether the prompt was truncated.

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


def _split_up(text: str, tokens: Sequence[str]) -> str:
    for token in tokens:
        text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def _find(haystack: list[int], needle: list[int]) -> int:
    for start in range(len(haystack) - len(needle) + 1):
        if haystack[start : start + len(needle)] == needle:
            return start
    return 0
