"""Scores are told with their change, its interval, and which way is better."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from commands.runs.score import read_score, score_lines
from trainer.scoring.interval import Interval
from trainer.scoring.score_words import (
    WORDS,
    headline_change,
    loss_words,
    result_words,
    rounded,
    verdict,
)


def figure(value: float, low: float, high: float) -> dict[str, float]:
    """A figure as results have it."""
    return {"value": value, "low": low, "high": high}


def result(stage: str, **more: Any) -> dict[str, Any]:
    """A result of the loss alone, as the trainer writes it."""
    nats = {"before": figure(2.31, 2.25, 2.38), "after": figure(1.07, 1.0, 1.13)}[stage]
    figures: dict[str, Any] = {
        "nats_per_token": nats,
        "perplexity": figure(10.1 if stage == "before" else 2.9, 2, 11),
        "bits_per_byte": None,
        "token_accuracy": figure(0.45 if stage == "before" else 0.72, 0.4, 0.8),
    }
    changed = {"nats_per_token": figure(-1.24, -1.31, -1.17), "bits_per_byte": None}
    loss = {"figures": figures, **({"change": changed} if stage == "after" else {})}
    gain = {"metric": "nats_per_token", **changed["nats_per_token"]}  # type: ignore[dict-item]  # a figure
    return {
        "stage": stage, "kind": "loss", "metric": "nats_per_token", **nats, "n": 200,
        "better": "lower", "loss": loss, "details": {"gain": gain if stage == "after" else None},
        **more,
    }  # fmt: skip


def labels(stage: str, **more: Any) -> dict[str, Any]:
    """A result of labels with the loss beside it."""
    value = 0.43 if stage == "before" else 0.69
    details = {"gain": {"metric": "exact_match", **figure(0.26, 0.17, 0.35)}}
    return result(stage) | {
        "kind": "label", "metric": "accuracy", **figure(value, value - 0.08, value + 0.08),
        "n": 150, "better": "higher", "details": details if stage == "after" else {}, **more,
    }  # fmt: skip


def shown(directory: Path, before: dict[str, Any], after: dict[str, Any], **more: Any) -> list[str]:
    """The lines that are shown of two results that came home."""
    for one in (before, after):
        path = directory / f"eval-{one['stage']}.json"
        path.write_text(json.dumps(one), encoding="utf-8")
    scores = [read_score(directory / f"eval-{stage}.json") for stage in ("before", "after")]
    return [f"{word}: {fact}" for word, fact in score_lines(scores[0], scores[1], **more)]


def test_a_loss_has_its_change_and_the_better_way(tmp_path: Path) -> None:
    """Lower is better, and the change has the interval that was measured row by row."""
    assert shown(tmp_path, result("before"), result("after")) == [
        "before: nats per token 2.310 (2.250 to 2.380, n=200)",
        "after: nats per token 1.070 (1.000 to 1.130, n=200)",
        "change: -1.240 (-1.310 to -1.170): better, lower is better",
        "loss: perplexity 10.1 -> 2.9",
    ]


def test_a_score_has_its_loss_in_one_line(tmp_path: Path) -> None:
    """`qft eval` shows every figure of the loss that there is, the receipt two of them."""
    lines = shown(tmp_path, labels("before"), labels("after"))

    assert lines[2:] == [
        "change: +0.260 (+0.170 to +0.350): better, higher is better",
        (
            "loss: nats per token 2.31 -> 1.07 (change -1.24, -1.31 to -1.17; lower is better), "
            "perplexity 10.1 -> 2.9"
        ),
    ]
    every = shown(tmp_path, labels("before"), labels("after"), figures=tuple(WORDS))[-1]
    assert every.endswith("perplexity 10.1 -> 2.9, token accuracy 0.45 -> 0.72")


def test_results_of_earlier_versions_are_shown_without_what_they_lack(tmp_path: Path) -> None:
    """Without a gain or a loss the values are compared, and nothing is made up."""
    old = [labels(stage, loss=None, details={}) for stage in ("before", "after")]
    for one in old:
        del one["better"]

    assert shown(tmp_path, *old)[2:] == [
        "change: +0.260; the intervals do not overlap, higher is better"
    ]


@pytest.mark.parametrize(
    ("low", "high", "better", "word"),
    [
        (0.1, 0.3, "higher", "better"),
        (0.1, 0.3, "lower", "worse"),
        (-0.3, -0.1, "lower", "better"),
        (-0.3, -0.1, "higher", "worse"),
        (-0.1, 0.3, "higher", "no clear change"),
        (0.0, 0.0, "higher", "no clear change"),
    ],
)
def test_a_change_counts_if_its_interval_leaves_out_zero(
    low: float, high: float, better: str, word: str
) -> None:
    """Which way is the better one decides between better and worse."""
    assert verdict(Interval(value=(low + high) / 2, low=low, high=high), better) == word


def test_the_trainer_says_the_same_in_one_line() -> None:
    """Its message has score, rows, change and loss; without rows before it has the score alone."""
    assert result_words(labels("after"), labels("before")) == (
        "accuracy 0.690 [0.610, 0.770] on 150 rows, change +0.260 (+0.170 to +0.350): better, "
        "higher is better; nats per token 2.31 -> 1.07 (change -1.24, -1.31 to -1.17; lower is "
        "better), perplexity 10.1 -> 2.9"
    )
    assert result_words(result("before"), {}) == (
        "nats per token 2.310 [2.250, 2.380] on 200 rows; perplexity 10.1"
    )


def test_the_change_of_another_figure_is_not_that_of_the_headline() -> None:
    """Of sets of labels the gain is of exact matches; that of micro F1 stands in it."""
    gain = {"metric": "exact_match", **figure(0.1, 0.0, 0.2)}
    headline = {"metric": "micro_f1", **figure(0.3, 0.2, 0.4)}

    assert headline_change({"metric": "micro_f1", "details": {"gain": gain}}) is None
    both = {"metric": "micro_f1", "details": {"gain": {**gain, "headline": headline}}}
    assert headline_change(both) == Interval(value=0.3, low=0.2, high=0.4)


def test_figures_have_three_digits() -> None:
    """Small and large ones alike, without an exponent where none is needed."""
    found = [rounded(one) for one in (0.8234, 2.3149, 10.12, 345.6, 49152.3, 1e300)]

    assert found == ["0.823", "2.31", "10.1", "346", "49152", "1e+300"]
    assert loss_words({}, {}, {}) == ""
