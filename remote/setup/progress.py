"""Says how far a step of set-up is, from the end of its log: packages counted, time gone by."""

from __future__ import annotations

import re
from dataclasses import dataclass

BEGUN = re.compile(r"^qft: (\d+) packages$", re.MULTILINE)
"""What the step that makes the environment says before pip begins."""
NOTICE = re.compile(r"^qft: (?!\d+ packages$)(?!sha256)(.*)$", re.MULTILINE)
COLLECTED = re.compile(r"^(?:Collecting|Requirement already satisfied:) (\S+)", re.MULTILINE)
FETCHED = re.compile(r"^  Downloading (\S+)(?: \(([^)]*)\))?", re.MULTILINE)
INSTALLING = re.compile(r"^Installing collected packages:", re.MULTILINE)
PLANNED = re.compile(r"^(\d+) upgraded, (\d+) newly installed, (\d+) to remove", re.MULTILINE)
GOT = re.compile(r"^Get:\d+ ", re.MULTILINE)
UNPACKED = re.compile(r"^Unpacking (\S+)", re.MULTILINE)
SET_UP = re.compile(r"^Setting up (\S+)", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class StepProgress:
    """How far one step is."""

    name: str
    """What the step does, in the imperative."""

    def line(self, log: str, elapsed_s: float) -> str:
        """One line for people: what is done, how many of how many, and the time so far."""
        counted = pip_counted(log) or apt_counted(log)
        what = f"{counted}, {format_duration(elapsed_s)}" if counted else format_duration(elapsed_s)
        notices = NOTICE.findall(log)
        return f"{self.name}: {what}" + (f" ({notices[-1].strip()})" if notices else "")


def pip_counted(log: str) -> str:
    """How far pip is; empty if the log is none of pip's.

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


def apt_counted(log: str) -> str:
    """How far apt is with the installation that it began last; empty if it has not begun one."""
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
    for pattern, words in counts:
        if done := len(pattern.findall(rest)):
            return f"{min(done, total)} of {total} {words}"
    return f"0 of {total} packages fetched" if total else ""


def format_duration(elapsed_s: float) -> str:
    """Write a time so far as people do: `45 s`, `1 min 10 s`, `1 h 02 min`."""
    whole = int(elapsed_s)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"
