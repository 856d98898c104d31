"""Derives the progress of a set-up step from the end of its log: packages counted, elapsed time."""

from __future__ import annotations

import re

BEGUN = re.compile(r"^qft: (\d+) packages$", re.MULTILINE)
"""What the step that makes the environment prints before pip begins."""
NOTICE = re.compile(r"^qft: (?!\d+ packages$)(?!sha256)(.*)$", re.MULTILINE)
COLLECTED = re.compile(r"^(?:Collecting|Requirement already satisfied:) (\S+)", re.MULTILINE)
FETCHED = re.compile(r"^  Downloading (\S+)(?: \(([^)]*)\))?", re.MULTILINE)
INSTALLING = re.compile(r"^Installing collected packages:", re.MULTILINE)
PLANNED = re.compile(r"^(\d+) upgraded, (\d+) newly installed, (\d+) to remove", re.MULTILINE)
GOT = re.compile(r"^Get:\d+ ", re.MULTILINE)
UNPACKED = re.compile(r"^Unpacking (\S+)", re.MULTILINE)
SET_UP = re.compile(r"^Setting up (\S+)", re.MULTILINE)


def progress_line(name: str, log: str, elapsed_s: float) -> str:
    """Return one line for people: how much of the step `name` is done, and the time so far."""
    done = pip_progress(log) or apt_progress(log)
    text = f"{done}, {format_duration(elapsed_s)}" if done else format_duration(elapsed_s)
    notices = NOTICE.findall(log)
    return f"{name}: {text}" + (f" ({notices[-1].strip()})" if notices else "")


def pip_progress(log: str) -> str:
    """Return how many packages pip has fetched; empty if the log is not pip's.

    pip fetches a package right after it has named it, so the one named last is not there yet. What
    an earlier attempt wrote does not count.
    """
    begun = list(BEGUN.finditer(log))
    rest = log[begun[-1].end() :] if begun else log
    total = int(begun[-1][1]) if begun else 0
    named = COLLECTED.findall(rest)
    if not named and not begun:
        return ""
    if INSTALLING.search(rest):
        return f"installing the trainer's packages: {total or len(named)} are there"
    done = max(0, len(named) - 1)
    of = f" of {total}" if total else ""
    fetched = FETCHED.findall(rest)
    size = f" (now {named[-1].partition('==')[0]}{_size(fetched)})" if named else ""
    return f"fetching the trainer's packages: {min(done, total) if total else done}{of}{size}"


def _size(fetched: list[tuple[str, str]]) -> str:
    return f", {fetched[-1][1]}" if fetched and fetched[-1][1] else ""


def apt_progress(log: str) -> str:
    """Return the progress of apt's last installation; empty if it has not begun one."""
    planned = list(PLANNED.finditer(log))
    if not planned:
        return ""
    total = int(planned[-1][1]) + int(planned[-1][2])
    rest = log[planned[-1].end() :]
    counts = [
        (SET_UP, "packages set up"),
        (UNPACKED, "packages unpacked"),
        (GOT, "packages fetched"),
    ]
    for pattern, label in counts:
        if done := len(pattern.findall(rest)):
            return f"{min(done, total)} of {total} {label}"
    return f"0 of {total} packages fetched" if total else ""


def format_duration(elapsed_s: float) -> str:
    """Format a duration: `45 s`, `1 min 10 s`, `1 h 02 min`."""
    whole = int(elapsed_s)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"
