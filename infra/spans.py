"""Stretches of time at one price: what the bill of a run is added up from."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Span:
    """A stretch of time at one price; `end_s` None means that it still runs."""

    start_s: float
    end_s: float | None = None
    usd_per_h: float
    compute: bool
    """True while the machine bills compute, false while only its disk and address bill."""


def open_span(
    spans: tuple[Span, ...], at_s: float, usd_per_h: float, *, compute: bool
) -> tuple[Span, ...]:
    """Close what runs and let a new span run; an equal span that runs already just goes on."""
    if spans and spans[-1].end_s is None:
        last = spans[-1]
        if (last.usd_per_h, last.compute) == (usd_per_h, compute):
            return spans
    return (*close_span(spans, at_s), Span(start_s=at_s, usd_per_h=usd_per_h, compute=compute))


def reprice_span(spans: tuple[Span, ...], at_s: float, usd_per_h: float) -> tuple[Span, ...]:
    """Let the running compute span go on at another price; without one nothing changes."""
    if not spans or spans[-1].end_s is not None or not spans[-1].compute:
        return spans
    return open_span(spans, at_s, usd_per_h, compute=True)


def close_span(spans: tuple[Span, ...], at_s: float) -> tuple[Span, ...]:
    """End the running span; a clock that jumped back makes it empty, never negative."""
    if not spans or spans[-1].end_s is not None:
        return spans
    last = spans[-1]
    return (*spans[:-1], replace(last, end_s=max(at_s, last.start_s)))


def drop_open_span(spans: tuple[Span, ...]) -> tuple[Span, ...]:
    """Forget the running span: what it announced was refused and never billed."""
    return spans[:-1] if spans and spans[-1].end_s is None else spans
