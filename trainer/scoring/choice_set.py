"""Loads held-out rows with their options, as examples whose likelihood can be measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from trainer.data.chat.conversation import read_conversation
from trainer.data.codec import NOT_TRAINED, Codec, Example, TooLongError
from trainer.data.examples import load_examples, load_texts
from trainer.data.rows import read_rows
from trainer.data.template import MissingFieldError, Template
from trainer.errors import DataError
from trainer.eval_tables.choice import ChoiceEvalTable
from trainer.rundir.layout import resolve
from trainer.scoring.baselines import CONTEXT_TOKENS, select_demonstrations, with_demonstrations
from trainer.scoring.chosen_rows import choose_rows
from trainer.scoring.options import OptionsError, RowOptions, read_options, written_otherwise
from trainer.scoring.result import ScoringRequest


@dataclass(frozen=True, kw_only=True)
class ChoiceSet:
    """The held-out rows in order, each with its options and their tokens.

    `listings` are the prompts behind a list of the options, None where there is none to write.
    """

    table: ChoiceEvalTable
    items: tuple[Example, ...]
    options: tuple[RowOptions, ...]
    words: tuple[tuple[tuple[int, ...], ...], ...]
    letters: tuple[tuple[tuple[int, ...], ...], ...]
    listings: tuple[tuple[int, ...], ...] | None
    codec: Codec

    @property
    def by_letter(self) -> bool:
        """Whether right answers are letters."""
        return self.options[0].by_letter

    @property
    def with_end(self) -> list[bool]:
        """For each row, whether one of its options begins another, as tokens."""
        return [_begin_each_other(one) for one in self.words]

    def word_examples(self) -> list[Example]:
        """Return an example for each option of each row, in order, with the option as answer."""
        return [
            one
            for item, tokens, end in zip(self.items, self.words, self.with_end, strict=True)
            for one in self._examples(item, item.prompt_ids, tokens, end=end)
        ]

    def letter_examples(self) -> list[Example] | None:
        """Return an example for each letter of each row, in order; None without prompts for it."""
        prompts = [item.prompt_ids for item in self.items] if self.by_letter else self.listings
        if prompts is None:
            return None
        return [
            one
            for item, prompt, tokens in zip(self.items, prompts, self.letters, strict=True)
            for one in self._examples(item, prompt, tokens, end=_begin_each_other(tokens))
        ]

    def _examples(
        self, item: Example, prompt: Sequence[int], options: Sequence[Sequence[int]], *, end: bool
    ) -> list[Example]:
        head = (*prompt, *item.opening)
        ending = (self.codec.eos_id,) if end else ()
        found = []
        for tokens in options:
            answer = (*tokens, *ending)
            if self.codec.seq2seq:
                ids, labels = tuple(head), answer
            else:
                ids, labels = (*head, *answer), (*(NOT_TRAINED,) * len(head), *answer)
            found.append(Example(ids, labels, "", "", item.row, len(head)))
        return found


def load_choice_set(request: ScoringRequest) -> ChoiceSet:
    """Load the held-out rows that are scored.

    Raises:
        DataError: the rows cannot be read, a right answer is not among its options, or two options
            are the same tokens.
    """
    config = request.config
    data, table = config.data, config.scored
    assert isinstance(table, ChoiceEvalTable)
    assert data.eval is not None
    path, seq2seq = (
        resolve(request.run_dir, data.eval),
        bool(request.model.config.is_encoder_decoder),
    )
    most = config.train.max_length
    loaded = load_examples(data, path, request.tokenizer, max_length=most, seq2seq=seq2seq)
    last = {item.row: item for item in loaded.items}  # of a conversation, its last answer
    items = choose_rows(tuple(last.values()), table.rows)
    template = None if data.messages is not None else Template.parse(data.completion)
    fields = {row.number: row.fields for row in read_rows(path)}
    options, problems = [], []
    for item in items:
        try:
            options.append(read_options(fields[item.row], item.completion, table, template))
        except OptionsError as error:
            problems.append(f"{data.eval}:{item.row}: {error}")
    for item, each in zip(items, options, strict=not problems):
        if not problems and each.by_letter != options[0].by_letter:
            problem = written_otherwise(by_letter=each.by_letter, row=items[0].row)
            problems.append(f"{data.eval}:{item.row}: {problem}")
    if problems:
        raise DataError(problems)
    codec = Codec.from_tokenizer(request.tokenizer, max_length=most, seq2seq=seq2seq, day=data.day)
    words, letters = (
        tuple(_encoded(codec, texts, template) for texts in each)
        for each in ([one.words for one in options], [one.letters for one in options])
    )
    require_apart(items, options, words, data.eval)
    return ChoiceSet(
        table=table,
        items=items,
        options=tuple(options),
        words=words,
        letters=letters,
        listings=_listings(items, options, codec, data.prompt) if template else None,
        codec=codec,
    )


def training_answers(request: ScoringRequest) -> Counter[str]:
    """Count the answers of the training rows, stripped; of a conversation, the last one."""
    data = request.config.data
    found: Counter[str] = Counter()
    for one in data.train_sets:
        path = resolve(request.run_dir, one.path)
        if data.messages is None:
            found.update(answer.strip() for _, _, answer in load_texts(data, path))
            continue
        for row in read_rows(path):
            try:
                conversation = read_conversation(row.fields, data.messages, ignore=data.ignore)
            except MissingFieldError:  # such a row ends the training, which says so with its number
                continue
            found[conversation.answer.strip()] += 1
    return found


def with_demonstrated_rows(
    request: ScoringRequest, choices: ChoiceSet
) -> tuple[ChoiceSet, int, int]:
    """Return the rows behind training rows, how many these are, and how many fit at least.

    Letters are scored only where right answers are letters.
    """
    config = request.config
    longest = max(len(one) for row in choices.words for one in row) + 1
    room = getattr(request.model.config, "max_position_embeddings", None) or CONTEXT_TOKENS
    codec = replace(choices.codec, max_length=max(1, room - longest))
    rows = [
        (prompt, answer)
        for one in config.data.train_sets
        for _, prompt, answer in load_texts(config.data, resolve(request.run_dir, one.path))
    ]
    demonstrations = select_demonstrations(rows, choices.table.shots)
    template = Template.parse(config.data.prompt)
    prompts = with_demonstrations(choices.items, demonstrations, codec, template)
    shown = replace(choices, items=prompts.items, listings=None)
    return shown, len(demonstrations), prompts.fewest


def require_apart(
    items: Sequence[Example],
    options: Sequence[RowOptions],
    tokens: Sequence[Sequence[Sequence[int]]],
    place: str,
) -> None:
    """Raise `DataError` with every row of which two options are the same tokens, or none."""
    problems = []
    for item, each, encoded in zip(items, options, tokens, strict=True):
        seen: dict[tuple[int, ...], str] = {}
        for text, ids in zip(each.words, encoded, strict=True):
            other = seen.setdefault(tuple(ids), text)
            if other is not text:
                what = f"the options {other!r} and {text!r} are the same tokens"
                problems.append(f"{place}:{item.row}: {what} to this base's tokenizer")
            if not ids:
                problems.append(f"{place}:{item.row}: the option {text!r} has no tokens")
    if problems:
        raise DataError(problems)


def _encoded(
    codec: Codec, texts: Sequence[str], template: Template | None
) -> tuple[tuple[int, ...], ...]:
    return tuple(map(tuple, codec.encode(list(texts), template or Template.parse(""))))


def _listings(
    items: Sequence[Example], options: Sequence[RowOptions], codec: Codec, prompt: str
) -> tuple[tuple[int, ...], ...]:
    """Return the tokens of each prompt behind a list of its options."""
    template = Template.parse(prompt)
    texts = [f"{each.listing}\n\n{item.prompt}" for item, each in zip(items, options, strict=True)]
    found = []
    for item, ids, each in zip(items, codec.encode(texts, template), options, strict=True):
        letter = codec.encode([each.letters[0]], Template.parse(""))[0]
        try:
            whole, _, length, _ = codec.assemble(ids, letter)
        except TooLongError as error:
            raise DataError([f"row {item.row}: {error}"]) from error
        found.append(whole[:length])
    return tuple(found)


def _begin_each_other(options: Sequence[Sequence[int]]) -> bool:
    """Return whether the tokens of one option are the first ones of another."""
    ranked = sorted(map(tuple, options))
    return any(longer[: len(shorter)] == shorter for shorter, longer in pairwise(ranked))
