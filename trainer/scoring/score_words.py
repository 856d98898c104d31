"""Says scores in words: before and after, the change with its interval, and which way is better.

Needs no library, so that the trainer's messages and the commands at home say the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trainer.scoring.interval import Interval
from trainer.untrusted import number, table, whole

WORDS = {
    "nats_per_token": "nats per token",
    "bits_per_token": "bits per token",
    "perplexity": "perplexity",
    "bits_per_byte": "bits per byte",
    "token_accuracy": "token accuracy",
}
"""Figures of a loss, in the order in which they are shown."""
HEADLINE = "nats_per_token"
SHORT = (HEADLINE, "perplexity")
"""Those that a line among others shows."""


def metric_words(metric: str) -> str:
    """Return the name of a metric as it is shown."""
    return WORDS.get(metric, metric)


def verdict(change: Interval, better: str) -> str:
    """Return whether a change is for the better, as far as its interval tells."""
    if change.low <= 0 <= change.high:
        return "no clear change"
    return "better" if (change.value > 0) == (better == "higher") else "worse"


def change_words(change: Interval, better: str) -> str:
    """Return a change with its interval, and what it means."""
    return (
        f"{change.value:+.3f} ({change.low:+.3f} to {change.high:+.3f}): "
        f"{verdict(change, better)}, {better} is better"
    )


def loss_words(
    before: Mapping[str, Interval],
    after: Mapping[str, Interval],
    change: Mapping[str, Interval],
    *,
    names: Sequence[str] = SHORT,
) -> str:
    """Return figures of a loss as `nats per token 2.31 -> 1.07 (...), perplexity 10.1 -> 2.9`.

    Nats per token have their change with its interval. A figure that was not measured is left out;
    empty if none was.
    """
    parts = []
    for name in names:
        values = [one[name].value for one in (before, after) if name in one]
        if not values:
            continue
        part = f"{WORDS[name]} {' -> '.join(map(rounded, values))}"
        if name == HEADLINE and name in change and len(values) == 2:
            by = change[name]
            part += f" (change {by.value:+.2f}, {by.low:+.2f} to {by.high:+.2f}; lower is better)"
        parts.append(part)
    return ", ".join(parts)


def read_figures(value: object) -> dict[str, Interval]:
    """Return the figures of a loss in a result from wherever, without what is none."""
    found = {name: read_interval(table(value).get(name)) for name in WORDS}
    return {name: one for name, one in found.items() if one is not None}


def read_interval(value: object) -> Interval | None:
    """Return a figure of a result that may come from elsewhere; None if it is none."""
    parts = (number(table(value).get(key)) for key in ("value", "low", "high"))
    found, low, high = parts
    if found is None or low is None or high is None:
        return None
    return Interval(value=found, low=low, high=high)


def headline_change(result: Mapping[str, object]) -> Interval | None:
    """Return by how much the headline figure of a result changed, paired by row; None if unknown.

    Of sets of labels `gain` is of exact matches, and that of the headline stands in it.
    """
    gain = table(table(result.get("details")).get("gain"))
    found = table(gain.get("headline")) or gain
    same = {found.get("metric"), result.get("metric")}
    return read_interval(found) if len(same) == 1 or same == {"accuracy", "exact_match"} else None


def problems_of(result: Mapping[str, object]) -> int | None:
    """Return how many problems a result has in all, if not all of them could be scored."""
    problems = whole(table(result.get("details")).get("problems"))
    return problems if problems is not None and problems != result.get("n") else None


def result_words(result: Mapping[str, object], before: Mapping[str, object]) -> str:
    """Return a result as one line; `before` is the one before training, empty if there is none."""
    metric = str(result.get("metric"))
    loss, earlier = table(result.get("loss")), table(before.get("loss"))
    beside = loss_words(
        read_figures(earlier.get("figures")),
        read_figures(loss.get("figures")),
        read_figures(loss.get("change")),
        names=[name for name in SHORT if name != metric],
    )
    headline = read_interval(result)
    if headline is None:
        return beside
    words = f"{metric_words(metric)} {headline.value:.3f} "
    words += f"[{headline.low:.3f}, {headline.high:.3f}] on {result.get('n')} rows"
    problems = problems_of(result)
    if problems is not None:
        words += f" (of {problems} problems; only these can be scored here)"
    change = headline_change(result)
    if change is not None:
        words += f", change {change_words(change, str(result.get('better')))}"
    return f"{words}; {beside}" if beside else words


def rounded(value: float) -> str:
    """Return a figure with three digits, or what stands before its point if that has more."""
    return f"{value:.0f}" if 100 <= abs(value) < 1e6 else f"{value:.3g}"
