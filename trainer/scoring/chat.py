"""Scores the answers of conversations, each behind the true turns before it.

An answer stands behind what people and the right answers said, not behind what the model answered
before: so each is scored by itself. The answers of one conversation are one document, since they
are not independent of each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.data.chat.conversation import OPENING, Conversation, read_conversation
from trainer.data.chat.encoder import ChatEncoder, words_of
from trainer.data.codec import Codec, Example, TooLongError
from trainer.data.examples import load_examples
from trainer.data.rows import read_rows
from trainer.data.template import MissingFieldError
from trainer.data_table import DataTable
from trainer.errors import DataError
from trainer.eval_tables.chat import ChatEvalTable
from trainer.hub import Shards
from trainer.rundir.layout import resolve
from trainer.scoring.answer_baselines import Pair
from trainer.scoring.answer_figures import ComparedAnswers
from trainer.scoring.chosen_rows import choose_rows
from trainer.scoring.free_answers import FreeAnswer
from trainer.scoring.free_scoring import AnswerSet, places_of, score_answers
from trainer.scoring.result import EvalResult, ScoringRequest
from trainer.scoring.text import require_comparable


def score_chat(request: ScoringRequest) -> EvalResult:
    """Score a model on held-out conversations.

    Raises:
        DataError: the rows cannot be read, have no answer behind a turn, or one that a measure
            cannot compare.
    """
    table = request.config.scored
    assert isinstance(table, ChatEvalTable)
    answer_set = load_answer_set(request)
    return score_answers(
        request,
        table,
        answer_set,
        training=lambda: training_pairs(request),
        documents=lambda compared, answers: _documents(answer_set, compared, answers),
    )


def load_answer_set(request: ScoringRequest) -> AnswerSet:
    """Load every answer of the held-out conversations that are scored, each with its own prompt.

    Raises:
        DataError: the rows cannot be read, or there is nothing in them to answer.
    """
    config = request.config
    data, table = config.data, config.scored
    assert isinstance(table, ChatEvalTable)
    assert data.eval is not None
    path, most = resolve(request.run_dir, data.eval), config.train.max_length
    loaded = load_examples(data, path, request.tokenizer, max_length=most)
    chosen = {item.row for item in choose_rows(loaded.items, table.rows)}
    codec = Codec.from_tokenizer(request.tokenizer, max_length=most, seq2seq=False, day=data.day)
    encoder = ChatEncoder(codec=codec, style=data.chat, answers="last")
    turns = [one for one in _turns(data, path) if one.row in chosen]
    items, problems = [], []
    for one in turns:
        try:
            items.append(encoder.encode(one.conversation, row=one.row)[-1][0])
        except (MissingFieldError, TooLongError) as error:
            problems.append(f"{data.eval}:{one.row}: {error}")
    if not turns:
        problems = [f"{data.eval}: no conversation has an answer behind a turn to answer"]
    if problems:
        raise DataError(problems)
    references = [
        _right_answer(request.tokenizer, item, turn)
        for item, turn in zip(items, turns, strict=True)
    ]
    require_comparable(items, references, table, data.eval)
    return AnswerSet(
        items=tuple(items),
        references=tuple(references),
        prompts=tuple(one.request for one in turns),
        stop_ids=encoder.stop_ids(),
        places_max=places_of(request.model),
    )


def training_pairs(request: ScoringRequest) -> list[Pair]:
    """Return what every answer of the training conversations answers, and the answer."""
    data = request.config.data
    return [
        (turn.request, turn.conversation.answer)
        for one in data.train_sets
        for turn in _turns(data, resolve(request.run_dir, one.path))
    ]


@dataclass(frozen=True, kw_only=True)
class _Turn:
    """A conversation up to one of its answers; `request` is what was said since the last one."""

    row: int
    conversation: Conversation
    request: str


def _turns(data: DataTable, path: Path | Shards) -> Iterator[_Turn]:
    """Yield each answer that is learnt, behind the true turns before it.

    One before anybody has spoken, such as a greeting, answers nothing and is left out.
    """
    assert data.messages is not None
    for row in read_rows(path):
        try:
            conversation = read_conversation(row.fields, data.messages, ignore=data.ignore)
        except MissingFieldError:  # no row that is scored, or learnt from: those have been read
            continue
        last = len(conversation.messages) - 1
        for at, learnt in enumerate(conversation.learnt):
            before = conversation.messages[:at]
            answers_one = any(one["role"] not in OPENING for one in before)
            if learnt and answers_one and (data.answers == "all" or at == last):
                part = conversation.upto(at + 1)
                yield _Turn(row=row.number, conversation=part, request=_request(before))


def _request(messages: Sequence[Any]) -> str:
    """Return the texts since the last answer before these messages end."""
    texts: list[str] = []
    for message in reversed(messages):
        if message["role"] == "assistant":
            break
        texts.append(str(message.get("content") or ""))
    return "\n".join(reversed(texts))


def _right_answer(tokenizer: Any, item: Example, turn: _Turn) -> str:
    """Return the words of the right answer; of one with tool calls, what a model would write."""
    if turn.conversation.messages[-1].get("tool_calls"):
        return words_of(tokenizer, item.labels[item.prompt_length :], item.opening)
    return turn.conversation.answer


def _documents(
    answer_set: AnswerSet, compared: ComparedAnswers, answers: Sequence[FreeAnswer]
) -> list[dict[str, Any]]:
    """Return what the result keeps of each conversation: all of its answers, each numbered."""
    found = []
    for document, row in enumerate(answer_set.rows):
        places = [at for at, item in enumerate(answer_set.items) if item.row == row]
        each = [
            {
                "prompt": answer_set.items[at].prompt,
                "gold": answer_set.references[at],
                "free": answers[at].text,
                "stopped": answers[at].stopped,
                "figures": {name: score.score for name, score in compared.scores[at].items()},
            }
            for at in places
        ]
        found.append(
            {
                "row": row,
                "prompt": each[0]["prompt"],
                "gold": _numbered([str(one["gold"]) for one in each]),
                "free": _numbered([str(one["free"]) for one in each]),
                "stopped": all(one["stopped"] for one in each),
                **compared.document_fields(document),
                "answers": each,
            }
        )
    return found


def _numbered(texts: Sequence[str]) -> str:
    """Return the texts of one conversation as one, each behind its number if there are several."""
    if len(texts) == 1:
        return texts[0]
    return "\n\n".join(f"[{at}] {text}" for at, text in enumerate(texts, start=1))
