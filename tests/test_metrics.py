"""The figures of an evaluation equal scikit-learn's, and their intervals are honest."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import metrics as sk

from trainer.eval_tables.labels import CostTable
from trainer.scoring.metrics import (
    AVERAGES,
    Bools,
    average_precision,
    bootstrap,
    cheapest_threshold,
    confusion,
    cooccurrence,
    expected_cost,
    paired_difference,
    paired_figure,
    per_label,
    reliability,
    scores,
)

PAIRS = st.tuples(st.integers(1, 12), st.integers(2, 6)).flatmap(
    lambda shape: st.tuples(hnp.arrays(bool, shape), hnp.arrays(bool, shape))
)


@settings(deadline=None, max_examples=40)
@given(pair=PAIRS)
def test_every_average_equals_scikit_learns(pair: tuple[Bools, Bools]) -> None:
    """On any sets of labels, also empty ones, each figure is the library's to 1e-12."""
    references, predictions = pair
    expected = {
        "exact_match": sk.accuracy_score(references, predictions),
        "hamming_loss": sk.hamming_loss(references, predictions),
        "jaccard": sk.jaccard_score(references, predictions, average="samples", zero_division=0),
        "samples_f1": sk.f1_score(references, predictions, average="samples", zero_division=0),
        "weighted_f1": sk.f1_score(references, predictions, average="weighted", zero_division=0),
    }
    for average in ("micro", "macro"):
        precision, recall, f1, _ = sk.precision_recall_fscore_support(
            references, predictions, average=average, zero_division=0
        )
        expected |= {
            f"{average}_precision": precision, f"{average}_recall": recall, f"{average}_f1": f1
        }  # fmt: skip
    found = scores(references, predictions)

    assert set(expected) == set(AVERAGES)
    assert found == pytest.approx({name: float(value) for name, value in expected.items()})


@settings(deadline=None, max_examples=40)
@given(pair=PAIRS)
def test_every_label_equals_scikit_learns(pair: tuple[Bools, Bools]) -> None:
    """Precision, recall, F1, support and the counts of each label are the library's."""
    references, predictions = pair
    labels = [f"label {at}" for at in range(references.shape[1])]
    precision, recall, f1, support = sk.precision_recall_fscore_support(
        references, predictions, average=None, zero_division=0
    )
    matrices = sk.multilabel_confusion_matrix(references, predictions)
    for at, (label, found) in enumerate(per_label(references, predictions, labels).items()):
        assert label == labels[at]
        assert [found["precision"], found["recall"], found["f1"]] == pytest.approx(
            [precision[at], recall[at], f1[at]]
        )
        assert found["support"] == support[at]
        assert [[found["true_positives"], found["false_negatives"]]] == [
            [matrices[at][1][1], matrices[at][1][0]]
        ]
        assert found["false_positives"] == matrices[at][0][1]


@given(
    scored=st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0]), st.booleans()),
                    min_size=1, max_size=20)
)  # fmt: skip
def test_average_precision_equals_scikit_learns(scored: list[tuple[float, bool]]) -> None:
    """Ties are taken together, as the library does; without a positive the figure is 0."""
    probabilities = np.array([probability for probability, _ in scored])
    right = np.array([truth for _, truth in scored])
    expected = sk.average_precision_score(right, probabilities) if right.any() else 0.0

    assert average_precision(probabilities, right) == pytest.approx(expected)


