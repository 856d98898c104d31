"""Scores answers in words, numbers or JSON, each behind the prompt of its row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from trainer.data.codec import Codec, Example
from trainer.data.examples import load_examples, load_texts
from trainer.data.template import Template
from trainer.errors import DataError
from trainer.eval_tables.text import TextEvalTable
from trainer.rundir.layout import resolve
from trainer.scoring.answer_baselines import Pair
from trainer.scoring.answer_figures import ComparedAnswers, compare_answers
from trainer.scoring.baselines import (
    BETWEEN,
    CONTEXT_TOKENS,
    select_demonstrations,
    with_demonstrations,
)
from trainer.scoring.chosen_rows import choose_rows
from trainer.scoring.free_answers import FreeAnswer
from trainer.scoring.free_scoring import AnswerSet, generate_answers, places_of, score_answers
from trainer.scoring.measures.all_measures import make_measures
from trainer.scoring.measures.reference_problems import reference_problems
from trainer.scoring.result import EvalResult, ScoringRequest


def score_text(request: ScoringRequest) -> EvalResult:
    """Score a model on the held-out rows of a run whose answers are texts.

    Before training the baselines are in `details`, too, with `shots` also the base with training
    rows in its prompt.

    Raises:
        DataError: the rows cannot be read, or a right answer is not what a measure compares.
    """
    table = request.config.scored
    assert isinstance(table, TextEvalTable)
    answer_set = load_answer_set(request)

    def documents(compared: ComparedAnswers, answers: Sequence[FreeAnswer]) -> list[dict[str, Any]]:
        return [
            {
                "row": item.row,
                "prompt": item.prompt,
                "gold": item.completion,
                "free": answer.text,
                "stopped": answer.stopped,
                **compared.document_fields(at),
            }
            for at, (item, answer) in enumerate(zip(answer_set.items, answers, strict=True))
        ]

    result = score_answers(
        request, table, answer_set, training=lambda: training_pairs(request), documents=documents
    )
    if request.stage == "before" and table.shots:
        found = result.details.setdefault("baselines", {})
        found["few_shot"] = score_few_shot(request, table, answer_set)
    return result


def load_answer_set(request: ScoringRequest) -> AnswerSet:
    """Load the held-out rows that are scored.

    Raises:
        DataError: the rows cannot be read, or a right answer is not what a measure compares.
    """
    config = request.config
    table = config.scored
    assert isinstance(table, TextEvalTable)
    assert config.data.eval is not None
    loaded = load_examples(
        config.data,
        resolve(request.run_dir, config.data.eval),
        request.tokenizer,
        max_length=config.train.max_length,
        seq2seq=bool(request.model.config.is_encoder_decoder),
    )
    items = choose_rows(loaded.items, table.rows)
    require_comparable(items, [item.completion for item in items], table, config.data.eval)
    return AnswerSet(
        items=items,
        references=tuple(item.completion for item in items),
        prompts=tuple(item.prompt for item in items),
        places_max=places_of(request.model),
    )


def require_comparable(
    items: Sequence[Example], references: Sequence[str], table: Any, place: str
) -> None:
    """Raise `DataError` with every right answer that a measure of the table cannot compare."""
    rows = [(item.row, right) for item, right in zip(items, references, strict=True)]
    problems = reference_problems(rows, table.measures)
    if problems:
        raise DataError([f"{place}:{row}: {problem}" for row, problem in problems])


def training_pairs(request: ScoringRequest) -> list[Pair]:
    """Return the prompts and answers of all training rows, as text."""
    return [
        (prompt, completion)
        for one in request.config.data.train_sets
        for _, prompt, completion in load_texts(
            request.config.data, resolve(request.run_dir, one.path)
        )
    ]


def score_few_shot(
    request: ScoringRequest, table: TextEvalTable, answer_set: AnswerSet
) -> dict[str, Any]:
    """Score the base with training rows before each prompt: what prompting alone can do.

    Behind its answer a base goes on with a further row; that is cut off at the empty line between.
    """
    room = getattr(request.model.config, "max_position_embeddings", None) or CONTEXT_TOKENS
    codec = Codec.from_tokenizer(
        request.tokenizer,
        max_length=max(1, room - answer_set.tokens_max(table)),
        seq2seq=bool(request.model.config.is_encoder_decoder),
    )
    demonstrations = select_demonstrations(training_pairs(request), table.shots)
    template = Template.parse(request.config.data.prompt)
    prompts = with_demonstrations(answer_set.items, demonstrations, codec, template)
    shown = replace(answer_set, items=prompts.items)
    answers = [one.text for one in generate_answers(request, shown, table, name="few-shot")]
    if not any(BETWEEN in answer for _, answer in demonstrations):
        answers = [one.partition(BETWEEN)[0] for one in answers]
    measures = make_measures(table, answer_set.references)
    pairs = zip(answers, answer_set.references, strict=True)
    return {
        "rows": len(demonstrations),
        "fewest": prompts.fewest,
        "figures": compare_answers(measures, pairs).figures(resamples=table.resamples),
    }
