"""Asks general questions of four options: which letter is the most probable next word.

Nothing is generated, so a model that has learnt another format of answers is not marked down for
it. Of 60 questions a model that knows nothing has 25 % right.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import takewhile
from typing import Any

import numpy as np

from trainer.base_limits import model_rows
from trainer.data.codec import NOT_TRAINED, Codec, Example
from trainer.data.examples import padding_id
from trainer.group.alone import ALONE
from trainer.group.peers import Peers
from trainer.scoring.constrained import Decoder, Trie, eval_mode
from trainer.scoring.forgetting.shipped import LETTERS, QUESTIONS, MultipleChoice, sha256_of
from trainer.scoring.interval import Interval
from trainer.scoring.kept_rows import KeptRows
from trainer.scoring.metrics import paired_difference
from trainer.scoring.predict import OnProgress
from trainer.scoring.shared_rows import compute_rows
from trainer.scoring.shares import wilson

CHANCE = 1 / len(LETTERS)


def choice_examples(
    tokenizer: Any, questions: Sequence[MultipleChoice], *, seq2seq: bool
) -> list[list[Example]]:
    """Return for each question an example for each letter, as the tokenizer writes them together.

    Of a causal model, what the four have in common is the prompt.
    """
    codec = Codec.from_tokenizer(tokenizer, max_length=2**30, seq2seq=seq2seq)
    encode = codec.encode_written
    found = []
    for number, one in enumerate(questions, 1):
        if seq2seq:
            prompt, *answers = encode([one.prompt, *LETTERS])
        else:
            whole = encode([f"{one.prompt} {letter}" for letter in LETTERS])
            same = takewhile(lambda ids: len(set(ids)) == 1, zip(*whole, strict=False))
            common = len([*same])
            prompt, answers = whole[0][:common], [ids[common:] for ids in whole]
        head = (*codec.prefix, *prompt, *codec.suffix)
        found.append(
            [_example(head, tuple(answer), one, number, seq2seq=seq2seq) for answer in answers]
        )
    return found


def _example(
    head: tuple[int, ...],
    answer: tuple[int, ...],
    one: MultipleChoice,
    number: int,
    *,
    seq2seq: bool,
) -> Example:
    if seq2seq:
        return Example(head, answer, one.prompt, "", number, len(head))
    labels = (*(NOT_TRAINED,) * len(head), *answer)
    return Example((*head, *answer), labels, one.prompt, "", number, len(head))


def ask(  # noqa: PLR0913 - a model with all that asking is made of
    model: Any,
    tokenizer: Any,
    examples: Sequence[Sequence[Example]],
    *,
    kept: KeptRows,
    on_progress: OnProgress,
    peers: Peers = ALONE,
) -> list[list[float] | None]:
    """Return the probability of each letter, among the four, for each question; nothing changes.

    None where the model gives no number. What is in `kept` is not computed again. The ranks share
    the batches.

    Raises:
        ValueError: the tokenizer writes two letters alike.
    """
    codec = Codec.from_tokenizer(
        tokenizer, max_length=2**30, seq2seq=bool(model.config.is_encoder_decoder)
    )
    decoder = Decoder(
        model, eos_ids=[codec.eos_id], pad_id=padding_id(tokenizer, model_rows(model))
    )

    def answer(batch: list[int]) -> dict[int, dict[str, Any]]:
        groups: dict[tuple[tuple[int, ...], ...], list[int]] = {}
        for at in batch:  # one, but for tokenizers that write a letter in two ways
            groups.setdefault(tuple(_answer(one) for one in examples[at]), []).append(at)
        new: dict[int, dict[str, Any]] = {}
        for letters, places in groups.items():
            state = decoder.prefill([examples[at][0].prompt_ids for at in places])
            shares = decoder.score_choices(state, Trie(letters, eos_id=codec.eos_id)).tolist()
            for at, row in zip(places, shares, strict=True):
                new[at] = {"probabilities": row if all(map(math.isfinite, row)) else None}
        return new

    prompts = [four[0].prompt_ids for four in examples]
    with eval_mode(model):
        rows = compute_rows(prompts, answer, kept=kept, on_progress=on_progress, peers=peers)
    return [row["probabilities"] for row in rows]


def _answer(example: Example) -> tuple[int, ...]:
    return tuple(label for label in example.labels if label != NOT_TRAINED)


def knowledge_figures(
    questions: Sequence[MultipleChoice], probabilities: Sequence[Sequence[float] | None]
) -> dict[str, Any]:
    """Return the share of right answers with Wilson's interval, by topic too, and each answer.

    An answer that is no number is wrong. `at_chance` says that the interval holds 25 %.
    """
    answers = [None if row is None else int(np.argmax(row)) for row in probabilities]
    right = [answer == one.right for answer, one in zip(answers, questions, strict=True)]
    share = wilson(sum(right), len(right))
    topics = list(dict.fromkeys(one.topic for one in questions))
    return {
        **asdict(share),
        "n": len(right),
        "chance": CHANCE,
        "at_chance": share.low <= CHANCE <= share.high,
        "not_numbers": answers.count(None),
        "set": sha256_of(QUESTIONS),
        "topics": {
            topic: {
                "right": sum(
                    ok for ok, one in zip(right, questions, strict=True) if one.topic == topic
                ),
                "n": sum(one.topic == topic for one in questions),
            }
            for topic in topics
        },
        "answers": "".join("-" if one is None else LETTERS[one] for one in answers),
        "right": "".join(LETTERS[one.right] for one in questions),
    }


def knowledge_change(
    before: Mapping[str, Any], after: Mapping[str, Any], *, resamples: int
) -> dict[str, Any] | None:
    """Return how much more is right after than before, paired by question, with its interval.

    None if the questions were others.
    """
    if before["set"] != after["set"]:
        return None
    was, now = (
        np.array([a == b for a, b in zip(one["answers"], one["right"], strict=True)], dtype=float)
        for one in (before, after)
    )
    return {
        **asdict(_paired(was, now, resamples=resamples)),
        "newly_right": int((now > was).sum()),
        "newly_wrong": int((now < was).sum()),
    }


def _paired(was: Any, now: Any, *, resamples: int) -> Interval:
    """Return the difference of two shares over the same questions.

    Where every question changed alike (none did, mostly) resampling has no interval: then it is as
    wide as Wilson's for the share of those that changed otherwise.
    """
    found = paired_difference(was, now, resamples=resamples, seed=0)
    if found.low < found.high:
        return found
    spread = wilson(0, len(was)).high
    return Interval(
        value=found.value,
        low=max(-1.0, found.value - spread),
        high=min(1.0, found.value + spread),
    )
