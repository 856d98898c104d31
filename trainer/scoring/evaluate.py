"""Scores a model on held-out rows, by the kind of their answers, and writes the result.

A further kind is a function in a file of its own and a row in `SCORERS`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from trainer.atomic import RealDisk, replace_file
from trainer.config import TrainerConfig
from trainer.scoring.answer_figures import gain_of_answers
from trainer.scoring.chat import score_chat
from trainer.scoring.choice import gain_of_choice, score_choice
from trainer.scoring.labels import gain, score_labels
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
    }
)
GAINS: Mapping[str, Callable[[EvalResult, EvalResult], dict[str, Any] | None]] = MappingProxyType(
    {
        "label": gain,
        "multilabel": gain,
        "text": gain_of_answers,
        "chat": gain_of_answers,
        "choice": gain_of_choice,
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
) -> EvalResult:
    """Score `model` on `config.data.eval` and write `eval-<stage>.json`, whole or not at all.

    The model and all random states are left exactly as they were.

    Raises:
        DataError: the rows cannot be read, or their answers are not of the kind that is scored.
        ConfigError: the model or its tokenizer cannot answer in that way.
        ValueError: the config asks for no evaluation.
    """
    if config.scored is None or config.data.eval is None:
        raise ValueError("the config has no table `eval`, so there is nothing to score")
    request = ScoringRequest(
        run_dir=run_dir,
        scratch=run_dir / f".scoring-{stage}",
        config=config,
        model=model,
        tokenizer=tokenizer,
        stage=stage,
        on_progress=on_progress,
    )
    kind = config.scored.kind
    result = SCORERS[kind](request)
    if stage == "after":
        earlier = load_result(run_dir / "eval-before.json")
        result.details["gain"] = GAINS[kind](earlier, result) if earlier else None
    text = json.dumps(asdict(result), indent=1, ensure_ascii=False) + "\n"
    replace_file(run_dir / f"eval-{stage}.json", text, disk=RealDisk())
    return result
