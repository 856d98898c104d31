"""Words as people write them: spans of time, the same everywhere, and labels in a list."""

from __future__ import annotations

MINUTE_S, HOUR_S = 60, 3600


def duration(seconds: float) -> str:
    """Return `42 s`, `3 min 05 s` or `7 h 12 min`."""
    whole = max(0, round(seconds))
    if whole < MINUTE_S:
        return f"{whole} s"
    if whole < HOUR_S:
        return f"{whole // MINUTE_S} min {whole % MINUTE_S:02d} s"
    return f"{whole // HOUR_S} h {whole % HOUR_S // MINUTE_S:02d} min"


def bare(word: str) -> str:
    """Return a label of a list without the quotes, brackets or full stop that it is written in."""
    return word.strip().strip("\"'`[]").removesuffix(".").strip()
