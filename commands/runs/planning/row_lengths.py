"""Says how many rows a run has and how long they are, from its files or from the table `plan`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from commands.runs.config import LoadedConfig
from commands.runs.planning.bytes_per_token import bytes_per_token
from commands.runs.planning.row_sample import sample_rows
from trainer.data.chat.conversation import Conversation, read_conversation
from trainer.data.template import MissingFieldError, Template, TemplateError
from trainer.errors import DataError
from trainer.schedule import Share

TURN_TOKENS = 4
"""What a chat template or a heading writes around a turn of a conversation."""
ENDS = 1
"""The token that ends an answer."""


@dataclass(frozen=True, kw_only=True)
class RowLengths:
    """The rows of a run and their tokens; those that are too long are cut or left out already."""

    shares: tuple[Share, ...]
    """Of each data set the rows that are trained, and its weight."""
    mean_tokens: float
    longest_tokens: int
    target_tokens: float
    """In the mean, those of a row that the loss is of."""
    longest_target: int
    tokens: tuple[int, ...] = ()
    """Of the sampled rows, each as long as it is trained; empty if only a mean is given."""
    dropped: float = 0.0
    """The share of rows that `data.too_long: drop` leaves out."""
    counted: bool = True
    """Whether they were counted in the files, not taken from `plan`."""
    eval_rows: int = 0
    eval_tokens: float = 0.0
    """In the mean, of a prompt that is scored."""
    answer_tokens: int = 0
    """The longest answer among the sampled rows to score."""

    @property
    def rows(self) -> int:
        """The rows that an epoch has."""
        return sum(share.rows_per_epoch for share in self.shares)


@dataclass(frozen=True, kw_only=True)
class _Texts:
    """One row as text: all that is read, and the part of it that is learnt."""

    whole: str
    learnt: str
    turns: int = 0


@dataclass(frozen=True, kw_only=True)
class _Read:
    """The number of rows of a file, and some of them as text."""

    rows: int
    texts: tuple[_Texts, ...]


def row_lengths(loaded: LoadedConfig, tokenizer: Path | None = None) -> RowLengths | None:
    """Return how many rows there are and how long they are; None if that is unknown.

    `tokenizer` is the base's `tokenizer.json` if it lies here. The table `plan` counts where a file
    is not here.
    """
    files = {key: path for key, path in loaded.data_files.items() if path.exists()}
    keys = [key for key in loaded.config.data.files if key != "eval"]
    if not files.keys() >= set(keys):
        return _planned(loaded)
    try:
        sets = [_read(loaded, files[key]) for key in keys]
        held_out = _read(loaded, files["eval"]) if "eval" in files else None
    except (DataError, MissingFieldError, TemplateError):  # `check_data_and_model` reports it
        return None
    texts = [text.whole for one in sets for text in one.texts]
    if not texts:
        return None
    found = _measured(loaded, sets, held_out, bytes_per_token(texts, tokenizer))
    plan = loaded.config.plan
    if held_out is not None or plan is None or "eval" not in loaded.config.data.files:
        return found
    prompt = max(1.0, found.mean_tokens - found.target_tokens)
    return replace(
        found,
        eval_rows=plan.eval_rows,
        eval_tokens=prompt,
        answer_tokens=plan.answer_tokens or found.longest_target,
    )


def usual_tokens(loaded: LoadedConfig) -> int | None:
    """Return the mean number of tokens of a row, None if that is unknown."""
    found = row_lengths(loaded)
    return None if found is None else max(1, round(found.mean_tokens))


def _planned(loaded: LoadedConfig) -> RowLengths | None:
    """Return what the table `plan` says; None if there is none."""
    plan = loaded.config.plan
    if plan is None:
        return None
    longest = loaded.config.train.max_length
    mean = min(plan.tokens, longest)
    whole = loaded.config.data.loss_on == "all" or loaded.config.data.text is not None
    target = mean if whole else min(mean, plan.answer_tokens or mean)
    return RowLengths(
        shares=(Share(rows=plan.rows),),
        mean_tokens=float(mean),
        longest_tokens=longest,
        target_tokens=float(target),
        longest_target=longest if plan.answer_tokens is None else target,
        counted=False,
        eval_rows=plan.eval_rows,
        eval_tokens=float(mean - target) or float(mean),
        answer_tokens=target,
    )


def _read(loaded: LoadedConfig, path: Path) -> _Read:
    """Count the rows of a file, and read some of them as text."""
    sample = sample_rows(path)
    return _Read(rows=sample.rows, texts=tuple(_texts(loaded, row) for row in sample.fields))


def _measured(
    loaded: LoadedConfig, sets: Sequence[_Read], held_out: _Read | None, per_token: float
) -> RowLengths:
    """Return the lengths of the rows as they are trained."""
    longest = loaded.config.train.max_length
    kept = [_kept(loaded, one, per_token) for one in sets]
    shares = tuple(
        Share(rows=round(one.rows * part), weight=table.weight)
        for one, (part, _), table in zip(sets, kept, loaded.config.data.train_sets, strict=True)
    )
    there = max(1, sum(share.rows_per_epoch for share in shares))
    means = [
        (
            share.rows_per_epoch / there * sum(whole for whole, _ in pairs) / len(pairs),
            share.rows_per_epoch / there * sum(learnt for _, learnt in pairs) / len(pairs),
        )
        for share, (_, pairs) in zip(shares, kept, strict=True)
        if pairs
    ]
    pairs = [pair for _, each in kept for pair in each]
    lost = sum(one.rows * (1 - part) for one, (part, _) in zip(sets, kept, strict=True))
    scored = [_lengths(text, per_token) for text in held_out.texts] if held_out else []
    return RowLengths(
        shares=shares,
        mean_tokens=max(1.0, sum(whole for whole, _ in means)),
        longest_tokens=max((whole for whole, _ in pairs), default=1),
        target_tokens=max(1.0, sum(learnt for _, learnt in means)),
        longest_target=max((learnt for _, learnt in pairs), default=1),
        tokens=tuple(whole for whole, _ in pairs),
        dropped=lost / max(1, sum(one.rows for one in sets)),
        eval_rows=held_out.rows if held_out else 0,
        eval_tokens=sum(min(whole, longest) for whole, _ in scored) / max(1, len(scored)),
        answer_tokens=max((learnt for _, learnt in scored), default=0),
    )


def _kept(
    loaded: LoadedConfig, one: _Read, per_token: float
) -> tuple[float, list[tuple[int, int]]]:
    """Return the share of rows that are trained, and of each sampled one its two lengths."""
    longest, too_long = loaded.config.train.max_length, loaded.config.data.too_long
    pairs = [_lengths(text, per_token) for text in one.texts]
    kept = [pair for pair in pairs if pair[0] <= longest or too_long != "drop"]
    cut = [(min(whole, longest), min(learnt, longest)) for whole, learnt in kept]
    return len(kept) / max(1, len(pairs)), cut


def _lengths(text: _Texts, per_token: float) -> tuple[int, int]:
    """Return the tokens of a row, and of what of it is learnt."""
    around = text.turns * TURN_TOKENS
    whole = max(1, round(len(text.whole.encode()) / per_token) + around)
    learnt = max(1, round(len(text.learnt.encode()) / per_token) + ENDS)
    return whole, min(whole, learnt)


def _texts(loaded: LoadedConfig, fields: Mapping[str, Any]) -> _Texts:
    """Return a row as the text that is trained.

    Raises MissingFieldError or TemplateError if it has none.
    """
    data = loaded.config.data
    if data.messages is not None:
        conversation = read_conversation(fields, data.messages, ignore=data.ignore)
        found = _conversation(conversation, data.answers)
    elif data.text is not None:
        text = Template.parse("{" + data.text + "}").render(fields)
        found = _Texts(whole=text, learnt=text)
    else:
        prompt, completion = (
            Template.parse(text).for_rows([fields]).render(fields)
            for text in (data.prompt, data.completion)
        )
        found = _Texts(whole=prompt + completion, learnt=completion)
    return replace(found, learnt=found.whole) if data.loss_on == "all" else found


def _conversation(conversation: Conversation, answers: str) -> _Texts:
    """Return a conversation as text, with the answers of it that are learnt."""
    words = [str(message.get("content") or "") for message in conversation.messages]
    learnt = [word for word, is_learnt in zip(words, conversation.learnt, strict=True) if is_learnt]
    return _Texts(
        whole="".join(words),
        learnt="".join(learnt[-1:] if answers == "last" else learnt),
        turns=len(words),
    )
