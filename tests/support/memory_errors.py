"""How well the memory formula predicts rows that its fitted settings have not seen."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from trainer.estimate import loops
from trainer.estimate.points import GB, predict, unit_of
from trainer.estimate.published import source_of
from trainer.estimate.setup import TrainingSetup

Row = Mapping[str, str]
SLACKS = (1.0, 1.05, 1.1, 1.15, 1.2, 1.25, 1.3)
HEADS = (0.5, 0.65, 0.8, 1.0, 1.2, 1.4, 1.6)
"""Parts of a loop's bytes of a logit among which a fit chooses."""
PLAIN = loops.Loop(name="no setting was fitted")
UNFITTED_HEAD = 10.0
"""Bytes of a logit for a loop of which nothing was measured: the middle of the others."""


def relative_error(row: Row, change: Callable[[TrainingSetup], TrainingSetup]) -> float | None:
    """Return predicted over measured minus 1, None where a row has no figure of bytes."""
    found = predict(row, change)
    if found.predicted_gb is None or found.fits is not None:
        return None
    return found.predicted_gb * GB / (float(row["value"]) * unit_of(row)) - 1


def with_settings(slack: float, head: float) -> Callable[[TrainingSetup], TrainingSetup]:
    """Return the change of a training that sets slack, and bytes of a logit as a part."""

    def change(work: TrainingSetup) -> TrainingSetup:
        loop = replace(work.loop, slack=slack, head_bytes=work.loop.head_bytes * head)
        return replace(work, loop=loop)

    return change


def leave_one_out(rows: Sequence[Row]) -> list[float]:
    """Return the error of each row, with slack and its loop's logits fitted on all others."""
    table = {
        (slack, head): [relative_error(row, with_settings(slack, head)) for row in rows]
        for slack in SLACKS
        for head in HEADS
    }
    sources = [source_of(row).words for row in rows]

    def cost(errors: Iterable[float | None], left_out: int, source: str | None) -> float:
        return sum(
            abs(math.log1p(one))
            for at, one in enumerate(errors)
            if one is not None and at != left_out and source in {None, sources[at]}
        )

    found = []
    for at, source in enumerate(sources):
        slack = min(SLACKS, key=lambda one: cost(table[one, 1.0], at, None))
        head = min(HEADS, key=lambda one: (cost(table[slack, one], at, source), abs(one - 1)))
        error = table[slack, head][at]
        found += [] if error is None else [error]
    return found


def leave_one_source_out(rows: Sequence[Row]) -> dict[str, list[float]]:
    """Return the errors of each source, with nothing in the formula that its rows decided.

    Slack is fitted on the rows of the others; context, buffers and bytes of a logit are those of a
    loop of which nothing was measured.
    """
    errors = {slack: [relative_error(row, with_settings(slack, 1.0)) for row in rows]
              for slack in SLACKS}  # fmt: skip
    sources = [source_of(row).words for row in rows]
    found: dict[str, list[float]] = {}
    for source in dict.fromkeys(sources):
        slack = min(
            SLACKS,
            key=lambda one: sum(
                abs(math.log1p(error))
                for at, error in enumerate(errors[one])
                if error is not None and sources[at] != source
            ),
        )

        def change(work: TrainingSetup, slack: float = slack) -> TrainingSetup:
            loop = replace(
                work.loop, slack=slack, head_bytes=UNFITTED_HEAD,
                context_bytes=PLAIN.context_bytes, head_chunk_bytes=None,
                buffer_bytes=min(work.loop.buffer_bytes, loops.QWEN.buffer_bytes),
            )  # fmt: skip
            return replace(work, loop=loop)

        seen = [relative_error(row, change) for row, one in zip(rows, sources, strict=True)
                if one == source]  # fmt: skip
        found[source] = [one for one in seen if one is not None]
    return found


def summary(errors: Iterable[float]) -> str:
    """Return the median and nine tenths of errors without their sign, in words."""
    ordered = sorted(abs(one) for one in errors)
    if not ordered:
        return "none"
    ninth = ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))]
    return f"median {statistics.median(ordered):.1%}, nine tenths within {ninth:.1%}"
