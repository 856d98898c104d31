"""Lets a model answer held-out prompts freely, and scores the answers by the measures of a table.

`text` and `chat` share it: they differ in what their answers stand behind, and in what is drawn by
the bootstrap: rows, or whole conversations.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from trainer.base_limits import places
from trainer.data.codec import Example
from trainer.eval_tables.text import AnswerFields
from trainer.scoring.answer_baselines import Pair, score_answer_baselines
from trainer.scoring.answer_figures import ComparedAnswers, compare_answers
from trainer.scoring.free_answers import FreeAnswer, answer_freely
from trainer.scoring.measures.all_measures import make_measures
from trainer.scoring.measures.measure import UNREADABLE
from trainer.scoring.result import EvalResult, ScoringRequest

TOKENS_MAX = 512
"""Of an answer, where the table does not say."""
MARGIN_TOKENS = 8
"""Beyond the longest right answer: enough to see that a model does not stop."""


@dataclass(frozen=True, kw_only=True)
class AnswerSet:
    """The held-out prompts in order, with the right answers.

    `items` of one row are one document. `stop_ids` end an answer beside EOS. `prompts` are the
    texts by which a training row is found that is like them. `places_max` is for how many tokens a
    base has places, if it looks them up in a table.
    """

    items: tuple[Example, ...]
    references: tuple[str, ...]
    prompts: tuple[str, ...]
    stop_ids: tuple[int, ...] = ()
    places_max: int | None = None

    @property
    def rows(self) -> list[int]:
        """The numbers of the rows, each once."""
        return list(dict.fromkeys(item.row for item in self.items))

    @property
    def documents(self) -> list[int]:
        """For each item its document, numbered from 0."""
        numbers = {row: at for at, row in enumerate(self.rows)}
        return [numbers[item.row] for item in self.items]

    def tokens_max(self, table: AnswerFields) -> int:
        """Return how long an answer may get, in tokens."""
        longest = max(item.answer_length for item in self.items)
        most = table.tokens_max or min(TOKENS_MAX, longest + MARGIN_TOKENS)
        return most if self.places_max is None else max(1, min(most, self.places_max // 2))

    def with_room(self, tokens_max: int) -> tuple[Example, ...]:
        """Return the items, each with a prompt behind which there are places for an answer.

        A prompt that is too long loses its middle, as one does that is too long to be learnt.
        """
        if self.places_max is None:
            return self.items
        room = self.places_max - tokens_max
        return tuple(
            item if item.prompt_length <= room else _shortened(item, room) for item in self.items
        )


def _shortened(item: Example, room: int) -> Example:
    """Return the prompt alone of an example, without its middle."""
    tail = (room + 1) // 2
    ids = item.prompt_ids[: room - tail] + item.prompt_ids[item.prompt_length - tail :]
    return replace(item, input_ids=ids, labels=(), prompt_length=room)


def places_of(model: Any) -> int | None:
    """Return for how many tokens a model has places, None if there is more beyond them.

    The answer of an encoder-decoder does not stand behind its prompt.
    """
    found = None if model.config.is_encoder_decoder else places(model.config.to_dict())
    return found.count if found is not None and found.learnt else None


def generate_answers(
    request: ScoringRequest, answer_set: AnswerSet, table: AnswerFields, *, name: str
) -> list[FreeAnswer]:
    """Return the model's answers; those that an interrupted scoring kept are not generated again.

    `name` is that of the file in `request.scratch` that keeps them.
    """
    tokens_max = answer_set.tokens_max(table)
    items = answer_set.with_room(tokens_max)
    stop_ids = list(answer_set.stop_ids)
    return answer_freely(
        request.model,
        request.tokenizer,
        items,
        tokens_max=tokens_max,
        stop_ids=answer_set.stop_ids,
        kept=request.keep(name, items, tokens_max=tokens_max, stop_ids=stop_ids),
        on_progress=request.on_progress,
        peers=request.peers,
    )


def score_answers(
    request: ScoringRequest,
    table: AnswerFields,
    answer_set: AnswerSet,
    *,
    training: Callable[[], Sequence[Pair]],
    documents: Callable[[ComparedAnswers, Sequence[FreeAnswer]], list[dict[str, Any]]],
) -> EvalResult:
    """Generate and score all answers; before training, score the baselines too.

    `training` returns the training rows as prompts and answers, `documents` what the result keeps
    of each document.
    """
    begun = time.monotonic()
    measures = make_measures(table, answer_set.references)
    answers = generate_answers(request, answer_set, table, name="answers")
    pairs = zip((one.text for one in answers), answer_set.references, strict=True)
    compared = compare_answers(measures, pairs, answer_set.documents)
    figures = compared.figures(resamples=table.resamples)
    headline, tokens_max = table.measures[0], answer_set.tokens_max(table)
    details: dict[str, Any] = {
        "figures": figures,
        "measures": compared.about(),
        "answers": len(answers),
        "tokens_max": tokens_max,
        "prompts_shortened": sum(
            one is not item
            for one, item in zip(answer_set.with_room(tokens_max), answer_set.items, strict=True)
        ),
        "documents": documents(compared, answers),
    }
    if request.stage == "before" and table.baselines:
        details["baselines"] = score_answer_baselines(
            training(),
            list(zip(answer_set.prompts, answer_set.references, strict=True)),
            measures,
            documents=answer_set.documents,
            resamples=table.resamples,
        )
    return EvalResult(
        stage=request.stage,
        kind=table.kind,
        metric=headline,
        decoding="free",
        value=figures[headline]["value"],
        low=figures[headline]["low"],
        high=figures[headline]["high"],
        n=len(answer_set.rows),
        stop_rate=sum(one.stopped for one in answers) / len(answers),
        parse_failures=compared.noted(UNREADABLE),
        out_of_vocabulary=0,
        seconds=time.monotonic() - begun,
        details=details,
    )
