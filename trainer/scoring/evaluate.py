"""Scores a model on held-out rows, by the kind of their answers, and writes the result.

A further kind is a function in a file of its own and a row in `SCORERS`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from trainer.atomic import RealDisk, replace_file
from trainer.config import TrainerConfig
from trainer.errors import ConfigError, DataError
from trainer.group.alone import ALONE
from trainer.group.peers import Peers
from trainer.group.rounds import on_first
from trainer.rundir.layout import scoring_scratch
from trainer.scoring.answer_figures import gain_of_answers
from trainer.scoring.chat import score_chat
from trainer.scoring.choice import gain_of_choice, score_choice
from trainer.scoring.code import score_code
from trainer.scoring.code_figures import code_gain
from trainer.scoring.forgetting.measure import add_forgetting
from trainer.scoring.labels import gain, score_labels
from trainer.scoring.loss import add_loss, change_of, loss_gain, score_loss
from trainer.scoring.predict import OnProgress
from trainer.scoring.result import EvalResult, ScoringRequest, load_result
from trainer.scoring.text import score_text

SCORERS: Mapping[str, Callable[[ScoringRequest], EvalResult]] = MappingProxyType(
    {
        "label": score_labels,
        "multilabel": score_labels,
        "text": score_text,
        "chat": score_chat,
        "choice": score_choice,
        "code": score_code,
        "loss": score_loss,
    }
)
GAINS: Mapping[str, Callable[[EvalResult, EvalResult], dict[str, Any] | None]] = MappingProxyType(
    {
        "label": gain,
        "multilabel": gain,
        "text": gain_of_answers,
        "chat": gain_of_answers,
        "choice": gain_of_choice,
        "code": code_gain,
        "loss": loss_gain,
    }
)
"""For each kind, what the second of two results has more than the first, paired by row."""


def run(  # noqa: PLR0913 - the seam agreed with the job's stages
    run_dir: Path,
    config: TrainerConfig,
    model: Any,
    tokenizer: Any,
    *,
    stage: Literal["before", "after"],
    on_progress: OnProgress,
    facts: Mapping[str, Any] = MappingProxyType({}),
    peers: Peers = ALONE,
) -> EvalResult:
    """Score `model` on `config.data.eval` and write `eval-<stage>.json`, whole or not at all.

    The model and all random states are left exactly as they were. Rows that are done are kept
    until all are: after a kill, a call with the same `facts` (what decides about the score beside
    the rows: base, adapter, versions) goes on with the others, on any number of ranks. They share
    the batches of rows; rank 0 keeps and writes, and has written when this returns on any.

    Raises:
        PeerLost: another rank is gone.
        DataError: the rows cannot be read, or their answers are not of the kind that is scored.
        ConfigError: the model or its tokenizer cannot answer in that way.
        ValueError: the config asks for no evaluation.
    """
    if config.scored is None or config.data.eval is None:
        raise ValueError("the config has no table `eval`, so there is nothing to score")
    request = ScoringRequest(
        run_dir=run_dir,
        scratch=scoring_scratch(run_dir, stage),
        config=config,
        model=model,
        tokenizer=tokenizer,
        stage=stage,
        on_progress=on_progress,
        facts=facts,
        peers=peers,
    )
    result = _score(request)
    if result.loss is None:
        result = add_loss(request, result)
    result = add_forgetting(request, result)

    def write() -> None:
        nonlocal result
        if stage == "after":
            result = _with_gain(load_result(run_dir / "eval-before.json"), result)
        text = json.dumps(asdict(result), indent=1, ensure_ascii=False) + "\n"
        replace_file(run_dir / f"eval-{stage}.json", text, disk=RealDisk())

    on_first(peers, write)
    return result


def _score(request: ScoringRequest) -> EvalResult:
    """Score by the kind of the answers; where nobody asked for that, by the loss if it must be.

    A run whose config has no table `eval` trained before it was scored by itself, so rows that
    cannot be answered do not end it: `details["not_answered"]` says why there is only the loss.
    """
    config = request.config
    assert config.scored is not None
    try:
        return SCORERS[config.scored.kind](request)
    except (ConfigError, DataError) as error:
        if config.eval is not None or config.scored.kind == "loss":
            raise
        result = score_loss(request)
        return replace(result, details={**result.details, "not_answered": str(error)})


def _with_gain(before: EvalResult | None, after: EvalResult) -> EvalResult:
    """Return a result with what it has more than an earlier one of its kind, paired by row.

    Raises:
        ConfigError: the earlier one, which may come from elsewhere, is not built as ours.
    """
    same = before is not None and before.kind == after.kind
    try:
        after.details["gain"] = GAINS[after.kind](before, after) if before and same else None
        change = change_of(before, after) if before else None
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        problem = f"it is not built as a result of this version ({type(error).__name__})"
        raise ConfigError([f"eval-before.json: {problem}; remove it to go on without"]) from error
    return replace(after, loss={**after.loss, "change": change} if after.loss else None)
