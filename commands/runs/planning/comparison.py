"""Puts what a run took beside what was planned when it began, in words and plain values; pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from commands.runs.planning import figures
from commands.runs.planning.actual import PARTS, Actual
from commands.runs.planning.figures import GB
from commands.runs.planning.planned import Planned
from infra.run.budget import SECONDS_PER_H
from trainer.estimate.span import NOTHING, Span

SHORT_S = 600.0
"""Below it, seconds say more than minutes."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The plan of a run and what it took, of the same run."""

    planned: Planned
    actual: Actual

    def lines(self, *, simulated: bool = False) -> list[tuple[str, str]]:
        """Return rows to print, each a word and its fact; what was not planned has none."""
        planned, actual = self.planned, self.actual
        hours, usd = _total(planned.hours), _total(planned.usd)
        rows = []
        if planned.memory_bytes is not None:
            real = actual.memory_bytes
            peak = None if real is None else _gigabytes(Span.exactly(real))
            rows.append(("memory", _against(_gigabytes(planned.memory_bytes), peak)))
        if hours is not None:
            rows.append(("hours", _times(hours, actual.total_h)))
        if usd is not None:
            mark = ", simulated" if simulated else ""
            spent = _against(figures.dollars_span(usd), figures.dollars(actual.total_usd))
            rows.append(("dollars", f"{spent}{mark}"))
        return rows

    def to_json(self) -> dict[str, Any]:
        """Return plain values: both, and each part of the job with its planned and real hours."""
        planned, actual = self.planned, self.actual
        hours, usd = _total(planned.hours), _total(planned.usd)
        return {
            "planned": planned.to_json()
            | {
                "total_hours": None if hours is None else hours.to_json(),
                "total_usd": None if usd is None else usd.to_json(),
            },
            "actual": actual.to_json(),
            "job_parts": self.parts(),
        }

    def parts(self) -> list[dict[str, Any]]:
        """Return each part of the job in its order; null where it was not planned, or took none."""
        planned, actual = self.planned.hours, self.actual.hours
        names = [*PARTS, *(name for name in planned if name not in PARTS)]
        return [
            {
                "part": name,
                "planned_hours": planned[name].to_json() if name in planned else None,
                "actual_hours": actual.get(name),
            }
            for name in names
            if name in planned or name in actual
        ]


def _total(parts: dict[str, Span]) -> Span | None:
    return sum(parts.values(), NOTHING) if parts else None


def _against(planned: str, real: str | None) -> str:
    return f"planned {planned}, " + ("not measured" if real is None else f"real {real}")


def _times(planned: Span, real_h: float) -> str:
    """Say hours as a plan does, or seconds where all of it was a matter of minutes."""
    if max(planned.high, real_h) * SECONDS_PER_H >= SHORT_S:
        return _against(figures.hours_span(planned), figures.hours(real_h))
    bounds = (planned.low, planned.likely, planned.high)
    low, likely, high = (f"{one * SECONDS_PER_H:.0f}" for one in bounds)
    span = "" if low == likely == high else f" ({low} to {high})"
    return _against(f"{likely} s{span}", f"{real_h * SECONDS_PER_H:.0f} s")


def _gigabytes(span: Span) -> str:
    """Return `7.0 GB (6.0 to 8.0)`."""
    low, likely, high = (f"{one / GB:.1f}" for one in (span.low, span.likely, span.high))
    return f"{likely} GB" if low == likely == high else f"{likely} GB ({low} to {high})"
