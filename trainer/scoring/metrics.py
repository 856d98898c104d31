"""Computes the figures of an evaluation, scikit-learn's by definition, each with its interval.

A document's answer is a set of labels, written as a row of booleans; a single label is a set of
one, and an answer that could not be read is the empty set. Nothing is ever left out of a mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.eval_tables.labels import CostTable, LabelEvalTable
from trainer.scoring.interval import Interval
from trainer.scoring.resampling import Floats, resampled_interval, resampled_weights
from trainer.scoring.shares import wilson

Bools = npt.NDArray[np.bool_]

AVERAGES = (
    "exact_match", "micro_precision", "micro_recall", "micro_f1", "macro_precision",
    "macro_recall", "macro_f1", "weighted_f1", "samples_f1", "jaccard", "hamming_loss",
)  # fmt: skip


def all_figures(references: Bools, predictions: Bools, table: LabelEvalTable) -> dict[str, Any]:
    """Return every figure with its interval, the figures per label, and who was taken for whom."""
    intervals = bootstrap(references, predictions, resamples=table.resamples, seed=0)
    result: dict[str, Any] = {
        "figures": {name: asdict(interval) for name, interval in intervals.items()},
        "per_label": per_label(references, predictions, table.labels),
    }
    if table.kind == "label":
        result["confusion"] = confusion(
            [int(row.argmax()) for row in references],
            [int(row.argmax()) if row.any() else -1 for row in predictions],
            len(table.labels),
        )
    else:
        result["cooccurrence"] = cooccurrence(references, predictions)
        result["label_count_error"] = float(np.abs(references.sum(1) - predictions.sum(1)).mean())
    return result


def scores(references: Bools, predictions: Bools) -> dict[str, float]:
    """Return every figure of AVERAGES; predictions and references are of shape [documents, labels].

    Definitions are scikit-learn's with `zero_division=0`: `exact_match` is `accuracy_score` of
    sets, `jaccard` and `samples_f1` are means over documents (an empty prediction for an empty
    reference counts 0, as there), `macro_*` are means over all labels, also those without a
    document.
    """
    weights = np.ones((1, len(references)))
    return {
        name: float(values[0])
        for name, values in _weighted(references, predictions, weights).items()
    }


def per_label(
    references: Bools, predictions: Bools, labels: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Return precision, recall, f1, support and the four counts of every label."""
    hit, false, missed = _counts(references, predictions)
    precision, recall, f1 = _rates(hit.sum(0), false.sum(0), missed.sum(0))
    return {
        label: {
            "precision": float(precision[at]),
            "recall": float(recall[at]),
            "f1": float(f1[at]),
            "support": int(references[:, at].sum()),
            "answered": int(predictions[:, at].sum()),
            "true_positives": int(hit[:, at].sum()),
            "false_positives": int(false[:, at].sum()),
            "false_negatives": int(missed[:, at].sum()),
        }
        for at, label in enumerate(labels)
    }


def bootstrap(
    references: Bools, predictions: Bools, *, resamples: int, seed: int, share: float = 0.95
) -> dict[str, Interval]:
    """Return every figure of AVERAGES with its percentile interval over resampled documents.

    Documents are drawn with replacement, whole, `resamples` times (Efron's percentile method); the
    same seed gives the same intervals on every machine. `exact_match` is a share of documents, so
    its interval is Wilson's: where all are wrong, resampling draws none that is right.
    """
    point = scores(references, predictions)
    parts = [
        _weighted(references, predictions, weights)
        for weights in resampled_weights(len(references), resamples=resamples, seed=seed)
    ]
    spread = {name: np.concatenate([part[name] for part in parts]) for name in point}
    outer = [(1 - share) / 2, (1 + share) / 2]
    intervals = {}
    for name, value in point.items():
        low, high = np.quantile(spread[name], outer)
        intervals[name] = Interval(value=value, low=float(low), high=float(high))
    right = int((references == predictions).all(1).sum())
    intervals["exact_match"] = wilson(right, len(references), confidence=share)
    return intervals


