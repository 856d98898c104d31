"""Formats and parses times as the seam writes them: ISO 8601 in UTC, to the second."""

from __future__ import annotations

from datetime import UTC, datetime


def format_utc(at_s: float) -> str:
    """Format seconds since the epoch as `2026-11-22T06:50:00Z`."""
    return datetime.fromtimestamp(at_s, tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_utc_s(text: str) -> float | None:
    """Parse an ISO 8601 time to seconds since the epoch; None for an empty or foreign text."""
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):  # the second at the ends of the calendar
        return None