def test_an_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Over 200 samples of a coin of 0.7, the 95 % interval holds 0.7 in 88 to 99 % of them."""
    draws = np.random.default_rng(1)
    covered = 0
    for sample in range(200):
        right = draws.random(120) < 0.7
        references = np.stack([np.ones(120, bool), np.zeros(120, bool)], axis=1)
        predictions = np.stack([right, ~right], axis=1)
        interval = bootstrap(references, predictions, resamples=300, seed=sample)["exact_match"]
        covered += interval.low <= 0.7 <= interval.high

    assert 0.88 <= covered / 200 <= 0.99


def test_an_interval_is_seeded_and_holds_its_value() -> None:
    """The same seed gives the same interval, another one another, and the value lies within."""
    draws = np.random.default_rng(0)
    references, predictions = draws.random((60, 4)) < 0.4, draws.random((60, 4)) < 0.4
    first = bootstrap(references, predictions, resamples=1000, seed=7)

    assert bootstrap(references, predictions, resamples=1000, seed=7) == first
    assert bootstrap(references, predictions, resamples=1000, seed=8) != first
    for interval in first.values():
        assert interval.low <= interval.value <= interval.high


def test_a_bootstrap_equals_the_slow_way() -> None:
    """Weighing documents by how often they were drawn equals drawing them and scoring anew."""
    draws = np.random.default_rng(3)
    references, predictions = draws.random((25, 3)) < 0.5, draws.random((25, 3)) < 0.5
    weights = np.random.default_rng(5).multinomial(25, np.full(25, 1 / 25), size=50)
    slow = [
        sk.f1_score(np.repeat(references, row, 0), np.repeat(predictions, row, 0), average="macro",
                    zero_division=0)
        for row in weights
    ]  # fmt: skip
    found = bootstrap(references, predictions, resamples=50, seed=5)["macro_f1"]

    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])))


def test_intervals_of_many_documents_take_little_memory() -> None:
    """Five thousand documents drawn a thousand times are in memory in portions, never at once."""
    right = np.arange(5_000) % 3 == 0
    sets, numbers = right[:, None], right.astype(float)
    tracemalloc.start()
    bootstrap(sets, ~sets, resamples=1000, seed=0)
    paired_difference(numbers, 1 - numbers, resamples=1000, seed=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 30_000_000


def test_the_paired_difference_is_sharper_than_two_intervals() -> None:
    """Ten documents that all became right show as a gain whose interval excludes zero."""
    before, after = np.zeros(40), np.zeros(40)
    after[:10] = 1
    gain = paired_difference(before, after, resamples=2000, seed=0)

    assert gain.value == 0.25
    assert gain.low > 0


def test_confusion_keeps_unreadable_answers() -> None:
    """The last column counts answers that were no label, so every row sums to its support."""
    assert confusion([0, 0, 1, 1], [0, -1, 0, 1], 2) == [[1, 0, 1], [1, 1, 0]]


def test_cooccurrence_counts_pairs() -> None:
    """A document with labels a and b that was answered b counts at (a, b) and (b, b)."""
    references, predictions = np.array([[True, True]]), np.array([[False, True]])

    assert cooccurrence(references, predictions) == [[0, 1], [0, 1]]


def test_reliability_measures_the_gap() -> None:
    """Four statements said with 0.75 of which half are true leave a gap of 0.25."""
    found = reliability(np.full(4, 0.75), np.array([True, True, False, False]))

    assert found["ece"] == pytest.approx(0.25)
    assert found["brier"] == pytest.approx((2 * 0.25**2 + 2 * 0.75**2) / 4)
    assert [row["count"] for row in found["table"]] == [4]


@given(
    scored=st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=12),
    miss=st.floats(0.1, 9), alarm=st.floats(0.1, 9),
)  # fmt: skip
@example(scored=[(0.0, False), (5e-324, True)], miss=1.0, alarm=1.0)
@example(scored=[(np.nextafter(0.5, 0), False), (0.5, True)], miss=1.0, alarm=1.0)
def test_no_other_threshold_is_cheaper(
    scored: list[tuple[float, bool]], miss: float, alarm: float
) -> None:
    """The threshold found costs what it says, and no cut anywhere costs less."""
    probabilities = np.array([probability for probability, _ in scored])
    right = np.array([truth for _, truth in scored])
    cost = CostTable(miss=miss, false_alarm=alarm)

    def price(threshold: float) -> float:
        return expected_cost(
            right[:, None], (probabilities >= threshold)[:, None], ["a"], {"a": cost}
        )

    threshold, least = cheapest_threshold(probabilities, right, cost)

    assert price(threshold) == pytest.approx(least)
    assert least <= min(price(cut) for cut in [0.0, 1.1, *probabilities]) + 1e-9


def test_exact_match_of_none_or_all_has_an_interval() -> None:
    """All 22 documents wrong is 0 to 0.149, where resampled documents have 0 to 0."""
    right = np.eye(2, dtype=bool)[[0] * 22]
    for answers, expected in ((~right, (0.0, 0.0, 0.149)), (right, (1.0, 0.851, 1.0))):
        found = bootstrap(right, answers, resamples=1000, seed=0)["exact_match"]

        assert tuple(round(one, 3) for one in (found.value, found.low, found.high)) == expected


def test_the_change_of_a_figure_is_paired() -> None:
    """The change of micro F1 is the difference of the figures, with its own interval."""
    random = np.random.default_rng(0)
    right = random.random((60, 4)) < 0.4
    before = right ^ (random.random(right.shape) < 0.3)
    after = before.copy()
    after[:20] = right[:20]
    found = paired_figure("micro_f1", right, before, after, resamples=2000)
    values = [scores(right, given)["micro_f1"] for given in (before, after)]

    assert found.value == pytest.approx(values[1] - values[0])
    assert 0 < found.low < found.value < found.high
