"""Writes the report of a run as Markdown, short enough for a pull request."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from trainer.pages import markdown
from trainer.pages.browse import Row, scored_rows
from trainer.pages.figures import changes, digits, figure_of, figures_of, name_of
from trainer.pages.headline import explain, headline
from trainer.pages.planned import HEAD, planned_rows
from trainer.pages.run_files import MALFORMED, Json
from trainer.pages.scores import BASELINE_NAMES
from trainer.pages.summary import in_short, summary
from trainer.pages.timeline import dollars
from trainer.pages.timeline_layout import NAMES, read_stretches
from trainer.text import duration
from trainer.untrusted import table, text, whole

BYTES_MAX = 60_000
WRONG_MAX = 6
TEXT_MAX = 600
RIGHT = 1.0
MONEY = ("machine", "time rented", "cost", "time in training steps", "steps done again",
         "steps skipped for overflow", "the same bits as without interruption")  # fmt: skip
"""The rows of the page's table on the run that are about time and money."""
LEARNING = ("base", "method", "schedule", "optimizer steps", "loss, first and last steps",
            "lowest validation loss", "tokens", "tokens per second", "merged model")  # fmt: skip
VERSIONS_MAX = 30
EVICTIONS_MAX = 20


def as_markdown(
    report: Json, before: Mapping[str, Any] | None, after: Mapping[str, Any] | None, *, name: str
) -> str:
    """Return the report; `before` and `after` are the results of the scoring, with their rows.

    Parts that the files do not give are left out, and so is the end of what would be too long.
    """
    parts: list[tuple[str, Callable[[], list[str]]]] = [
        ("headline", lambda: _headline(report)),
        ("scores", lambda: _scores(report)),
        ("time and cost", lambda: _money(report)),
        ("evictions", lambda: _evictions(report)),
        ("plan", lambda: _planned(report)),
        ("answers", lambda: _wrong(before, after)),
        ("settings", lambda: _settings(report)),
    ]
    made = [f"### {markdown.plain(f'Fine-tuning report: {name}')}"]
    for what, make in parts:
        try:
            found = make()
        except MALFORMED as error:
            found = [f"The {what} cannot be shown ({type(error).__name__})."]
        for part in found:
            if _size([*made, part]) <= BYTES_MAX:
                made.append(part)
    return "\n\n".join(made) + "\n"


def _size(parts: list[str]) -> int:
    return sum(len(part.encode("utf-8", "replace")) + 2 for part in parts)


def _headline(report: Json) -> list[str]:
    lines = [f"**{markdown.plain(headline(report))}**"]
    return lines + [markdown.plain(line) for line in (in_short(report), explain(report)) if line]


def _scores(report: Json) -> list[str]:
    """Return the table of figures before and after, with the paired change, and the baselines."""
    before, after = (figures_of(report.get(stage)) for stage in ("before", "after"))
    gains = {one.metric: one.gain for one in changes(report)}
    rows = []
    for metric in {**after, **before}:
        figures = [found[metric].words() if metric in found else "" for found in (before, after)]
        gain, change = gains.get(metric), ""
        if gain is not None and gain.low is not None and gain.high is not None:
            change = f"{gain.value:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})"
        rows.append((name_of(metric), *figures, change))
    if not rows:
        return []
    parts = [markdown.table(("", "before", "after", "change, paired by row"), rows)]
    count = whole(table(report.get("after") or report.get("before")).get("n"))
    if count:
        parts.append(f"{count:,} held-out rows; in brackets 95 % intervals over them.")
    return parts + _baselines(report)


def _baselines(report: Json) -> list[str]:
    """Return the headline's metric of each baseline."""
    metric = str(table(report.get("after") or report.get("before")).get("metric"))
    rows = []
    for name, given in table(report.get("baselines")).items():
        found = table(given)
        figure = figure_of(found.get(metric) or found.get("exact_match"))
        if figure is not None:
            words = BASELINE_NAMES.get(name, name.replace("_", " "))
            rows.append((words, figure.words()))
    return [markdown.table(("baseline", name_of(metric)), rows)] if rows else []


def _money(report: Json) -> list[str]:
    found = dict(summary(report))
    rows = [(word, _words(found[word])) for word in MONEY if word in found]
    parts = ["#### Time and cost", markdown.table(("", ""), rows)] if rows else []
    return parts + _timeline(report)


def _timeline(report: Json) -> list[str]:
    """Return time and dollars of what the machine did, folded."""
    found = table(table(report.get("facts")).get("timeline"))
    stretches = read_stretches(found)
    own = found.get("own") is True
    rows = []
    for activity, words in NAMES.items():
        mine = [one for one in stretches if one.activity == activity]
        if mine:
            usd = "" if own else dollars(sum(one.usd for one in mine))
            rows.append((words, duration(sum(one.seconds for one in mine)), usd))
    if not rows:
        return []
    return [markdown.folded("What the machine did", markdown.table(("", "time", "dollars"), rows))]


def _evictions(report: Json) -> list[str]:
    found = [table(one) for one in report["evictions"]]
    lines = []
    for one in found[:EVICTIONS_MAX]:
        step, at = whole(one.get("step")), text(one.get("at"), most=40)
        words = f"at step {step:,}" if step is not None else "before the first step"
        lines.append(f"- {words}" + (f", {markdown.plain(at)}" if at else ""))
    more = len(found) - EVICTIONS_MAX
    lines += [f"- {more:,} more"] if more > 0 else []
    return [f"#### Evictions survived: {len(found)}", "\n".join(lines)] if lines else []


def _planned(report: Json) -> list[str]:
    plan = table(report.get("facts")).get("plan")
    rows = planned_rows(plan) if plan else []
    return [markdown.folded("Planned and real", markdown.table(HEAD, rows))] if rows else []


def _wrong(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> list[str]:
    """Return a few of the answers that are least right, folded."""
    rows = scored_rows(before if after else None, after or before)
    wrong = sorted((one for one in rows if one.score < RIGHT), key=lambda one: one.score)
    if not wrong:
        return []
    shown = wrong[:WRONG_MAX]
    title = f"Wrong answers ({len(shown)} of {len(wrong):,}; {len(rows):,} rows were scored)"
    return [markdown.folded(title, *(part for one in shown for part in _answer(one)))]


def _answer(one: Row) -> Iterator[str]:
    yield f"**{markdown.plain(one.place)}, score {digits(one.score)}**"
    texts = (("prompt", one.prompt), ("right", one.right), ("answer", one.after))
    words = "\n\n".join(f"{word}: {found}" for word, found in texts if found is not None)
    yield markdown.block(words, most=3 * TEXT_MAX)


def _settings(report: Json) -> list[str]:
    """Return what was trained how, and the versions that computed, folded."""
    found = dict(summary(report))
    rows = [(word, _words(found[word])) for word in LEARNING if word in found]
    versions = table(report.get("versions"))
    rows += [
        (name, version)
        for name, given in list(versions.items())[:VERSIONS_MAX]
        if (version := text(given, most=80))
    ]
    return (
        [markdown.folded("Settings and versions", markdown.table(("", ""), rows))] if rows else []
    )


def _words(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
