"""Says in one sentence what a run did: its score before and after, what it cost, what it survived.

The score is one whose change has an interval that excludes zero; without any the sentence says
that there is no clear change.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.pages.figures import Change, changes, digits, figures_of, name_of, pair, signed
from trainer.text import HOUR_S, MINUTE_S, duration
from trainer.untrusted import number, table, text, whole

WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
HOURS_SHOWN = 10
"""Of a time that is longer, minutes are left out."""
UNDER_WAY = {"loading": "loading", "evaluating": "scoring", "training": "training",
             "saving": "saving"}  # fmt: skip


def headline(report: Mapping[str, Any]) -> str:
    """Return the sentence, from what `report.json` has; it begins with a small letter."""
    state = table(report.get("status"))
    phase = state.get("phase")
    if phase == "failed":
        return _failed(report, state)
    if phase == "preempted" and not report.get("finished"):
        return (
            f"stopped at {_place(report, state)}, not finished{_price(report)}{_survived(report)}"
        )
    if phase in UNDER_WAY and not report.get("finished"):
        return f"{UNDER_WAY[phase]}: {_place(report, state)}{_loss(report)}{_survived(report)}"
    return f"{_result(report)}{_price(report)}{_survived(report)}"


def explain(report: Mapping[str, Any]) -> str:
    """Return what stands under the headline: the change with its interval, and over how many rows.

    Empty if nothing was scored before and after.
    """
    found = _chosen(report)
    if found is None or found.gain is None:
        return ""
    rows = whole(table(report.get("after")).get("n"))
    over = f" over {rows:,} held-out rows" if rows else ""
    change = signed(found.gain.value)
    if found.gain.low is None or found.gain.high is None:
        return f"The change in {name_of(found.metric)}{over} is {change}."
    span = f"{signed(found.gain.low)} to {signed(found.gain.high)}"
    return (
        f"The change in {name_of(found.metric)}{over} is {change}; its 95 % interval, paired by "
        f"row, is {span}."
    )


def _chosen(report: Mapping[str, Any]) -> Change | None:
    """Return the first metric that changed clearly, else one with a paired change, else the first.

    None if nothing was scored before and after.
    """
    found = changes(report)
    clear = [one for one in found if one.clear]
    paired = [one for one in found if one.gain is not None]
    return next(iter(clear or paired or found), None)


def _result(report: Mapping[str, Any]) -> str:
    chosen = _chosen(report)
    if chosen is not None:
        return _changed(chosen)
    for stage, when in (("after", "after training"), ("before", "before training")):
        for metric, figure in figures_of(report.get(stage)).items():
            return f"{name_of(metric)} {digits(figure.value)} {when}"
    return f"{_steps(report)}{_loss(report)}, not scored"


def _changed(found: Change) -> str:
    before, after = pair(found.before.value, found.after.value)
    values, name = f"{before} → {after}", name_of(found.metric)
    if not found.clear:
        return f"no clear change in {name} ({values})"
    return f"{name} {values}" + ("" if found.better else " (worse)")


def _failed(report: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    lines = str(state.get("error") or "").strip().splitlines()
    why = text(lines[0], most=160) if lines else ""
    reason = f": {why}" if why else ""
    return f"failed at {_place(report, state)}{_price(report)}{_survived(report)}{reason}"


def _place(report: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    """Return `step 45 of 90`."""
    step = whole(state.get("step"))
    step = step if step is not None else whole(report.get("steps")) or 0
    steps = whole(state.get("steps"))
    return f"step {step:,}" + (f" of {steps:,}" if steps else "")


def _steps(report: Mapping[str, Any]) -> str:
    steps = whole(report.get("steps")) or 0
    return "nothing trained yet" if not steps else f"{steps:,} step{'' if steps == 1 else 's'}"


def _loss(report: Mapping[str, Any]) -> str:
    first, last = number(report.get("first_loss")), number(report.get("last_loss"))
    if first is None or last is None:
        return ""
    before, after = pair(first, last)
    return f", training loss {before} → {after}"


def _price(report: Mapping[str, Any]) -> str:
    """Return ` for 4 cents in 7 min`, as far as it is known."""
    facts = table(report.get("facts"))
    usd, hours = number(facts.get("usd")), number(facts.get("hours"))
    seconds = number(report.get("training_seconds"))
    words = ""
    if usd is not None and usd > 0:
        words += f" for {cents(usd)}" + (" (listed price)" if facts.get("listed") else "")
    if hours is not None and hours > 0:
        words += f" in {roughly(hours * HOUR_S)}"
    elif seconds:
        words += f" in {roughly(seconds)} of training"
    return words


def _survived(report: Mapping[str, Any]) -> str:
    count = len(report.get("evictions") or ())
    if not count:
        return ""
    word = WORDS[count] if count < len(WORDS) else f"{count:,}"
    return f", {word} eviction{'' if count == 1 else 's'} survived"


def cents(usd: float) -> str:
    """Return a sum of money as it is said: `4 cents`, `0.3 cents`, `$1.20`."""
    if usd >= 0.995:
        return f"${usd:,.2f}"
    if usd >= 0.0095:
        whole_cents = round(usd * 100)
        return "1 cent" if whole_cents == 1 else f"{whole_cents} cents"
    return f"{usd * 100:.1g} cents" if usd >= 0.0001 else "less than 0.01 cents"


def roughly(seconds: float) -> str:
    """Return a time as it is said: `42 s`, `7 min`, `2 h 05 min`, `31 h`."""
    if seconds < MINUTE_S - 0.5:
        return duration(seconds)
    minutes = round(seconds / MINUTE_S)
    if minutes < 60:
        return f"{minutes} min"
    if seconds < HOURS_SHOWN * HOUR_S:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{round(seconds / HOUR_S):,} h"
