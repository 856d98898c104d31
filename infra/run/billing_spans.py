"""Computes the stretches of time at one price from which the bill of a run is added up."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, kw_only=True)
class Span:
    """A stretch of time at one price; `end_s` None means that it still runs."""

    start_s: float
    end_s: float | None = None
    usd_per_h: float
    compute: bool
    """True while the machine runs, whose compute bills unless its vendor waives that; false while
    only its disk and address bill."""
    provider: str = field(default="", compare=False)
    """Who bills it."""


def open_span(
    spans: tuple[Span, ...], at_s: float, usd_per_h: float, *, compute: bool
) -> tuple[Span, ...]:
    """Close what runs and let a new span run; an equal span that runs already just goes on."""
    if spans and spans[-1].end_s is None:
        last = spans[-1]
        if (last.usd_per_h, last.compute) == (usd_per_h, compute):
            return spans
    return (*close_span(spans, at_s), Span(start_s=at_s, usd_per_h=usd_per_h, compute=compute))


def not_before_last(spans: tuple[Span, ...], at_s: float) -> float:
    """Return a time that is not before the beginning of the last span."""
    return max(at_s, spans[-1].start_s) if spans else at_s


def reprice_span(spans: tuple[Span, ...], at_s: float, usd_per_h: float) -> tuple[Span, ...]:
    """Let the running compute span go on at another price; without one nothing changes."""
    if not spans or spans[-1].end_s is not None or not spans[-1].compute:
        return spans
    return open_span(spans, at_s, usd_per_h, compute=True)


def raise_span(spans: tuple[Span, ...], usd_per_h: float) -> tuple[Span, ...]:
    """Let the running span have cost so much more per hour from its beginning."""
    if not spans or spans[-1].end_s is not None or usd_per_h <= 0:
        return spans
    return (*spans[:-1], replace(spans[-1], usd_per_h=spans[-1].usd_per_h + usd_per_h))


def billed_by(spans: tuple[Span, ...], provider: str) -> tuple[Span, ...]:
    """Return the spans with those of nobody billed by that provider."""
    if not provider or all(span.provider for span in spans):
        return spans
    return tuple(span if span.provider else replace(span, provider=provider) for span in spans)


def close_span(spans: tuple[Span, ...], at_s: float) -> tuple[Span, ...]:
    """End the running span; a clock that jumped back makes it empty, never negative."""
    if not spans or spans[-1].end_s is not None:
        return spans
    last = spans[-1]
    return (*spans[:-1], replace(last, end_s=max(at_s, last.start_s)))


def without_compute(
    spans: tuple[Span, ...], *, from_s: float, to_s: float = math.inf, usd_per_h: float
) -> tuple[Span, ...]:
    """Price the compute between two times as `usd_per_h` of what is not compute.

    For what the provider reports later: that a start came to nothing, or when the machine really
    began to bill or ceased to.
    """
    kept: list[Span] = []
    for span in spans:
        end_s = math.inf if span.end_s is None else span.end_s
        if not span.compute or end_s <= from_s or span.start_s >= to_s:
            kept.append(span)
            continue
        cut_s, resumed_s = max(span.start_s, from_s), min(end_s, to_s)
        if cut_s > span.start_s:
            kept.append(replace(span, end_s=cut_s))
        idle_end_s = None if resumed_s == math.inf else resumed_s
        kept.append(Span(start_s=cut_s, end_s=idle_end_s, usd_per_h=usd_per_h, compute=False))
        if resumed_s < end_s:
            kept.append(replace(span, start_s=resumed_s))
    return tuple(kept)


def with_compute(
    spans: tuple[Span, ...], *, from_s: float, to_s: float, usd_per_h: float
) -> tuple[Span, ...]:
    """Price what is not compute between two times as compute, at `usd_per_h` in all.

    For a machine that ran earlier than anybody here asked it to.
    """
    kept: list[Span] = []
    for span in spans:
        if span.compute or span.end_s is None or span.end_s <= from_s or span.start_s >= to_s:
            kept.append(span)
            continue
        start_s, end_s = max(span.start_s, from_s), min(span.end_s, to_s)
        if span.start_s < start_s:
            kept.append(replace(span, end_s=start_s))
        kept.append(Span(start_s=start_s, end_s=end_s, usd_per_h=usd_per_h, compute=True))
        if end_s < span.end_s:
            kept.append(replace(span, start_s=end_s))
    return tuple(kept)


def waive_compute(
    spans: tuple[Span, ...], *, from_s: float, to_s: float, usd_per_h: float
) -> tuple[Span, ...]:
    """Price the compute between two times as `usd_per_h` of what is beside it: it was free.

    It stays compute, and its hours count: a machine ran, and worked.
    """
    kept: list[Span] = []
    for span in spans:
        end_s = math.inf if span.end_s is None else span.end_s
        free_s, free_end_s = max(span.start_s, from_s), min(end_s, to_s)
        if not span.compute or free_end_s <= free_s:
            kept.append(span)
            continue
        if span.start_s < free_s:
            kept.append(replace(span, end_s=free_s))
        free = replace(span, start_s=free_s, end_s=free_end_s, usd_per_h=usd_per_h)
        kept.append(free)
        if free_end_s < end_s:
            kept.append(replace(span, start_s=free_end_s))
    return tuple(kept)


def drop_open_span(spans: tuple[Span, ...]) -> tuple[Span, ...]:
    """Forget the running span: what it announced was refused and never billed."""
    return spans[:-1] if spans and spans[-1].end_s is None else spans
