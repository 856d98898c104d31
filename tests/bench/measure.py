"""The description of a benchmark: what is run in each round, and which ratios must be reached.

A `Measure` opens what its rounds need (files, a server) and yields its variants, the tools that are
compared. Every round runs every variant once, so that a change of the machine's speed meets all of
them alike; a ratio is the median of the rounds' ratios, never a quotient of two medians.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class Unavailable(Exception):  # noqa: N818 - no error: a tool that this machine lacks
    """A variant cannot be run on this machine; the message says what is missing."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What one variant did in one round."""

    value: float  # in the unit of the measure
    wall_s: float | None = None
    cpu_s: float | None = None  # of all processes of the tool
    also: Mapping[str, float] = field(default_factory=dict)  # further values, by name
    facts: Mapping[str, Any] = field(default_factory=dict)  # anything else for the JSON


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """What a measure gets to work with."""

    folder: Path  # of this measure alone, on a real disk; removed after its last round
    python: Path  # with qft installed
    peers_python: Path  # with the other tools installed; it may be missing
    root: Path  # of the repository
    quick: bool  # smaller sizes, to try the benchmarks themselves
    on_message: Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One tool, or one way to use it.

    `run` does the work once, for the round of that number (from 0), in fresh processes. It raises
    `Unavailable` if the tool is not on this machine; any other error ends this variant, and the
    ratios that need it are missed.

    `choice_of` names a tool of which several variants are tried, each with other settings: after
    the first round only the best of them goes on.
    """

    name: str
    run: Callable[[int], Sample]
    size: float | None = None  # how much it works on, for a `Growth`
    choice_of: str = ""
    rounds_max: int | None = None  # of what is too long for all of them and has no bound


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """The value of a variant divided by that of another, round by round; the median counts.

    With several in `over`, the best of them is meant: of those that were run most often, the one
    with the best median, by the direction of the measure. Without a bound it is printed only.
    """

    of: str
    over: tuple[str, ...]
    at_least: float | None = None
    at_most: float | None = None
    on: str = ""  # which of `Sample.also` is compared; empty: the value itself
    note: str = ""  # what stands beside it in the table


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A bound for the median value of one variant."""

    of: str
    at_least: float | None = None
    at_most: float | None = None
    on: str = ""  # as in `Ratio`
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Growth:
    """How the value of some variants grows with their size: the slope on logarithmic scales.

    A slope of 1 means twice the time for twice the size.
    """

    name: str
    of: tuple[str, ...]
    at_most: float | None = None
    on: str = ""  # as in `Ratio`


Goal = Ratio | Limit | Growth


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One benchmark; `name` has the form `group/what`, and `--only` takes either part."""

    name: str
    title: str  # a line for people: what is measured, with its sizes
    unit: str  # of the values: "s", "tokens/s", "rows/s", "share" …
    higher_is_better: bool
    open: Callable[[Workplace], AbstractContextManager[Sequence[Variant]]]
    goals: tuple[Goal, ...] = ()
    in_order: bool = False  # each variant needs what the one before it did in the same round

    def is_chosen(self, names: Sequence[str]) -> bool:
        """Tell whether one of `names` is the measure or its group; without names, it is chosen."""
        group = self.name.partition("/")[0]
        return not names or self.name in names or group in names
