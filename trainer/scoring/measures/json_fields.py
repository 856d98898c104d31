"""JSON answers by field: how many of the right values an answer has, and how many it makes up.

A leaf is a place in a value that holds no other one: a text, a number, true, false, null, or an
empty object or list. An answer's leaf is right if the right answer has the same value in the same
place. Precision, recall and F1 are of all leaves of all answers together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import numpy as np

from trainer.eval_tables.text import ToleranceTable
from trainer.scoring.measures.json_text import JsonValue, canonical, read_json
from trainer.scoring.measures.measure import UNREADABLE, AnswerScore, Figure, Floats, ratio
from trainer.scoring.measures.number_text import within

RIGHT, FOUND, WANTED, EXACT, READABLE, ANSWERS = range(6)
"""The statistics of an answer; the first three count leaves, of the answer and of the right one."""
DOUBLED = "doubled_keys"
ANY_ENTRY = -1
"""Stands in a place for the entries of a list whose order does not count."""

Place = tuple[str | int, ...]


@dataclass(frozen=True, kw_only=True)
class JsonFields:
    """The measure `json`.

    With `unordered` the entries of a list count wherever they stand. A doubled key is one wrong
    leaf more, and the answer is not exact.
    """

    tolerance: ToleranceTable
    unordered: bool = False
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def figures(self) -> Mapping[str, Figure]:
        """Micro F1, precision and recall over leaves; shares of exact and of readable answers."""
        return {
            "json": Figure(value=_f1),
            "json_precision": Figure(value=ratio(RIGHT, FOUND)),
            "json_recall": Figure(value=ratio(RIGHT, WANTED)),
            "json_exact": Figure(value=ratio(EXACT, ANSWERS), share=True),
            "json_readable": Figure(value=ratio(READABLE, ANSWERS), share=True),
        }

    def compare(self, answer: str, reference: str) -> AnswerScore:
        """Compare an answer with a right answer that is JSON."""
        right = read_json(reference)
        wanted = self._leaves(right.value) if right is not None else {}
        found = read_json(answer)
        leaves = self._leaves(found.value) if found is not None else {}
        by_place = {
            place: self._shared(values, leaves.get(place, ())) for place, values in wanted.items()
        }
        total = sum(map(len, leaves.values())) + (found.doubled_keys if found else 0)
        counts = (sum(by_place.values()), total, sum(map(len, wanted.values())))
        exact = found is not None and counts[0] == counts[1] == counts[2]
        sums = (*map(float, counts), float(exact), float(found is not None), 1.0)
        return AnswerScore(
            score=float(_f1(np.array(sums))),
            statistics=sums,
            notes=_notes(found),
            parts=_by_field(wanted, by_place),
        )

    def _leaves(self, value: Any) -> dict[Place, tuple[Any, ...]]:
        """Return the leaves of a value by their places; in a list without order, several of one."""
        found: dict[Place, tuple[Any, ...]] = {}
        waiting: list[tuple[Place, Any]] = [((), value)]
        while waiting:
            place, one = waiting.pop()
            if isinstance(one, dict) and one:
                waiting += [((*place, key), inner) for key, inner in one.items()]
            elif isinstance(one, list) and one and self.unordered:
                found[*place, ANY_ENTRY] = tuple(one)
            elif isinstance(one, list) and one:
                waiting += [((*place, at), inner) for at, inner in enumerate(one)]
            else:
                found[place] = (one,)
        return found

    def _shared(self, wanted: tuple[Any, ...], found: tuple[Any, ...]) -> int:
        """Return how many values two leaves share; numbers need only be within the tolerance."""
        left, given = (Counter(map(canonical, values)) for values in (wanted, found))
        shared = (left & given).total()
        targets, numbers = (sorted(_without(values, left & given)) for values in (wanted, found))
        while targets and numbers:
            target, one = targets[-1], numbers[-1]
            near = within(one, target, self.tolerance)
            shared += near
            if near or target > one:
                targets.pop()
            if near or target < one:
                numbers.pop()
        return shared


def _without(values: tuple[Any, ...], taken: Counter[str]) -> list[Decimal]:
    """Return the numbers among some values that are left when some are taken away."""
    rest, left = Counter(taken), []
    for value in values:
        if isinstance(value, Decimal):
            key = canonical(value)
            if rest[key]:
                rest[key] -= 1
            else:
                left.append(value)
    return left


def _f1(sums: Floats) -> Floats:
    out: Floats = np.zeros(sums.shape[:-1])
    below = sums[..., FOUND] + sums[..., WANTED]
    np.divide(2 * sums[..., RIGHT], below, out=out, where=below > 0)
    return out


def _notes(found: JsonValue | None) -> tuple[str, ...]:
    if found is None:
        return (UNREADABLE,)
    return (DOUBLED,) * (found.doubled_keys > 0)


def _by_field(
    wanted: Mapping[Place, tuple[Any, ...]], shared: Mapping[Place, int]
) -> dict[str, tuple[float, float]]:
    """Return for each field of a right answer how many of its values are right, of how many.

    Fields are named as in `items[].price`, and a value that is no object `$`.
    """
    found: dict[str, tuple[float, float]] = {}
    for place, values in wanted.items():
        name = "".join("[]" if isinstance(part, int) else f".{part}" for part in place)
        name = name.removeprefix(".") or "$"
        right, total = found.get(name, (0.0, 0.0))
        found[name] = (right + shared[place], total + len(values))
    return found
