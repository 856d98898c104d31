"""Scores the loss of the right answers: alone (`kind: loss`), and beside the score of any kind."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from trainer.data.codec import Example
from trainer.data.examples import load_examples, load_texts
from trainer.errors import ConfigError
from trainer.eval_tables.loss import LOSS_ROWS_MAX
from trainer.rundir.layout import resolve
from trainer.scoring.baselines import few_shot_prompts
from trainer.scoring.chosen_rows import choose_rows
from trainer.scoring.held_out_loss import measure_rows
from trainer.scoring.loss_figures import loss_changes, loss_figures
from trainer.scoring.result import EvalResult, ScoringRequest
from trainer.scoring.score_words import HEADLINE


def score_loss(request: ScoringRequest) -> EvalResult:
    """Score nothing but the loss of the right answers; `value` is nats per target token.

    Raises:
        DataError: the rows cannot be read.
        ConfigError: no loss of the model is a number.
    """
    begun = time.monotonic()
    assert request.config.scored is not None
    items = choose_rows(_held_out(request), request.config.scored.rows)
    loss = measure_loss(request, items)
    headline = loss["figures"][HEADLINE]
    if headline is None:
        problem = "no loss on a held-out row is a number (NaN): the model overflows or is damaged"
        hint = "try `fp32`, or a GPU that computes in bf16"
        raise ConfigError([f"train.precision: {problem}; {hint}"])
    baselines = _few_shot(request, items)
    for one in baselines.get("baselines", {}).values():
        one["figures"] = one["loss"]  # those of the headline, as with every kind
    return EvalResult(
        stage=request.stage,
        kind="loss",
        metric=HEADLINE,
        decoding="none",
        value=headline["value"],
        low=headline["low"],
        high=headline["high"],
        n=loss["documents"],
        better="lower",
        stop_rate=None,
        parse_failures=0,
        out_of_vocabulary=0,
        seconds=time.monotonic() - begun,
        loss=loss,
        details={"documents": _documents(items, loss), **baselines},
    )


def add_loss(request: ScoringRequest, result: EvalResult) -> EvalResult:
    """Return a result with the loss of the right answers on the rows that it scored.

    At most `LOSS_ROWS_MAX` of them, chosen by their words: reading them once more takes as long as
    scoring labels does, and the interval hardly narrows.
    """
    begun = time.monotonic()
    rows = {one["row"] for one in result.details["documents"]}
    items = choose_rows([item for item in _held_out(request) if item.row in rows], LOSS_ROWS_MAX)
    loss = measure_loss(request, items)
    few_shot = _few_shot(request, items).get("baselines", {}).get("few_shot", {})
    if few_shot:
        baselines = dict(result.details.get("baselines") or {})
        baselines["few_shot"] = {**few_shot, **baselines.get("few_shot", {})}
        result = replace(result, details={**result.details, "baselines": baselines})
    return replace(result, loss=loss, seconds=result.seconds + time.monotonic() - begun)


def measure_loss(
    request: ScoringRequest, items: Sequence[Example], *, name: str = "loss"
) -> dict[str, Any]:
    """Return the figures of the loss on some examples; what is done is kept under a name."""
    assert request.config.scored is not None
    rows = measure_rows(
        request.model,
        request.tokenizer,
        items,
        kept=request.keep(name, items),
        on_progress=request.on_progress,
        peers=request.peers,
    )
    return loss_figures(rows, resamples=request.config.scored.resamples)


def loss_gain(before: EvalResult, after: EvalResult) -> dict[str, Any] | None:
    """Return how much more nats per target token there are, paired, with the interval.

    None if the two were not measured on the same targets.
    """
    change = (change_of(before, after) or {}).get(HEADLINE)
    return None if change is None else {"metric": HEADLINE, **change}


def change_of(before: EvalResult, after: EvalResult) -> dict[str, Any] | None:
    """Return by how much each figure of the loss differs, None without two of the same targets."""
    if before.loss is None or after.loss is None:
        return None
    return loss_changes(before.loss, after.loss, resamples=1000)


def _held_out(request: ScoringRequest) -> tuple[Example, ...]:
    """Return the examples of all held-out rows, as training would learn them."""
    config = request.config
    assert config.data.eval is not None
    return load_examples(
        config.data,
        resolve(request.run_dir, config.data.eval),
        request.tokenizer,
        max_length=config.train.max_length,
        seq2seq=bool(request.model.config.is_encoder_decoder),
    ).items


def _few_shot(request: ScoringRequest, items: Sequence[Example]) -> dict[str, Any]:
    """Return `baselines` with the loss of the base behind learnt rows, empty if not asked for."""
    table, data = request.config.scored, request.config.data
    if request.stage != "before" or table is None or not table.shots:
        return {}
    rows = [
        (prompt, completion)
        for one in data.train_sets
        for _, prompt, completion in load_texts(data, resolve(request.run_dir, one.path))
    ]
    prompts = few_shot_prompts(items, rows, request.config, request.model, request.tokenizer)
    loss = measure_loss(request, prompts.items, name="few-shot-loss")
    few_shot = {"rows": prompts.shots, "fewest": prompts.fewest, "loss": loss["figures"]}
    return {"baselines": {"few_shot": few_shot}}


def _documents(items: Sequence[Example], loss: dict[str, Any]) -> list[dict[str, Any]]:
    """Return each row with its right answer and the share of tokens that the model has right."""
    last = {item.row: item for item in items}
    columns = loss["rows"]
    return [
        {
            "row": row,
            "prompt": last[row].prompt,
            "gold": last[row].completion,
            "free": None,
            "stopped": None,
            "score": right / tokens,
        }
        for row, right, tokens in zip(
            columns["row"], columns["right"], columns["tokens"], strict=True
        )
    ]
