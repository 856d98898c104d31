"""Scores answers that are labels: every row counts, and every figure has its interval.

Each row is answered twice from one prefill of its prompt. Freely: what a user of `generate` would
see, with its stop rate and its unreadable answers. Constrained to the listed labels (`bound`): what
the model knows apart from the format of its answer, with probabilities. Both are reported;
`decoding` names the one that the headline figure is taken from.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from trainer.group.alone import ALONE
from trainer.group.peers import Peers
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
from trainer.scoring.kept_rows import KeptRows
from trainer.scoring.predict import OnProgress, Predictions, predict
from trainer.scoring.result import EvalResult, ScoringRequest
from trainer.scoring.shares import paired_change, wilson

HEADLINE = {"label": "exact_match", "multilabel": "micro_f1"}


def score_labels(request: ScoringRequest) -> EvalResult:
    """Score a model on the held-out rows of a run whose answers are labels.

    Before training the baselines are in `details`, too.

    Raises:
        DataError: the rows cannot be read, or carry labels that `eval.labels` does not list.
        ConfigError: the tokenizer cannot tell two answers apart, or no answer is a number.
    """
    config, model, tokenizer = request.config, request.model, request.tokenizer
    assert config.label_table is not None
    eval_set = load_eval_set(config, request.run_dir, model, tokenizer)
    training = load_training_texts(config, request.run_dir, model, tokenizer)
    learnt_sets = label_sets_by_frequency(training.labels, config.label_table.labels)
    eval_set = replace(eval_set, learnt_sets=learnt_sets)
    result = evaluate(
        model,
        tokenizer,
        eval_set,
        stage=request.stage,
        kept=request.keep("answers", eval_set.items),
        on_progress=request.on_progress,
        peers=request.peers,
    )
    if request.stage == "before":
        found = score_baselines(training, eval_set) if config.label_table.baselines else {}
        if config.label_table.shots:
            found["few_shot"] = few_shot_baseline(request, eval_set, training)
        if found:
            result.details["baselines"] = found
    return result


def evaluate(  # noqa: PLR0913 - a model with all that a scoring is made of
    model: Any,
    tokenizer: Any,
    eval_set: EvalSet,
    *,
    stage: str,
    kept: KeptRows | None = None,
    on_progress: OnProgress,
    peers: Peers = ALONE,
) -> EvalResult:
    """Answer every example and score the answers, in the order of the examples."""
    begun = time.monotonic()
    table, items = eval_set.table, eval_set.items
    predictions = predict(
        model, tokenizer, eval_set, kept=kept, on_progress=on_progress, peers=peers
    )
    right = indicator_matrix(eval_set.references, table.labels)
    free = indicator_matrix([answer.labels for answer in predictions.free], table.labels)
    bound = indicator_matrix(predictions.bound, table.labels)
    parts: dict[str, Any] = {
        name: metrics.all_figures(right, given, table)
        for name, given in (("free", free), ("bound", bound))
    }
    headline = parts["bound" if table.decoding == "bound" else "free"]["figures"]
    if table.decoding == "bound":
        chosen_answers = predictions.bound
    else:
        chosen_answers = [answer.labels for answer in predictions.free]
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
            "stop_rate": asdict(wilson(sum(predictions.stopped), len(items))),
            "answers": _count_candidates(eval_set),
            "not_numbers": predictions.non_finite,
            **parts,
            "calibration": metrics.calibration(right, predictions.probabilities, table),
            "costs": metrics.costs_of_mistakes(right, bound, predictions.probabilities, table),
            "absent_labels": [
                label for at, label in enumerate(table.labels) if not right[:, at].any()
            ],
            "documents": _documents(eval_set, predictions, chosen_answers),
        },
    )


def _documents(
    eval_set: EvalSet, predictions: Predictions, chosen: Sequence[frozenset[str]]
) -> list[dict[str, Any]]:
    """Return what the result keeps of each example; `chosen` are the answers that are scored."""
    table = eval_set.table
    return [
        {
            "row": item.row,
            "prompt": item.prompt,
            "gold": sorted(labels, key=table.labels.index),
            "bound": sorted(predictions.bound[at], key=table.labels.index),
            "free": predictions.texts[at],
            **(
                {"free_labels": sorted(chosen[at], key=table.labels.index)}
                if table.decoding == "free"
                else {}
            ),
            "stopped": predictions.stopped[at],
            "score": float(chosen[at] == labels),
        }
        for at, (item, labels) in enumerate(zip(eval_set.items, eval_set.references, strict=True))
    ]


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

    `decoding` says which answers it is of; results of an earlier qft are of bound ones. Of sets of
    labels `headline` has the change of micro F1 as well. None if the two were not scored on the
    same rows.
    """
    was, now = ({one["row"]: one for one in x.details["documents"]} for x in (before, after))
    if was.keys() != now.keys():
        return None
    rows = sorted(was)
    labels = after.details["labels"]
    references = indicator_matrix([frozenset(now[row]["gold"]) for row in rows], labels)
    given = [
        indicator_matrix([frozenset(chosen_labels(found[row])) for row in rows], labels)
        for found in (was, now)
    ]

    def changed(figure: str) -> dict[str, Any]:
        change = metrics.paired_figure(figure, references, *given, resamples=1000)
        return {"metric": figure, **asdict(change)}

    hits = [(references == one).all(axis=1).tolist() for one in given]
    change = asdict(paired_change(*hits))
    found = {"metric": HEADLINE["label"], "decoding": after.decoding, **change}
    if after.kind == "multilabel":
        found["headline"] = changed(HEADLINE["multilabel"])
    return found


def chosen_labels(document: Mapping[str, Any]) -> list[str]:
    """Return the labels of a document that its score is of: of its free or its bound answer."""
    return list(document.get("free_labels", document["bound"]))