def paired_difference(
    before: Floats, after: Floats, *, resamples: int, seed: int, share: float = 0.95
) -> Interval:
    """Return mean(after - before) over the same documents, with its percentile interval."""
    difference = np.asarray(after, dtype=float) - np.asarray(before, dtype=float)
    count = len(difference)
    drawn = resampled_weights(count, resamples=resamples, seed=seed)
    means = np.concatenate([weights @ difference / count for weights in drawn])
    low, high = np.quantile(means, [(1 - share) / 2, (1 + share) / 2])
    return Interval(value=float(difference.mean()), low=float(low), high=float(high))


def paired_figure(
    name: str, references: Bools, before: Bools, after: Bools, *, resamples: int
) -> Interval:
    """Return how much more a figure of AVERAGES is for `after`, paired, with its interval."""

    def difference(weights: Floats) -> Floats:
        was, now = (_weighted(references, given, weights)[name] for given in (before, after))
        return now - was

    return resampled_interval(difference, len(references), resamples=resamples)


def confusion(
    references: Sequence[int], predictions: Sequence[int], labels: int
) -> list[list[int]]:
    """Return counts [reference][prediction]; the last column counts unreadable answers (-1)."""
    from sklearn.metrics import confusion_matrix

    readable = [labels if one < 0 else one for one in predictions]
    table = confusion_matrix(references, readable, labels=range(labels + 1))
    return [[int(cell) for cell in row] for row in table[:labels]]


def cooccurrence(references: Bools, predictions: Bools) -> list[list[int]]:
    """Return counts [reference][prediction] of documents that carry the one and got the other."""
    return [
        [int(cell) for cell in row] for row in references.astype(int).T @ predictions.astype(int)
    ]


def calibration(references: Bools, probabilities: Floats, table: LabelEvalTable) -> dict[str, Any]:
    """Compare every (row, label) probability with the truth, together and label by label."""
    result = reliability(probabilities.ravel(), references.ravel())
    result["average_precision"] = {
        label: average_precision(probabilities[:, at], references[:, at])
        for at, label in enumerate(table.labels)
    }
    return result


def reliability(probabilities: Floats, right: Bools, *, bins: int = 10) -> dict[str, Any]:
    """Return the reliability table, the expected calibration error and the Brier score.

    `probabilities` is the confidence of each statement and `right` whether it was true, both flat.
    ECE is the mean gap between confidence and truth over equal-width bins, weighted by their
    documents (Naeini et al. 2015); Brier is the mean squared gap.
    """
    place = np.minimum((probabilities * bins).astype(int), bins - 1)
    table = []
    gap = 0.0
    for at in range(bins):
        inside = place == at
        count = int(inside.sum())
        if count:
            confidence, truth = float(probabilities[inside].mean()), float(right[inside].mean())
            gap += count * abs(confidence - truth)
            table.append({"from": at / bins, "to": (at + 1) / bins, "count": count,
                          "confidence": confidence, "truth": truth})  # fmt: skip
    total = max(len(probabilities), 1)
    brier = float(((probabilities - right) ** 2).mean()) if len(probabilities) else 0.0
    return {"table": table, "ece": gap / total, "brier": brier}


def average_precision(probabilities: Floats, right: Bools) -> float:
    """Return scikit-learn's area under the precision-recall curve; 0 without a positive."""
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(right, probabilities)) if right.any() else 0.0


def costs_of_mistakes(
    references: Bools, predictions: Bools, probabilities: Floats, table: LabelEvalTable
) -> dict[str, Any] | None:
    """Return the cost of the mistakes as answered, and with the cheapest threshold per label.

    The thresholds for even rows are chosen on odd rows and the other way round, so that the cost
    they promise is one they kept on rows they had not seen. None without a table of costs.
    """
    if not table.costs:
        return None
    even = np.arange(len(references)) % 2 == 0
    decided = np.zeros_like(predictions)
    thresholds = {}
    for at, label in enumerate(table.labels):
        cost = table.costs.get(label, CostTable())
        share, truth = probabilities[:, at], references[:, at]
        for chosen_on, used_on in ((even, ~even), (~even, even)):
            if chosen_on.any():
                cut, _ = cheapest_threshold(share[chosen_on], truth[chosen_on], cost)
                decided[used_on, at] = share[used_on] >= cut
        thresholds[label], _ = cheapest_threshold(share, truth, cost)
    return {
        "as_answered": expected_cost(references, predictions, table.labels, table.costs),
        "with_thresholds": expected_cost(references, decided, table.labels, table.costs),
        "thresholds": thresholds,
    }


