"""What every measure of answers is: a score of each answer, and sums that its figures come from.

A figure over many answers is a function of the sums of their statistics. So a bootstrap over
documents, and the paired difference of two results, add up what is there and compare no text twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

UNREADABLE = "unreadable"
"""The note of an answer that is not of the kind that its measure compares."""


@dataclass(frozen=True, kw_only=True)
class AnswerScore:
    """The score of one answer, and the statistics that its measure adds up.

    `score` is between 0 and 1 and serves to sort and to browse. `notes` names what an answer or
    its comparison showed (`cut`, `unreadable`); how many answers have each note is reported.
    `parts` is for measures with a figure for each part of an answer: (right, of how many) by name.
    """

    score: float
    statistics: tuple[float, ...]
    notes: tuple[str, ...] = ()
    parts: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure of a measure over any number of answers.

    `value` maps summed statistics [..., statistics] to the figure [...]. `share` says that the
    figure is a share of answers (right or wrong), so that Wilson's interval is the right one.
    `maximum` is its best value: 1, or 100 where the measure's library counts so.
    """

    value: Callable[[Floats], Floats]
    share: bool = False
    maximum: float = 1.0


class Measure(Protocol):
    """Compares answers with the right ones."""

    @property
    def figures(self) -> Mapping[str, Figure]:
        """The figures by name; the first is the measure's own, and has its name."""

    @property
    def about(self) -> Mapping[str, Any]:
        """What to keep beside the figures, such as a signature; plain JSON."""

    def compare(self, answer: str, reference: str) -> AnswerScore:
        """Score one answer; any two texts have a score, and none takes long."""


@dataclass(frozen=True, kw_only=True)
class SimpleMeasure:
    """A measure whose figure is the mean of the scores of its answers."""

    name: str
    scored: Callable[[str, str], tuple[float, tuple[str, ...]]]
    share: bool = False
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def figures(self) -> Mapping[str, Figure]:
        """The mean, or the share of right answers."""
        return {self.name: Figure(value=ratio(0, 1), share=self.share)}

    def compare(self, answer: str, reference: str) -> AnswerScore:
        """Score one answer."""
        score, notes = self.scored(answer, reference)
        return AnswerScore(score=score, statistics=(score, 1.0), notes=notes)


def ratio(above: int, below: int) -> Callable[[Floats], Floats]:
    """Return the function that divides one summed statistic by another; 0 where that is 0."""

    def value(sums: Floats) -> Floats:
        out: Floats = np.zeros(sums.shape[:-1])
        np.divide(sums[..., above], sums[..., below], out=out, where=sums[..., below] > 0)
        return out

    return value
