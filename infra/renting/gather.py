"""Asks many questions about offers at once, and returns what was answered in time."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from infra.errors import ProviderError

WORKERS = 8
"""At most as many as an SDK's connection pool keeps."""
GATHER_THREAD = "asking"
"""The name of the threads that may still wait for an answer when nobody does any more."""


@dataclass(kw_only=True)
class Findings:
    """What was learnt of an account in time; what is missing stays open, never assumed."""

    quota: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)
    """By region: used and limit by folded quota name."""
    restricted: dict[str, dict[str, str]] = field(default_factory=dict)
    """By region: why a size (in lower case) cannot be rented as spot; all others can."""
    zones: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    """By region: the zones in which a size (in lower case) is sold to this account."""
    scores: dict[tuple[str, str], str] = field(default_factory=dict)
    """Placement score in the vendor's words by size (in lower case) and region."""
    bands: dict[tuple[str, str], str] = field(default_factory=dict)
    """Eviction band, in the vendor's unit, by size (in lower case) and region."""
    problems: list[str] = field(default_factory=list)
    """What could not be learnt, for people."""


def run_all(jobs: Sequence[Callable[[], None]], problems: list[str], *, wait_s: float) -> None:
    """Run jobs a few at a time and return after `wait_s` of real time at the latest.

    Slow ones go on behind; daemon threads, so that they cannot keep the program from ending.
    """
    waiting = deque(jobs)
    ended: list[None] = []

    def work() -> None:
        while waiting:
            try:
                job = waiting.popleft()
            except IndexError:
                return
            try:
                job()
            except (ProviderError, OSError, ValueError) as error:  # ValueError: closed meanwhile
                problems.append(str(error))
            ended.append(None)

    threads = [
        threading.Thread(target=work, name=GATHER_THREAD, daemon=True) for _ in range(WORKERS)
    ]
    deadline = time.monotonic() + wait_s
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(deadline - time.monotonic(), 0.0))
    late = len(jobs) - len(ended)
    if late:
        problems.append(f"{late} of {len(jobs)} questions were not answered in {wait_s:.1f} s")
