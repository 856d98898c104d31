"""Scores a model on held-out rows: every row counts, and every figure has its interval.

Each row is answered twice from one prefill of its prompt. Freely: what a user of `generate` would
see, with its stop rate and its unreadable answers. Constrained to the listed labels (`bound`): what
the model knows apart from the format of its answer, with probabilities. Both are reported;
`decoding` names the one that the headline figure is taken from.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trainer.atomic import RealDisk, replace_file
from trainer.config import TrainerConfig
from trainer.scoring import metrics
from trainer.scoring.answers import possible_answers
from trainer.scoring.baselines import baselines, few_shot_baseline
from trainer.scoring.eval_set import (
    EvalSet,
    LabelledTexts,
    indicator_matrix,
    label_sets_by_frequency,
    load_eval_set,
    load_training_texts,
)
from trainer.scoring.predict import OnProgress, predict
from trainer.untrusted import NotPlain, parse

HEADLINE = {"label": "exact_match", "multilabel": "micro_f1"}
RESULT_BYTES_MAX = 256 << 20


@dataclass(frozen=True, kw_only=True)
class EvalResult:
    """What `eval-before.json` and `eval-after.json` hold; all of it is plain JSON.

    `value` with its 95 % interval `low`..`high` is the headline; `stop_rate` and `parse_failures`
    (a count of rows) are of free answers, `out_of_vocabulary` counts words that are no labels.
    """

    version: int = 1
    stage: str
    kind: str
    metric: str
    decoding: str
    value: float
    low: float
    high: float
    n: int
    stop_rate: float
    parse_failures: int
    out_of_vocabulary: int
    seconds: float
    details: dict[str, Any]


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
        DataError: the rows cannot be read, or carry labels that `eval.labels` does not list.
        ConfigError: the tokenizer cannot tell two answers apart, or no answer is a number.
        ValueError: the config asks for no evaluation.
    """
    if config.eval is None or config.data.eval is None:
        raise ValueError("the config has no table `eval`, so there is nothing to score")
    eval_set = load_eval_set(config, run_dir, model, tokenizer)
    training = load_training_texts(config, run_dir, model, tokenizer)
    learnt_sets = label_sets_by_frequency(training.labels, config.eval.labels)
    eval_set = replace(eval_set, learnt_sets=learnt_sets)
    result = evaluate(model, tokenizer, eval_set, stage=stage, on_progress=on_progress)
    if stage == "before":
        found = score_baselines(training, eval_set) if config.eval.baselines else {}
        if config.eval.shots:
            found["few_shot"] = few_shot_baseline(
                model, tokenizer, eval_set, training, config, on_progress=on_progress
            )
        if found:
            result.details["baselines"] = found
    else:
        earlier = load_result(run_dir / "eval-before.json")
        result.details["gain"] = gain(earlier, result) if earlier else None
    text = json.dumps(asdict(result), indent=1, ensure_ascii=False) + "\n"
    replace_file(run_dir / f"eval-{stage}.json", text, disk=RealDisk())
    return result


def load_result(path: Path) -> EvalResult | None:
    """Return a result written earlier, or None if there is none that can be read."""
    try:
        return EvalResult(**parse(path.read_bytes(), bytes_max=RESULT_BYTES_MAX))
    except (FileNotFoundError, NotPlain, TypeError):
        return None


def evaluate(
    model: Any, tokenizer: Any, eval_set: EvalSet, *, stage: str, on_progress: OnProgress
) -> EvalResult:
    """Answer every example and score the answers, in the order of the examples."""
    begun = time.monotonic()
    table, items = eval_set.table, eval_set.items
    predictions = predict(model, tokenizer, eval_set, on_progress=on_progress)
    right = indicator_matrix(eval_set.references, table.labels)
    free = indicator_matrix([answer.labels for answer in predictions.free], table.labels)
    bound = indicator_matrix(predictions.bound, table.labels)
    parts: dict[str, Any] = {
        name: metrics.all_figures(right, given, table)
        for name, given in (("free", free), ("bound", bound))
    }
    headline = parts["bound" if table.decoding == "bound" else "free"]["figures"]
    chosen = headline[HEADLINE[table.kind]]
    return EvalResult(
        stage=stage,
        kind=table.kind,
        metric="accuracy" if table.kind == "label" else "micro_f1",
        decoding=table.decoding,
        value=chosen["value"],
        low=chosen["low"],
        high=chosen["high"],
        n=len(items),
        stop_rate=sum(predictions.stopped) / len(items),
        parse_failures=sum(not answer.readable for answer in predictions.free),
        out_of_vocabulary=sum(len(answer.unknown) for answer in predictions.free),
        seconds=time.monotonic() - begun,
        details={
            "labels": list(table.labels),
            "answers": _count_candidates(eval_set),
            "not_numbers": predictions.non_finite,
            **parts,
            "calibration": metrics.calibration(right, predictions.probabilities, table),
            "costs": metrics.costs_of_mistakes(right, bound, predictions.probabilities, table),
            "absent_labels": [
                label for at, label in enumerate(table.labels) if not right[:, at].any()
            ],
            "documents": [
                {
                    "row": item.row,
                    "gold": sorted(labels, key=table.labels.index),
                    "bound": sorted(predictions.bound[at], key=table.labels.index),
                    "free": predictions.texts[at],
                    "stopped": predictions.stopped[at],
                }
                for at, (item, labels) in enumerate(zip(items, eval_set.references, strict=True))
            ],
        },
    )


def score_baselines(training: LabelledTexts, eval_set: EvalSet) -> dict[str, Any]:
    """Score the baselines, learnt from `training`, on the same rows."""
    return baselines(
        training,
        LabelledTexts(
            texts=[item.prompt for item in eval_set.items],
            labels=indicator_matrix(eval_set.references, eval_set.table.labels),
        ),
        single=eval_set.table.kind == "label",
        resamples=eval_set.table.resamples,
    )


def _count_candidates(eval_set: EvalSet) -> dict[str, int]:
    """Return how many answers there can be, how many are candidates, and what that leaves out."""
    candidates = set(eval_set.candidates)
    return {
        "possible": possible_answers(eval_set.table),
        "listed": len(candidates),
        "right_not_listed": sum(labels not in candidates for labels in eval_set.references),
    }


def gain(before: EvalResult, after: EvalResult) -> dict[str, Any] | None:
    """Return how many more documents are wholly right, paired, with its interval.

    None if the two were not scored on the same rows.
    """
    right = []
    for result in (before, after):
        documents = {one["row"]: one for one in result.details["documents"]}
        right.append({row: float(one["gold"] == one["bound"]) for row, one in documents.items()})
    if right[0].keys() != right[1].keys():
        return None
    rows = sorted(right[0])
    change = metrics.paired_difference(
        np.array([right[0][row] for row in rows]),
        np.array([right[1][row] for row in rows]),
        resamples=1000,
        seed=0,
    )
    return {"metric": "exact_match", **asdict(change)}
