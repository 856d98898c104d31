"""Writes dollars, hours and gigabytes for people: short, with the range in brackets; pure."""

from __future__ import annotations

from trainer.estimate.span import Span

GB = 1e9
CENT = 0.01
MINUTES_PER_H = 60


def dollars(usd: float) -> str:
    """Return `$1.02`, or `$0.004` of less than ten cents."""
    if 0 < usd < CENT / 20:
        return "under $0.001"
    return f"${usd:.3f}" if 0 < usd < 10 * CENT else f"${usd:.2f}"


def hourly(usd_per_h: float) -> str:
    """Return a price per hour with two decimals, or as many as it has, at most four."""
    text = f"{usd_per_h:.2f}"
    return f"${text if float(text) == usd_per_h else f'{usd_per_h:.4f}'}"


def dollars_span(span: Span) -> str:
    """Return `$1.02 ($0.74 to $1.43)`, without a range if there is none."""
    return _with_range(dollars(span.likely), dollars(span.low), dollars(span.high))


def hours(value_h: float) -> str:
    """Return `6.8 h`, or `12 min` of less than an hour."""
    if value_h * MINUTES_PER_H < 1:
        return "under a minute"
    if round(value_h * MINUTES_PER_H) < MINUTES_PER_H:
        return f"{value_h * MINUTES_PER_H:.0f} min"
    return f"{_decimal(value_h)} h"


def hours_span(span: Span) -> str:
    """Return `6.8 h (4.9 to 9.5)`; bounds that are minutes carry their unit."""
    likely, low, high = hours(span.likely), hours(span.low), hours(span.high)
    if all(one.endswith(" h") for one in (likely, low, high)):
        low, high = low.removesuffix(" h"), high.removesuffix(" h")
    elif all(one.endswith(" min") for one in (likely, low, high)):
        low, high = low.removesuffix(" min"), high.removesuffix(" min")
    return _with_range(likely, low, high)


def a_card(name: str) -> str:
    """Return `a T4` or `an A10`, as the letters are spoken."""
    return f"{'an' if name[:1] in 'AFHLMNRSX' else 'a'} {name}"


def gigabytes(span: Span) -> str:
    """Return `6.9 GB (6.2 to 7.9)`, without a range if there is none."""
    low, high = (f"{one / GB:.1f}" for one in (span.low, span.high))
    return _with_range(f"{span.likely / GB:.1f} GB", low, high)


def memory(span: Span, card: str, card_bytes: float) -> str:
    """Return `6.9 GB of the T4's 15.8 (6.2 to 7.9)`."""
    likely, low, high = (f"{one / GB:.1f}" for one in (span.likely, span.low, span.high))
    of = f"{likely} GB of the {card}'s {card_bytes / GB:.1f}"
    return of if low == likely == high else f"{of} ({low} to {high})"


def _with_range(likely: str, low: str, high: str) -> str:
    return likely if low == high and likely.startswith(low) else f"{likely} ({low} to {high})"


def _decimal(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"
