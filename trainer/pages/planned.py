"""Shows what was planned when a run began against what it took: a plot and a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from markupsafe import Markup

from trainer.pages import bars, html
from trainer.text import HOUR_S, MINUTE_S, duration
from trainer.untrusted import number, table

HEAD = ("", "planned", "range", "real")
GB = 1e9
NOTE = (
    "The range is that in which nine of ten such figures lie. Real hours are those of the record "
    "of the run, divided by what the trainer measured of itself; real memory is the most that its "
    "allocator held."
)


def planned_parts(plan: Mapping[str, Any]) -> list[Markup]:
    """Return the parts of the section; `plan` has `planned`, `actual` and `job_parts`.

    What is not known of a row is empty, and a row of which nothing is known is left out. Raises
    what looking into a document does that is not built so.
    """
    return [
        _plot(_job(plan)),
        html.table(HEAD, planned_rows(plan)),
        html.paragraph(NOTE),
    ]


def planned_rows(plan: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return what was planned and what it took, in the columns of `HEAD`."""
    planned, actual, job = plan["planned"], plan["actual"], _job(plan)
    priced, spent = table(planned["usd"]), table(actual["usd"])
    bills = [_range(name, priced.get(name), spent.get(name)) for name in {**priced, **spent}]
    rows = [
        _row(_range("memory", planned["memory_bytes"], actual["memory_bytes"]), _gigabytes),
        *(_row(one, _time) for one in job),
        _row(_range("time in all", planned["total_hours"], actual["total_hours"]), _time),
        *(_row(one, _dollars) for one in bills),
        _row(_range("dollars in all", planned["total_usd"], actual["total_usd"]), _dollars),
    ]
    return [row for row in rows if any(row[1:])]


def _job(plan: Mapping[str, Any]) -> list[bars.Range]:
    """Return the hours of the parts of the job."""
    return [
        _range(part["part"], part["planned_hours"], part["actual_hours"])
        for part in plan["job_parts"]
    ]


def _range(name: object, planned: object, real: object) -> bars.Range:
    found = table(planned)
    low, likely, high = (number(found.get(key)) for key in ("low", "likely", "high"))
    return bars.Range(name=str(name), low=low, likely=likely, high=high, real=number(real))


def _row(one: bars.Range, show: Callable[[float], str]) -> tuple[str, ...]:
    def text(value: float | None) -> str:
        return "" if value is None else show(value).replace(" ", "\u00a0")

    same = one.low == one.high
    span = "" if same else f"{text(one.low)} to {text(one.high)}"
    return one.name, text(one.likely), span, text(one.real)


def _plot(job: list[bars.Range]) -> Markup:
    """Draw the parts in hours, or in minutes or seconds where all are short."""
    most = max((one.high or one.real or 0.0 for one in job), default=0.0)
    unit, factor = "hours", 1.0
    if most < 1:
        unit, factor = ("minutes", 60.0) if most * HOUR_S >= MINUTE_S else ("seconds", HOUR_S)

    def scaled(value: float | None) -> float | None:
        return None if value is None else value * factor

    ranges = [
        replace(
            one,
            low=scaled(one.low),
            likely=scaled(one.likely),
            high=scaled(one.high),
            real=scaled(one.real),
        )
        for one in job
    ]
    return bars.range_plot("Planned and real time by part", ranges, x=unit)


def _time(hours: float) -> str:
    return duration(hours * HOUR_S)


def _gigabytes(number: float) -> str:
    return f"{number / GB:.2f} GB"


def _dollars(usd: float) -> str:
    return f"${usd:.2f}" if usd >= 0.1 else f"${usd:.4f}"
