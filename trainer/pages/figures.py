"""Reads the figures of scores, whatever their kind: values with intervals, names, directions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from trainer.untrusted import number, table, text

NAMES: Mapping[str, str] = MappingProxyType(
    {
        "exact_match": "exact match",
        "bound_exact_match": "exact match of answers held to the labels",
        "micro_f1": "micro F1",
        "macro_f1": "macro F1",
        "tokens_f1": "token F1",
        "chrf": "chrF",
        "rouge_l": "ROUGE-L",
        "json": "JSON fields",
        "json_exact": "JSON exact",
        "pass_at_1": "pass@1",
        "nats_per_token": "loss in nats per token",
        "bits_per_token": "loss in bits per token",
        "bits_per_byte": "loss in bits per byte",
        "token_accuracy": "token accuracy",
    }
)
"""What people call a metric; a name that is not here is shown with spaces for `_`."""
LOWER = frozenset({"nats_per_token", "bits_per_token", "bits_per_byte", "perplexity"})
"""Metrics of which less is better."""
METRICS_MAX = 30
"""Of one measure or baseline; no kind has as many."""
LOSS = "nats_per_token"
"""The figure of a loss that stands for it."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A value with its 95 % interval, as far as it is known."""

    value: float
    low: float | None = None
    high: float | None = None
    maximum: float | None = None
    """The most that the figure can be, if there is a most."""

    def words(self) -> str:
        """Return the value with its interval, on one line."""
        value, low, high = (digits(one) for one in (self.value, self.low, self.high))
        if self.low is None or self.high is None:
            return value
        return f"{value} ({low} to {high})".replace(" ", "\u00a0")


@dataclass(frozen=True, kw_only=True)
class Change:
    """One metric before and after training, and by how much it changed, if rows were paired."""

    metric: str
    before: Figure
    after: Figure
    gain: Figure | None = None
    lower_is_better: bool = False

    @property
    def clear(self) -> bool:
        """Whether the interval of the change excludes zero."""
        found = self.gain
        if found is None or found.low is None or found.high is None:
            return False
        return (found.low > 0 or found.high < 0) and self.after.value != self.before.value

    @property
    def better(self) -> bool:
        """Whether the value after training is the better one."""
        rises = self.after.value > self.before.value
        return rises != self.lower_is_better


def figure_of(found: object) -> Figure | None:
    """Return a figure from a table of `value`, `low` and `high`; None if it has no value."""
    fields = table(found)
    value = number(fields.get("value"))
    if value is None:
        return None
    low, high = number(fields.get("low")), number(fields.get("high"))
    if low is None or high is None or low > high:
        low = high = None
    return Figure(value=value, low=low, high=high, maximum=number(fields.get("maximum")))


def figures_of(stage: Mapping[str, Any] | None) -> dict[str, Figure]:
    """Return the figures of one stage by metric, the headline first, then others, then the loss.

    `stage` is `before` or `after` of `report.json`.
    """
    found: dict[str, Figure] = {}
    if not stage:
        return found
    headline = figure_of(stage)
    if headline is not None:
        found[str(stage.get("metric"))] = headline
    way = "free" if stage.get("decoding") == "free" else "bound"
    for more in (stage.get(way), stage.get("figures"), table(stage.get("loss")).get("figures")):
        for name, one in [*table(more).items()][:METRICS_MAX]:
            figure = figure_of(one)
            if figure is not None and not (name == "exact_match" and "accuracy" in found):
                found.setdefault(name, figure)
    if way == "free":  # a paired change may be of bound answers
        figure = figure_of(table(table(stage.get("bound")).get("exact_match")))
        if figure is not None:
            found["bound_exact_match"] = figure
    return found


def changes(report: Mapping[str, Any]) -> list[Change]:
    """Return each metric that both stages have, the headline's first."""
    before, after = (figures_of(report.get(stage)) for stage in ("before", "after"))
    gains = dict(_gains(report))
    headline = str(table(report.get("after")).get("metric"))
    return [
        Change(
            metric=metric,
            before=before[metric],
            after=figure,
            gain=gains.get(metric),
            lower_is_better=_lower(metric, headline, report),
        )
        for metric, figure in after.items()
        if metric in before
    ]


def _gains(report: Mapping[str, Any]) -> Iterator[tuple[str, Figure]]:
    """Return the paired changes by metric; accuracy is the exact match of one label.

    Results of an earlier qft do not say of which answers the change is: it is of bound ones.
    """
    after = table(report.get("after"))
    found = table(report.get("gain"))
    gain = figure_of(found)
    if gain is not None:
        metric = str(found.get("metric") or after.get("metric"))
        decoding = found.get("decoding") or "bound"
        if metric == "exact_match" and "bound" in after and after.get("decoding") != decoding:
            yield "bound_exact_match", gain
        else:
            yield metric, gain
            if metric == "exact_match" and after.get("metric") == "accuracy":
                yield "accuracy", gain
    headline = table(found.get("headline"))
    change = figure_of(headline)
    if change is not None:  # of sets of labels: that of micro F1
        yield str(headline.get("metric")), change
    for more in (found.get("figures"), table(after.get("loss")).get("change")):
        for name, one in table(more).items():
            figure = figure_of(one)
            if figure is not None:
                yield name, figure


def _lower(metric: str, headline: str, report: Mapping[str, Any]) -> bool:
    if metric == headline and table(report.get("after")).get("better") in ("lower", "higher"):
        return bool(report["after"]["better"] == "lower")
    return metric in LOWER


def name_of(metric: object) -> str:
    """Return what people call a metric."""
    short = text(metric, most=60) or "score"
    return NAMES.get(short, short.replace("_", " "))


def digits(value: float | None) -> str:
    """Return a figure with three digits behind the point, or fewer if it is large."""
    if value is None:
        return ""
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 100 else f"{value:.2f}" if size >= 10 else f"{value:.3f}"


def signed(value: float) -> str:
    """Return a change with its sign."""
    return f"{'-' if value < 0 else '+'}{digits(abs(value))}"


def pair(before: float, after: float) -> tuple[str, str]:
    """Return two figures with as many digits as tell them apart: two behind the point, or more."""
    for places in range(2, 7):
        both = f"{before:,.{places}f}", f"{after:,.{places}f}"
        if both[0] != both[1]:
            break
    else:
        places = 2
    if max(abs(before), abs(after)) >= 100 and round(before) != round(after):
        places = 0
    return f"{before:,.{places}f}", f"{after:,.{places}f}"
