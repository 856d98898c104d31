"""Measures what a model may forget: general questions, drift from its base, the user's own text."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from trainer.base_limits import model_rows
from trainer.errors import PeerLost, Preempted
from trainer.eval_tables.common import EvalFields
from trainer.group.rounds import on_first
from trainer.model import place_limit
from trainer.rundir.layout import resolve
from trainer.scoring.forgetting.drift import (
    TOKENS_MAX,
    continuation_examples,
    continue_openings,
    drift_figure,
    drift_record,
    opening_examples,
    recorded_examples,
)
from trainer.scoring.forgetting.general import general_examples
from trainer.scoring.forgetting.knowledge import (
    ask,
    choice_examples,
    knowledge_change,
    knowledge_figures,
)
from trainer.scoring.forgetting.shipped import OPENINGS, openings, questions, sha256_of
from trainer.scoring.held_out_loss import measure_rows
from trainer.scoring.loss_figures import loss_changes, loss_figures
from trainer.scoring.result import EvalResult, ScoringRequest, load_result
from trainer.untrusted import table

TOKENS_LEAST = 16
"""Of a continuation: a base with places for fewer is left out."""
Part = dict[str, Any]


def add_forgetting(request: ScoringRequest, result: EvalResult) -> EvalResult:
    """Return a result with `details["forgetting"]`, if that is measured here.

    `knowledge` are the general questions, `drift` the distance from the base (before training: what
    it is measured on), `general` the loss of the user's own rows; after training, `change` has the
    paired differences. A part that this base cannot give says why in `missing`.

    Raises:
        DataError: the rows of `eval.general` cannot be read.
    """
    settings = request.config.scored
    assert settings is not None
    on_gpu = next(request.model.parameters()).device.type == "cuda"
    measured = settings.measures_forgetting(on_gpu=on_gpu)
    if not measured and settings.general is None:
        return result
    begun = time.monotonic()
    before: Part = {}
    if request.stage == "after":
        before = on_first(request.peers, lambda: _measured_before(request))
    found: Part = {"version": 1}
    if settings.general is not None:
        found["general"] = _general(request, settings)
    if measured:
        found["knowledge"] = _or_reason(lambda: _knowledge(request))
        found["drift"] = _or_reason(lambda: _drift(request, table(before.get("drift"))))
    if request.stage == "after":
        found["change"] = _or_reason(lambda: _changes(before, found, resamples=settings.resamples))
    details = {**result.details, "forgetting": found}
    return replace(result, details=details, seconds=result.seconds + time.monotonic() - begun)


def _measured_before(request: ScoringRequest) -> Part:
    """Return what was measured before training, empty if nothing was."""
    earlier = load_result(request.run_dir / "eval-before.json")
    return table(earlier.details.get("forgetting")) if earlier else {}


def _or_reason(measure: Callable[[], Part]) -> Part:
    """Return what is measured, or why it cannot be: a run that trains is not ended by this."""
    try:
        return measure()
    except (Preempted, PeerLost, OSError):  # or no room: the scoring is gone on with later
        raise
    except Exception as error:  # noqa: BLE001 - whatever an architecture lacks is said in the result
        words = f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else error
        return {"missing": str(words)[:500]}


def _knowledge(request: ScoringRequest) -> Part:
    items = questions()
    seq2seq = bool(request.model.config.is_encoder_decoder)
    examples = choice_examples(request.tokenizer, items, seq2seq=seq2seq)
    _room(request, max(len(one.input_ids) for four in examples for one in four))
    probabilities = ask(
        request.model,
        request.tokenizer,
        examples,
        kept=request.keep("knowledge", [one for four in examples for one in four]),
        on_progress=request.on_progress,
        peers=request.peers,
    )
    return knowledge_figures(items, probabilities)


def _drift(request: ScoringRequest, record: Part) -> Part:
    seq2seq = bool(request.model.config.is_encoder_decoder)
    if request.stage == "before":
        prompts = opening_examples(request.tokenizer, openings(), seq2seq=seq2seq)
        written = continue_openings(
            request.model,
            request.tokenizer,
            prompts,
            tokens_max=_room(request, max(len(one.prompt_ids) for one in prompts)),
            kept=request.keep("openings", prompts),
            on_progress=request.on_progress,
            peers=request.peers,
        )
        heads = [one.prompt_ids for one in prompts]
        examples = continuation_examples(heads, written, seq2seq=seq2seq)
    elif record.get("set") != sha256_of(OPENINGS):
        raise ValueError(str(record.get("missing") or "it was not measured before training"))
    else:
        examples = recorded_examples(record, seq2seq=seq2seq, id_count=model_rows(request.model))
    losses = measure_rows(
        request.model,
        request.tokenizer,
        examples,
        kept=request.keep("continuations", examples),
        on_progress=request.on_progress,
        peers=request.peers,
    )
    if request.stage == "before":
        return drift_record(examples, losses)
    assert request.config.scored is not None
    return drift_figure(record, losses, resamples=request.config.scored.resamples)


def _general(request: ScoringRequest, settings: EvalFields) -> Part:
    assert settings.general is not None
    length = request.config.train.max_length
    items = general_examples(
        request.config.data,
        resolve(request.run_dir, settings.general),
        request.tokenizer,
        max_length=min(length, place_limit(request.model) or length),
        seq2seq=bool(request.model.config.is_encoder_decoder),
    )
    rows = measure_rows(
        request.model,
        request.tokenizer,
        items,
        kept=request.keep("general", items),
        on_progress=request.on_progress,
        peers=request.peers,
    )
    return loss_figures(rows, resamples=settings.resamples)


def _room(request: ScoringRequest, longest: int) -> int:
    """Return how many tokens may follow the longest prompt.

    Raises:
        ValueError: the base has places for too few.
    """
    places = place_limit(request.model)
    room = TOKENS_MAX if places is None else min(TOKENS_MAX, places - longest)
    if room < TOKENS_LEAST:
        raise ValueError(f"the base has places for {places} tokens only")
    return room


def _changes(before: Mapping[str, Any], after: Mapping[str, Any], *, resamples: int) -> Part:
    """Return the paired difference of each part that was measured twice, else None."""
    found: Part = {"knowledge": None, "general": None}
    was, now = table(before.get("knowledge")), table(after.get("knowledge"))
    if "answers" in was and "answers" in now:
        found["knowledge"] = knowledge_change(was, now, resamples=resamples)
    was, now = table(before.get("general")), table(after.get("general"))
    if was and now:
        found["general"] = loss_changes(was, now, resamples=resamples)
    return found
