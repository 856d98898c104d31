"""What was planned when a run began, kept beside its journal, to be held against what happened."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from commands.runs.home import RunFolder
from infra.durable import read_json, write_json
from infra.untrusted import number, table, text
from trainer.estimate.span import Span

FIGURE_MAX = 1e15


@dataclass(frozen=True, kw_only=True)
class Planned:
    """The plan of a run at the moment when it began; a figure that was not known is None."""

    at_s: float
    """When it was made, in seconds since 1970."""
    card: str
    place: str
    """Size and region of the offer that came first; empty where nothing is rented."""
    usd_per_h: float | None
    memory_bytes: Span | None
    hours: dict[str, Span]
    """Of each part of the job, by the names of `JobPart`."""
    usd: dict[str, Span]
    """Of each part of the bill, such as `compute`, `disk`."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values, from which `read_planned` makes the same plan."""
        return asdict(self)


def write_planned(folder: RunFolder, planned: Planned) -> None:
    """Keep the plan in the record of the run, whole or not at all."""
    write_json(folder.plan, planned.to_json())


def read_planned(folder: RunFolder) -> Planned | None:
    """Return the plan with which the run began; None if there is none, or it cannot be read."""
    try:
        found = table(read_json(folder.plan))
    except (OSError, ValueError):  # a run from before plans were kept, or a file of somebody else
        return None
    at_s = number(found.get("at_s"), most=FIGURE_MAX)
    if at_s is None:
        return None
    return Planned(
        at_s=at_s,
        card=text(found.get("card")) or "",
        place=text(found.get("place")) or "",
        usd_per_h=number(found.get("usd_per_h"), most=FIGURE_MAX),
        memory_bytes=_span(found.get("memory_bytes")),
        hours=_spans(found.get("hours")),
        usd=_spans(found.get("usd")),
    )


def _spans(value: object) -> dict[str, Span]:
    spans = {name: _span(each) for name, each in table(value).items()}
    return {name: each for name, each in spans.items() if each is not None}


def _span(value: object) -> Span | None:
    found = table(value)
    low, likely, high = (
        number(found.get(key), most=FIGURE_MAX) for key in ("low", "likely", "high")
    )
    if low is None or likely is None or high is None:
        return None
    return Span(low=low, likely=likely, high=high)
