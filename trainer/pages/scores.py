"""Shows scores before and after training and of baselines, as bars with intervals and a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from markupsafe import Markup

from trainer.pages import html
from trainer.pages.bars import Bar, level_bars
from trainer.pages.figures import (
    LOSS,
    METRICS_MAX,
    Figure,
    changes,
    figure_of,
    figures_of,
    name_of,
    signed,
)
from trainer.untrusted import table, whole

BASELINE_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "majority": "commonest answer",
        "commonest": "commonest answer",
        "empty": "empty answer",
        "nearest": "answer of the most similar row",
        "tfidf_regression": "TF-IDF + regression",
        "few_shot": "base, few-shot",
    }
)
STAGES = (("before", "base"), ("after", "fine-tuned"))
BASELINES_MAX = 20
SHARES = frozenset({"accuracy", "exact_match", "micro_f1", "macro_f1", "pass_at_1"})
"""Figures whose scale ends at 1, whether a result says so or not."""
STYLES = MappingProxyType({"before": "fm", "after": "fa"})


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Whoever was scored, with its figures by metric."""

    name: str
    figures: Mapping[str, Figure]
    style: str = "fg"


def score_parts(report: Mapping[str, Any]) -> list[Markup]:
    """Return bars of the headline metric and of the loss, a table of all figures, and what it says.

    Raises what looking into a document does that is not built as the trainer writes it.
    """
    scored = _scored(report)
    stage = report["after"] or report["before"]
    headline = str(stage["metric"])
    loss = [LOSS] if any(LOSS in one.figures for one in scored) and headline != LOSS else []
    parts: list[Markup] = []
    for metric in (headline, *loss):
        parts += [html.heading(_title(metric, stage)), _bars(metric, scored)]
    return [*parts, *_gains(report), _note(stage), _all_figures(scored)]


def _scored(report: Mapping[str, Any]) -> list[Scored]:
    """Return the baselines, then the base and the fine-tuned model."""
    headline = str((report["after"] or report["before"])["metric"])
    found = []
    for name, given in [*report["baselines"].items()][:BASELINES_MAX]:
        raw = [*table(given).items()][:METRICS_MAX]
        figures = {key: one for key, value in raw if (one := figure_of(value))}
        if headline == "accuracy" and "exact_match" in figures:
            figures = {"accuracy": figures.pop("exact_match"), **figures}
        found.append(Scored(name=BASELINE_NAMES.get(name, name.replace("_", " ")), figures=figures))
    for stage, word in STAGES:
        if report[stage]:
            figures = figures_of(report[stage])
            found.append(Scored(name=word, figures=figures, style=STYLES[stage]))
    return found


def _bars(metric: str, scored: list[Scored]) -> Markup:
    bars, most = [], 0.0
    for one in scored:
        figure = one.figures.get(metric)
        if figure is not None:
            most = max(most, figure.maximum or 0.0)
            bars.append(
                Bar(
                    name=one.name,
                    value=figure.value,
                    low=figure.low,
                    high=figure.high,
                    figure=figure.words(),
                    style=one.style,
                    strong=one.style == "fa",
                )
            )
    return level_bars(name_of(metric), bars, most=1.0 if metric in SHARES else most)


def _title(metric: str, stage: Mapping[str, Any]) -> str:
    lower = stage.get("better") == "lower" if metric == stage["metric"] else metric == LOSS
    return f"{name_of(metric)}{' (lower is better)' if lower else ''}"


def _gains(report: Mapping[str, Any]) -> list[Markup]:
    """Return a table of the paired changes; of a loss its first figure, the others folded."""
    lines: list[tuple[str, str]] = []
    more: list[tuple[str, str]] = []
    losses = {*table(table(table(report.get("after")).get("loss")).get("figures"))} - {LOSS}
    for one in changes(report):
        gain = one.gain
        if gain is None or gain.low is None or gain.high is None:
            continue
        value, low, high = (signed(number) for number in (gain.value, gain.low, gain.high))
        span = f"{value} ({low} to {high})".replace(" ", "\u00a0")
        clear = "" if one.clear else ", no clear change"
        (more if one.metric in losses else lines).append((name_of(one.metric), span + clear))
    if not lines:
        return []
    rest = [html.folded("Other figures of the loss", html.table(("", ""), more))] if more else []
    title = html.heading("Change by training, paired by row")
    return [title, html.table(("", ""), lines), *rest]


def _note(stage: Mapping[str, Any]) -> Markup:
    rows = whole(stage.get("n")) or 0
    words = f"{rows:,} held-out rows; the thin lines are 95 % intervals over them."
    if "bound" in stage:
        words += " Bound answers are held to the labels, free ones are what the model writes;"
        words += f" the bars are of {stage.get('decoding')} ones."
    if reason := stage.get("not_answered"):
        words += f" No answers were generated, so there is only their loss: {reason}"
    return html.note(words)


def _all_figures(scored: list[Scored]) -> Markup:
    metrics = list(dict.fromkeys(key for one in scored for key in one.figures))
    rows = [
        (one.name, *(one.figures[key].words() if key in one.figures else "" for key in metrics))
        for one in scored
    ]
    return html.folded("All figures", html.table(("", *map(name_of, metrics)), rows))
