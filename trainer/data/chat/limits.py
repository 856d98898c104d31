"""Ends a chat template that does not end by itself, or that writes without measure.

Loops and calls are counted, so that the same template ends at the same place everywhere; the clock
is there for single steps that are slow.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from trainer.errors import DataError

STEPS_MAX = 5_000_000  # turns of loops and calls in one rendering
TIME_MAX_S = 10.0  # of one rendering
SIZE_MAX = 20_000_000  # characters of one text, elements of one list
STEPS_PER_LOOK = 256  # at the clock


class TemplateLimitError(DataError):
    """A chat template takes too long, or writes too much: no row can be rendered with it."""


@dataclass(kw_only=True)
class Limits:
    """Counts what one rendering does, and ends it where it does too much."""

    clock: Callable[[], float] = time.monotonic
    steps: int = 0
    until: float = 0.0

    def begin(self) -> None:
        """Start to count anew."""
        self.steps, self.until = 0, self.clock() + TIME_MAX_S

    def step(self) -> None:
        """Count one turn of a loop, or one call.

        Raises:
            TemplateLimitError: there were too many, or too much time has passed.
        """
        self.steps += 1
        if self.steps > STEPS_MAX:
            raise TemplateLimitError(
                f"the chat template of this base does not end: {STEPS_MAX:,} steps for one "
                "conversation; use another base, or mend its chat_template"
            )
        if self.steps % STEPS_PER_LOOK == 0 and self.clock() > self.until:
            raise TemplateLimitError(
                f"the chat template of this base takes more than {TIME_MAX_S:.0f} s for one "
                "conversation; use another base, or mend its chat_template"
            )

    def size(self, value: int) -> None:
        """Refuse a text or a list of that size.

        Raises:
            TemplateLimitError: it is larger than any conversation needs.
        """
        if value > SIZE_MAX:
            raise TemplateLimitError(
                f"the chat template of this base writes more than {SIZE_MAX:,} characters for one "
                "conversation; use another base, or mend its chat_template"
            )
