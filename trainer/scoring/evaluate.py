"""Scores a model on held-out rows: every row counts, every figure has its interval, nothing leaks.

Each row is answered twice from one reading of its prompt. Freely: what a user of `generate` would
see, with its stop rate and its unreadable answers. Bound to the listed labels: what the model knows
once its manners are set aside, with probabilities. Both are reported; `decoding` names the one that
the headline figure is taken from.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trainer.atomic import RealDisk, replace_file
from trainer.config import ConfigError, EvalTable, TrainerConfig
from trainer.data.codec import Codec, Example
from trainer.data.examples import load_examples, padding_id
from trainer.data.template import Template
from trainer.rundir.layout import resolve
from trainer.scoring import metrics
from trainer.scoring.answers import (
    Answer,
    all_answers,
    possible_answers,
    read_answer,
    require_apart,
    write_answer,
)
from trainer.scoring.baselines import LabelledTexts, baselines
from trainer.scoring.few_shot import select_demonstrations, with_demonstrations
from trainer.scoring.references import (
    indicator_matrix,
    label_sets_by_frequency,
    read_references,
    read_training_texts,
)
from trainer.untrusted import NotPlain, parse

Beat = Callable[[int, int], None]  # rows done, rows in all
HEADLINE = {"label": "exact_match", "multilabel": "micro_f1"}
CONTEXT_TOKENS = 2048  # of a model that does not say how much it can read
RESULT_BYTES_MAX = 256 << 20
MARGIN_TOKENS = 2  # beyond the longest right answer: enough to see that a model does not stop


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
    beat: Beat,
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
    examples = load_examples(
        config.data,
        resolve(run_dir, config.data.eval),
        tokenizer,
        max_length=config.train.max_length,
        seq2seq=bool(model.config.is_encoder_decoder),
    )
    answers = [(item.row, item.completion) for item in examples.items]
    references = tuple(read_references(answers, config.eval, place=config.data.eval))
    known = read_training_texts(config, run_dir, model, tokenizer)
    eval_set = EvalSet(
        items=examples.items,
        references=references,
        table=config.eval,
        completion=Template.parse(config.data.completion),
        seen=label_sets_by_frequency(known.labels, config.eval.labels),
    )
    result = evaluate(model, tokenizer, eval_set, stage=stage, beat=beat)
    if stage == "before":
        found = score_baselines(known, eval_set) if config.eval.baselines else {}
        if config.eval.shots:
            found["few_shot"] = few_shot_baseline(
                model, tokenizer, eval_set, known, config, beat=beat
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


@dataclass(frozen=True, kw_only=True)
class EvalSet:
    """The questions with their right answers, and how an answer is written."""

    items: tuple[Example, ...]
    references: tuple[frozenset[str], ...]
    table: EvalTable
    completion: Template
    seen: tuple[frozenset[str], ...] = ()

    @property
    def sets(self) -> list[frozenset[str]]:
        """The answers that bound decoding chooses among."""
        return list(all_answers(self.table, self.seen))


def evaluate(
    model: Any, tokenizer: Any, eval_set: EvalSet, *, stage: str, beat: Beat
) -> EvalResult:
    """Answer every item and score the answers against the right ones, in the items' order."""
    begun = time.monotonic()
    table, items = eval_set.table, eval_set.items
    predictions = predict(model, tokenizer, eval_set, beat=beat)
    right = indicator_matrix(eval_set.references, table.labels)
    free = indicator_matrix([answer.labels for answer in predictions.free], table.labels)
    bound = indicator_matrix(predictions.bound, table.labels)
    parts: dict[str, Any] = {
        name: _figures(right, given, table) for name, given in (("free", free), ("bound", bound))
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
            "answers": _listed(eval_set),
            "not_numbers": predictions.non_finite,
            **parts,
            "calibration": _calibration(right, predictions.probabilities, table),
            "costs": _costs(right, bound, predictions.probabilities, table),
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


def score_baselines(known: LabelledTexts, eval_set: EvalSet) -> dict[str, Any]:
    """Score the baselines, learnt from `known`, on the same questions."""
    return baselines(
        known,
        LabelledTexts(
            texts=[item.prompt for item in eval_set.items],
            labels=indicator_matrix(eval_set.references, eval_set.table.labels),
        ),
        single=eval_set.table.kind == "label",
        resamples=eval_set.table.resamples,
    )


def few_shot_baseline(  # noqa: PLR0913 - all that a second asking needs
    model: Any,
    tokenizer: Any,
    eval_set: EvalSet,
    known: LabelledTexts,
    config: TrainerConfig,
    *,
    beat: Beat,
) -> dict[str, Any]:
    """Ask the base again with learnt rows before each question, and return its figures."""
    table, prompt = eval_set.table, Template.parse(config.data.prompt)
    longest = max(item.answer_length for item in eval_set.items) + MARGIN_TOKENS
    room = getattr(model.config, "max_position_embeddings", None) or CONTEXT_TOKENS
    seq2seq = bool(model.config.is_encoder_decoder)
    codec = Codec.from_tokenizer(tokenizer, max_length=room - longest, seq2seq=seq2seq)
    shown = select_demonstrations(list(zip(known.texts, known.written, strict=True)), table.shots)
    primed = with_demonstrations(eval_set.items, shown, codec, prompt)
    predictions = predict(model, tokenizer, replace(eval_set, items=primed.items), beat=beat)
    answers = (
        predictions.bound if table.decoding == "bound" else [one.labels for one in predictions.free]
    )
    right, given = (indicator_matrix(sets, table.labels) for sets in (eval_set.references, answers))
    return {"rows": len(shown), "fewest": primed.fewest, **_figures(right, given, table)}


def _listed(eval_set: EvalSet) -> dict[str, int]:
    """Return how many answers there can be, how many are chosen among, and what that leaves out."""
    sets = set(eval_set.sets)
    return {
        "possible": possible_answers(eval_set.table),
        "listed": len(sets),
        "right_not_listed": sum(labels not in sets for labels in eval_set.references),
    }


def gain(before: EvalResult, after: EvalResult) -> dict[str, Any] | None:
    """Return how many more documents are wholly right, paired, with its interval.

    None if the two did not answer the same questions.
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


@dataclass(kw_only=True)
class Predictions:
    """All answers of a model in the order of the items; `probabilities` is [rows, labels].

    Where those are not numbers the bound answer is the empty set, as one that cannot be read.
    """

    texts: list[str]
    stopped: list[bool]
    free: list[Answer]
    bound: list[frozenset[str]]
    probabilities: metrics.Floats
    non_finite: int = 0


def predict(model: Any, tokenizer: Any, eval_set: EvalSet, *, beat: Beat) -> Predictions:
    """Let the model answer all items, freely and bound; nothing of the model changes.

    Raises:
        ConfigError: the tokenizer cannot tell two answers apart, or no answer is a number.
    """
    from trainer.scoring.constrained import Decoder, Trie, eval_mode, run_in_batches

    seq2seq = bool(model.config.is_encoder_decoder)
    codec = Codec.from_tokenizer(tokenizer, max_length=2**30, seq2seq=seq2seq)
    table, items, completion = eval_set.table, eval_set.items, eval_set.completion
    sets = eval_set.sets
    texts = [_filled(completion, write_answer(labels, table)) for labels in sets]
    listed = codec.encode(texts, completion)
    require_apart(listed, texts)
    trie = Trie(listed, eos_id=codec.eos_id)
    members = np.array([[label in labels for label in table.labels] for labels in sets])
    longest = max(item.answer_length for item in items)
    decoder = Decoder(model, eos_ids=[codec.eos_id], pad_id=padding_id(tokenizer))
    predictions = Predictions(
        texts=[""] * len(items),
        stopped=[False] * len(items),
        free=[Answer(labels=frozenset(), unknown=(), readable=False)] * len(items),
        bound=[frozenset()] * len(items),
        probabilities=np.zeros((len(items), len(table.labels))),
    )

    def answer(batch: list[int]) -> None:
        state = decoder.prefill([items[at].prompt_ids for at in batch])
        weights = decoder.score_choices(state.fork(), trie).numpy()
        written = decoder.generate(state, tokens_max=longest + MARGIN_TOKENS)
        for at, given, weight in zip(batch, written, weights, strict=True):
            predictions.texts[at] = tokenizer.decode(given.tokens, skip_special_tokens=True)
            predictions.stopped[at] = given.stopped
            predictions.free[at] = read_answer(predictions.texts[at], table)
            if np.isfinite(weight).all():
                predictions.bound[at] = sets[int(weight.argmax())]
                predictions.probabilities[at] = weight @ members
            else:
                predictions.non_finite += 1

    with eval_mode(model):
        run_in_batches([item.prompt_ids for item in items], answer, beat)
    if predictions.non_finite == len(items):
        said = (
            "no answer of the model to a held-out row is a number (NaN): it overflows or is damaged"
        )
        raise ConfigError([f"train.precision: {said}; try `fp32`, or a GPU that computes in bf16"])
    return predictions


def _filled(completion: Template, answer: str) -> str:
    """Return the completion with its field filled; one without exactly one field is left bare."""
    fields = completion.fields
    return completion.render({fields[0]: answer}) if len(fields) == 1 else answer


def _figures(right: metrics.Bools, given: metrics.Bools, table: EvalTable) -> dict[str, Any]:
    intervals = metrics.bootstrap(right, given, resamples=table.resamples, seed=0)
    result: dict[str, Any] = {
        "figures": {name: asdict(interval) for name, interval in intervals.items()},
        "per_label": metrics.per_label(right, given, table.labels),
    }
    if table.kind == "label":
        result["confusion"] = metrics.confusion(
            [int(row.argmax()) for row in right],
            [int(row.argmax()) if row.any() else -1 for row in given],
            len(table.labels),
        )
    else:
        result["cooccurrence"] = metrics.cooccurrence(right, given)
        result["label_count_error"] = float(np.abs(right.sum(1) - given.sum(1)).mean())
    return result


def _calibration(
    right: metrics.Bools, probabilities: metrics.Floats, table: EvalTable
) -> dict[str, Any]:
    """Compare every (row, label) probability with the truth, together and label by label."""
    result = metrics.reliability(probabilities.ravel(), right.ravel())
    result["average_precision"] = {
        label: metrics.average_precision(probabilities[:, at], right[:, at])
        for at, label in enumerate(table.labels)
    }
    return result


def _costs(
    right: metrics.Bools, bound: metrics.Bools, probabilities: metrics.Floats, table: EvalTable
) -> dict[str, Any] | None:
    """Return what the mistakes cost as answered, and with the cheapest threshold per label.

    The thresholds for even rows are chosen on odd rows and the other way round, so that the cost
    they promise is one they kept on rows they had not seen. None without a table of costs.
    """
    if not table.costs:
        return None
    costs = {
        label: metrics.Cost(miss=cost.miss, false_alarm=cost.false_alarm)
        for label, cost in table.costs.items()
    }
    even = np.arange(len(right)) % 2 == 0
    decided = np.zeros_like(bound)
    thresholds = {}
    for at, label in enumerate(table.labels):
        cost = costs.get(label, metrics.Cost(miss=1.0, false_alarm=1.0))
        share, truth = probabilities[:, at], right[:, at]
        for chosen_on, used_on in ((even, ~even), (~even, even)):
            if chosen_on.any():
                cut, _ = metrics.cheapest_threshold(share[chosen_on], truth[chosen_on], cost)
                decided[used_on, at] = share[used_on] >= cut
        thresholds[label], _ = metrics.cheapest_threshold(share, truth, cost)
    return {
        "as_answered": metrics.expected_cost(right, bound, table.labels, costs),
        "with_thresholds": metrics.expected_cost(right, decided, table.labels, costs),
        "thresholds": thresholds,
    }
