"""Formats spans of time, reads labels and numbers that people wrote, and prints to the log."""

from __future__ import annotations

import sys

MINUTE_S, HOUR_S = 60, 3600


def duration(seconds: float) -> str:
    """Return `42 s`, `3 min 05 s` or `7 h 12 min`."""
    whole = max(0, round(seconds))
    if whole < MINUTE_S:
        return f"{whole} s"
    if whole < HOUR_S:
        return f"{whole // MINUTE_S} min {whole % MINUTE_S:02d} s"
    return f"{whole // HOUR_S} h {whole % HOUR_S // MINUTE_S:02d} min"


def gigabytes(size: float) -> str:
    """Return `6.9 GB`, or `0.48 GB`, in 10^9 bytes."""
    return f"{size / 1e9:.{1 if size >= 1e9 else 2}f} GB"


def inexact(since: int | None) -> str:
    """Return the words for a run whose bits may differ from an undisturbed one's, from a step."""
    return "not bit for bit" if since is None else f"not bit for bit from step {since}"


def bare(word: str) -> str:
    """Return a label of a list without the quotes, brackets or full stop that it is written in."""
    return word.strip().strip("\"'`[]").removesuffix(".").strip()


def positive(text: str) -> int:
    """Read a whole number above zero, for argparse."""
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def amount(text: str) -> float:
    """Read a finite number, zero or above, for argparse."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError(text)
    return value


def print_line(text: str) -> None:
    """Print a line to stderr, which is the log of a job."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - the log of the job is its stderr
