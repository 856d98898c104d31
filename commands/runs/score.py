"""The score of one stage as it came home, and what is shown of it; a machine's word, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from commands.runs.measured import read_result
from infra.untrusted import number, table, text, whole
from trainer.scoring.interval import Interval
from trainer.scoring.score_words import (
    SHORT,
    change_words,
    headline_change,
    loss_words,
    metric_words,
    problems_of,
    read_figures,
)


@dataclass(frozen=True, kw_only=True)
class Score:
    """A metric with its interval, as the trainer measured it."""

    metric: str
    value: float
    low: float
    high: float
    n: int
    better: str = "higher"
    """Which way is the better one: `higher` or `lower`."""
    change: Interval | None = None
    """By how much the metric changed with training, paired by row; None before it."""
    loss: Mapping[str, Interval] = field(default_factory=dict)
    """Figures of the loss of the right answers by their names."""
    loss_change: Mapping[str, Interval] = field(default_factory=dict)
    """By how much each of those changed with training."""
    problems: int | None = None
    """How many problems there are, if only `n` of them can be scored where they ran."""

    def __str__(self) -> str:
        name = metric_words(self.metric)
        of = "" if self.problems is None else f", scorable of {self.problems}"
        return f"{name} {self.value:.3f} ({self.low:.3f} to {self.high:.3f}, n={self.n}{of})"


def read_score(path: Path) -> Score | None:
    """Return the score in an evaluation's JSON; None if there is none or it is not one."""
    found = read_result(path)
    metric, n = text(found.get("metric"), most=60), whole(found.get("n"))
    value, low, high = (number(found.get(key), most=1e9) for key in ("value", "low", "high"))
    if metric is None or n is None or value is None or low is None or high is None:
        return None
    loss = table(found.get("loss"))
    return Score(
        metric=metric,
        value=value,
        low=low,
        high=high,
        n=n,
        better="lower" if found.get("better") == "lower" else "higher",
        change=headline_change(found),
        loss=read_figures(loss.get("figures")),
        loss_change=read_figures(loss.get("change")),
        problems=problems_of(found),
    )


def score_lines(
    before: Score | None,
    after: Score | None,
    *,
    figures: Sequence[str] = SHORT,
) -> list[tuple[str, str]]:
    """Return what is shown of two scores: a word and its fact; nothing without a score."""
    rows = [(name, str(one)) for name, one in (("before", before), ("after", after)) if one]
    if before and after:
        rows.append(("change", _change(before, after)))
    shown = after or before
    loss = shown and loss_words(
        before.loss if before else {},
        after.loss if after else {},
        shown.loss_change,
        names=[name for name in figures if name != shown.metric],
    )
    return [*rows, ("loss", loss)] if loss else rows


def _change(before: Score, after: Score) -> str:
    """Return how much the metric changed, with the paired interval if it was measured."""
    if after.change is not None:
        return change_words(after.change, after.better)
    apart = after.low > before.high or after.high < before.low
    overlap = "the intervals do not overlap" if apart else "the intervals overlap"
    return f"{after.value - before.value:+.3f}; {overlap}, {after.better} is better"
