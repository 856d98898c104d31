"""Scores answers that are one of a row's options, by how likely the model finds each.

Nothing is generated. An option stands behind the row's prompt as a completion would. Its likelihood
is the sum over its tokens (what others call `acc`), without an end token; divided by its bytes it
is the second figure (`acc_norm`). Where one option begins another, the shorter would always win, so
in such a row all of them are scored with an end token.

The third figure is that of the letters. Where right answers are letters, the prompt lists the
options already; else they are listed before it. A conversation's prompt is left as it is.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from trainer.data.codec import Example
from trainer.scoring.answer_figures import interval_of, paired_gain
from trainer.scoring.choice_set import (
    ChoiceSet,
    load_choice_set,
    training_answers,
    with_demonstrated_rows,
)
from trainer.scoring.held_out_loss import measure_rows
from trainer.scoring.measures.measure import Figure, Floats, ratio
from trainer.scoring.result import EvalResult, ScoringRequest

SHARE = Figure(value=ratio(0, 1), share=True)
ACCURACY = "accuracy"

Likelihoods = Mapping[str, Sequence[Sequence[float]]]
"""For each way of scoring, of each row, the log-likelihood of each option."""


def score_choice(request: ScoringRequest) -> EvalResult:
    """Score a model on held-out rows whose answers are one of a few options.

    Raises:
        DataError: the rows cannot be read, or a right answer is not among its options.
        ConfigError: no likelihood of the model is a number.
    """
    begun = time.monotonic()
    choices = load_choice_set(request)
    likelihoods = measure_likelihoods(request, choices)
    by = choices.table.by or ("letter" if choices.by_letter else "sum")
    if by not in likelihoods:
        by = "sum"
    chosen = {name: [_best(row) for row in rows] for name, rows in likelihoods.items()}
    right = {name: _hits(choices, places) for name, places in chosen.items()}
    resamples = choices.table.resamples
    figures = {
        name: _figure(hits, resamples) for name, hits in {ACCURACY: right[by], **right}.items()
    }
    details: dict[str, Any] = {
        "figures": figures,
        "by": by,
        "by_letter": choices.by_letter,
        "ties": {name: sum(map(_is_tied, rows)) for name, rows in likelihoods.items()},
        "with_end": sum(choices.with_end),
        "not_numbers": sum(place is None for place in chosen[by]),
        "documents": _documents(choices, likelihoods, chosen, by),
    }
    if request.stage == "before":
        found = _baselines(request, choices) if choices.table.baselines else {}
        if choices.table.shots:
            found["few_shot"] = _few_shot(request, choices)
        if found:
            details["baselines"] = found
    return EvalResult(
        stage=request.stage,
        kind="choice",
        metric=ACCURACY,
        decoding=by,
        value=figures[ACCURACY]["value"],
        low=figures[ACCURACY]["low"],
        high=figures[ACCURACY]["high"],
        n=len(choices.items),
        stop_rate=None,
        parse_failures=0,
        out_of_vocabulary=0,
        seconds=time.monotonic() - begun,
        details=details,
    )


def measure_likelihoods(
    request: ScoringRequest, choices: ChoiceSet, *, name: str = "options"
) -> dict[str, list[list[float]]]:
    """Return the log-likelihoods by `sum`, `per_byte` and, if there are prompts for it, `letter`.

    What is measured is kept in files of `name` in `request.scratch`. NaN stands for no number.
    """
    words = _measured(request, choices.word_examples(), choices, name=name)
    sizes = [[len(one.strip().encode()) for one in each.words] for each in choices.options]
    found = {
        "sum": words,
        "per_byte": [
            [nats / max(1, size) for nats, size in zip(row, row_sizes, strict=True)]
            for row, row_sizes in zip(words, sizes, strict=True)
        ],
    }
    letters = choices.letter_examples()
    if letters is not None:
        found["letter"] = _measured(request, letters, choices, name=f"{name}-letters")
    return found


def _measured(
    request: ScoringRequest, examples: Sequence[Example], choices: ChoiceSet, *, name: str
) -> list[list[float]]:
    """Return the log-likelihood of each example's answer, by row."""
    losses = measure_rows(
        request.model,
        request.tokenizer,
        examples,
        kept=request.keep(name, examples),
        on_progress=request.on_progress,
        peers=request.peers,
    )
    values = iter(float("nan") if one.nats is None else -one.nats for one in losses)
    return [[next(values) for _ in each.words] for each in choices.options]