def expected_cost(
    references: Bools, predictions: Bools, labels: Sequence[str], costs: Mapping[str, CostTable]
) -> float:
    """Return the mean cost of a document's mistakes; labels without a cost cost 1 either way."""
    total = 0.0
    for at, label in enumerate(labels):
        cost = costs.get(label, CostTable())
        total += cost.miss * int((references[:, at] & ~predictions[:, at]).sum())
        total += cost.false_alarm * int((~references[:, at] & predictions[:, at]).sum())
    return total / max(len(references), 1)


def cheapest_threshold(probabilities: Floats, right: Bools, cost: CostTable) -> tuple[float, float]:
    """Return (threshold, mean cost) such that answering from the threshold up costs least.

    Tried are all cuts between neighbouring probabilities, never to answer and always to answer.
    Choose it on validation rows, and use it on others.
    """
    ranking = np.argsort(-probabilities, kind="stable")
    ranked, truth = probabilities[ranking], right[ranking].astype(float)
    hits = np.append(0.0, np.cumsum(truth))
    alarms = np.append(0.0, np.cumsum(1 - truth))
    totals = cost.miss * (truth.sum() - hits) + cost.false_alarm * alarms
    # A cut between equal probabilities cannot be made.
    allowed = np.append(True, np.append(np.diff(ranked) != 0, True))
    best = int(np.argmin(np.where(allowed, totals, np.inf)))
    if best == 0:
        threshold = float(np.nextafter(ranked[0], 2.0))
    elif best == len(ranked):
        threshold = 0.0
    else:
        above, below = ranked[best - 1], ranked[best]
        middle = (above + below) / 2
        threshold = float(middle if middle > below else above)  # nothing is between neighbours
    return threshold, float(totals[best] / max(len(right), 1))


def _weighted(references: Bools, predictions: Bools, weights: Floats) -> dict[str, Floats]:
    """Compute every average for each row of document weights [resamples, documents]."""
    hit, false, missed = _counts(references, predictions)
    hits, falses, misses = weights @ hit, weights @ false, weights @ missed
    precision, recall, f1 = _rates(hits, falses, misses)
    micro = _rates(hits.sum(1), falses.sum(1), misses.sum(1))
    support = hits + misses
    both, either = hit.sum(1), hit.sum(1) + false.sum(1) + missed.sum(1)
    total = weights.sum(1)
    return {
        "exact_match": weights @ (references == predictions).all(1).astype(float) / total,
        "micro_precision": micro[0],
        "micro_recall": micro[1],
        "micro_f1": micro[2],
        "macro_precision": precision.mean(1),
        "macro_recall": recall.mean(1),
        "macro_f1": f1.mean(1),
        "weighted_f1": _ratio((f1 * support).sum(1), support.sum(1)),
        "samples_f1": weights @ _ratio(2 * both, both + either) / total,
        "jaccard": weights @ _ratio(both, either) / total,
        "hamming_loss": (falses.sum(1) + misses.sum(1)) / (total * references.shape[1]),
    }


def _counts(references: Bools, predictions: Bools) -> tuple[Floats, Floats, Floats]:
    return (
        (references & predictions).astype(float),
        (~references & predictions).astype(float),
        (references & ~predictions).astype(float),
    )


def _rates(hits: Floats, falses: Floats, misses: Floats) -> tuple[Floats, Floats, Floats]:
    return (
        _ratio(hits, hits + falses),
        _ratio(hits, hits + misses),
        _ratio(2 * hits, 2 * hits + falses + misses),
    )


def _ratio(above: Floats, below: Floats) -> Floats:
    out: Floats = np.zeros_like(above, dtype=np.float64)
    np.divide(above, below, out=out, where=below > 0)
    return out
