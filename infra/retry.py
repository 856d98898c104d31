"""Retries calls of a provider that fail for a moment: all are safe to repeat, a few times."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from infra.errors import Transient

Result = TypeVar("Result")

TRIES_MAX = 8
PAUSE_S_MAX = 60.0


def with_retries(call: Callable[[], Result], sleep: Callable[[float], None]) -> Result:
    """Repeat `call` at the provider's advised or a doubling pace; raises its last `Transient`.

    One that is `unfinished` is raised at once: its provider has waited as long as it may.
    """
    for attempt in range(TRIES_MAX - 1):
        try:
            return call()
        except Transient as error:
            if error.unfinished:
                raise
            sleep(error.retry_after_s or min(2.0**attempt, PAUSE_S_MAX))
    return call()