def _best(row: Sequence[float]) -> int | None:
    """Return the place of the likeliest option, the first of equals; None if one is no number."""
    return int(np.argmax(row)) if np.isfinite(row).all() else None


def _is_tied(row: Sequence[float]) -> bool:
    return list(row).count(max(row)) > 1


def _hits(choices: ChoiceSet, places: Sequence[int | None]) -> list[bool]:
    return [place == each.right for place, each in zip(places, choices.options, strict=True)]


def _sums(hits: Sequence[float]) -> Floats:
    return np.array([[float(hit), 1.0] for hit in hits])


def _figure(hits: Sequence[bool], resamples: int) -> dict[str, float]:
    return {**asdict(interval_of(SHARE, _sums(hits), resamples=resamples)), "maximum": 1.0}


def _documents(
    choices: ChoiceSet,
    likelihoods: Likelihoods,
    chosen: Mapping[str, Sequence[int | None]],
    by: str,
) -> list[dict[str, Any]]:
    """Return what the result keeps of each row: options, likelihoods, and what was chosen."""
    found = []
    for at, (item, each) in enumerate(zip(choices.items, choices.options, strict=True)):
        hits = {name: float(places[at] == each.right) for name, places in chosen.items()}
        place = chosen[by][at]
        found.append(
            {
                "row": item.row,
                "prompt": item.prompt,
                "gold": each.candidates[each.right].strip(),
                "free": "" if place is None else each.candidates[place].strip(),
                "stopped": True,
                "score": hits[by],
                "figures": hits,
                "options": list(each.words),
                "right": each.right,
                "chosen": {name: places[at] for name, places in chosen.items()},
                "likelihoods": {name: _finite(rows[at]) for name, rows in likelihoods.items()},
            }
        )
    return found


def _finite(row: Sequence[float]) -> list[float | None]:
    """Return numbers that JSON can hold."""
    return [one if np.isfinite(one) else None for one in row]


def _baselines(request: ScoringRequest, choices: ChoiceSet) -> dict[str, Any]:
    """Return the accuracy of guessing, of the commonest training answer, of the longest option."""
    resamples = choices.table.resamples
    answers = training_answers(request)
    common = min(answers, key=lambda one: (-answers[one], one), default="")
    rules = {
        "commonest": [float(each.place_of(common) == each.right) for each in choices.options],
        "longest": [
            float(max(range(len(each.words)), key=lambda at: len(each.words[at])) == each.right)
            for each in choices.options
        ],
    }
    guess = Figure(value=ratio(0, 1))
    shares = _sums([1 / len(each.words) for each in choices.options])
    found: dict[str, Any] = {
        "chance": {
            "figures": {ACCURACY: asdict(interval_of(guess, shares, resamples=resamples))},
        }
    }
    for name, hits in rules.items():
        found[name] = {"figures": {ACCURACY: _figure([bool(one) for one in hits], resamples)}}
    found["commonest"] |= {"rows": answers.total(), "answer": common}
    return found


def _few_shot(request: ScoringRequest, choices: ChoiceSet) -> dict[str, Any]:
    """Score the base with training rows before each prompt: what prompting alone can do."""
    shown, count, fewest = with_demonstrated_rows(request, choices)
    likelihoods = measure_likelihoods(request, shown, name="few-shot")
    by = choices.table.by or ("letter" if choices.by_letter else "sum")
    figures = {
        name: _figure(_hits(shown, [_best(row) for row in rows]), choices.table.resamples)
        for name, rows in likelihoods.items()
    }
    return {
        "rows": count,
        "fewest": fewest,
        "figures": {ACCURACY: figures.get(by, figures["sum"]), **figures},
    }


def gain_of_choice(before: EvalResult, after: EvalResult) -> dict[str, Any] | None:
    """Return how many more rows are right in the second result, paired by row.

    None if the two were not scored on the same rows in the same way.
    """
    rows = [{one["row"]: one for one in result.details["documents"]} for result in (before, after)]
    if before.decoding != after.decoding or rows[0].keys() != rows[1].keys():
        return None
    numbers = sorted(rows[0])
    names = [
        name for name in rows[1][numbers[0]]["figures"] if name in rows[0][numbers[0]]["figures"]
    ]
    figures = {
        name: asdict(
            paired_gain(
                SHARE,
                *(_sums([result[one]["figures"][name] for one in numbers]) for result in rows),
            )
        )
        for name in names
    }
    headline = figures[after.decoding]
    return {"metric": ACCURACY, **headline, "figures": {ACCURACY: headline, **figures}}
