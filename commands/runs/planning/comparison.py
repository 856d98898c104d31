"""Puts what a run took beside what was planned when it began, in words and plain values; pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from commands.runs.planning.actual import PARTS, Actual
from commands.runs.planning.planned import Planned
from trainer.estimate.span import NOTHING, Span

GB = 1e9
UNITS = ((1.0, "h"), (1 / 60, "min"), (1 / 3600, "s"))
"""Hours of each, the largest first."""


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
            card = f" on a {planned.card}" if planned.card else ""
            text = _against(planned.memory_bytes, actual.memory_bytes, gigabytes)
            rows.append(("memory", f"{text}{card}"))
        if hours is not None:
            rows.append(("hours", _against(hours, actual.total_h or None, hours_text)))
        if usd is not None:
            mark = ", simulated" if simulated else ""
            rows.append(("dollars", _against(usd, actual.total_usd, dollars) + mark))
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


def _against(planned: Span, real: float | None, show: Callable[[float], str]) -> str:
    """Say a planned figure with its range, and the real one; alike figures have no range.

    A unit that all share stands once: `planned 6.8 h (4.9 to 9.5), real 5.9 h`.
    """
    low, likely, high = show(planned.low), show(planned.likely), show(planned.high)
    unit = likely.partition(" ")[2]
    if unit and {low.partition(" ")[2], high.partition(" ")[2]} == {unit}:
        low, high = low.partition(" ")[0], high.partition(" ")[0]
    span = f" ({low} to {high})" if planned.low < planned.high else ""
    return f"planned {likely}{span}, " + (
        f"real {show(real)}" if real is not None else "not measured"
    )


def gigabytes(number: float) -> str:
    """Return bytes as `6.8 GB`; small ones as megabytes."""
    return f"{number / GB:.1f} GB" if number >= GB / 2 else f"{number / 1e6:.0f} MB"


def hours_text(hours: float) -> str:
    """Return hours as `6.8 h`, `12 min` or `40 s`, in the largest unit of which there is one."""
    size, unit = next((one for one in UNITS if hours >= one[0]), UNITS[-1])
    count = hours / size
    return f"{count:.1f} {unit}" if unit == "h" else f"{count:.0f} {unit}"


def dollars(usd: float) -> str:
    """Return dollars with cents, or as many digits as a small sum needs."""
    return f"${usd:.2f}" if usd >= 0.1 else f"${usd:.4f}"
