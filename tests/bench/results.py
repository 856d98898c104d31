"""Computes medians, ratios and slopes from samples, and decides which goals are met."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.measure import Goal, Growth, Limit, Ratio, Sample
from bench.rounds import Collected


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One ratio, value or slope as measured, and whether it is as it must be."""

    measure: str
    text: str  # what is compared, such as "qft / rsync"
    value: float | None  # None: not measured
    rounds: int
    bound: str  # such as ">= 1.35", empty if it is printed only
    met: bool
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return it for the results file."""
        return dict(vars(self))


def medians(collected: Collected) -> dict[str, float]:
    """Return the median value of every variant that was measured."""
    return {
        name: statistics.median(sample.value for sample in found.values())
        for name, found in collected.samples.items()
        if found
    }


def judge(collected: Collected) -> list[Verdict]:
    """Compare a measure with its goals; one that was not measured is missed if it has a bound."""
    verdicts = []
    for goal in collected.measure.goals:
        match goal:
            case Ratio():
                text, values, note = _ratio(goal, collected)
            case Limit():
                samples = collected.samples.get(goal.of, {}).values()
                values = [
                    number for one in samples if (number := _number(one, goal.on)) is not None
                ]
                text, note = _shown(goal.on, goal.of), goal.note
            case Growth():
                text, values, note = f"{goal.name}: slope", _slope(goal, collected), ""
        value = statistics.median(values) if values else None
        verdicts.append(_verdict(goal, collected, text, value, rounds=len(values), note=note))
    return verdicts


def _verdict(
    goal: Goal, collected: Collected, text: str, value: float | None, *, rounds: int, note: str
) -> Verdict:
    least = None if isinstance(goal, Growth) else goal.at_least
    most = goal.at_most
    bounds = [f">= {least:g}"] if least is not None else []
    bounds += [f"<= {most:g}"] if most is not None else []
    met = not bounds or (
        value is not None and (least is None or value >= least) and (most is None or value <= most)
    )
    problem = "; ".join(dict.fromkeys(collected.problems.values())) if value is None else ""
    return Verdict(
        measure=collected.measure.name,
        text=text,
        value=value,
        rounds=rounds,
        bound=" and ".join(bounds),
        met=met,
        note=f"not measured: {problem}" if problem else note,
    )


def _ratio(goal: Ratio, collected: Collected) -> tuple[str, list[float], str]:
    """Return what is compared, the ratio of every round that has both, and the note."""
    middle = medians(collected)
    peers = [name for name in goal.over if name in middle]
    failed = [name for name in goal.over if name in collected.problems and name not in middle]
    if not peers:
        return _shown(goal.on, f"{goal.of} / {goal.over[0]}"), [], goal.note
    most = max(len(collected.samples[name]) for name in peers)
    best = max if collected.measure.higher_is_better else min
    peer = best(
        (name for name in peers if len(collected.samples[name]) == most), key=middle.__getitem__
    )
    mine, others = collected.samples.get(goal.of, {}), collected.samples[peer]
    values = [mine[at].value / others[at].value for at in mine if at in others and others[at].value]
    notes = [goal.note] if goal.note else []
    notes += [f"best of {len(peers)}"] if len(goal.over) > 1 else []
    notes += [f"without {', '.join(failed)}"] if failed else []
    return _shown(goal.on, f"{goal.of} / {peer}"), values, "; ".join(notes)


def _number(sample: Sample, on: str) -> float | None:
    return sample.also.get(on) if on else sample.value


def _shown(on: str, text: str) -> str:
    return f"{on}: {text}" if on else text


def _slope(goal: Growth, collected: Collected) -> list[float]:
    """Return the slope of every round that has all sizes."""
    numbers = sorted({at for name in goal.of for at in collected.samples.get(name, {})})
    series = [growth_points(goal, collected, number) for number in numbers]
    return [slope(points) for points in series if len(points) == len(goal.of)]


def growth_points(goal: Growth, collected: Collected, number: int) -> list[tuple[float, float]]:
    """Return size and value of the variants of one round that were measured."""
    points = []
    for name in goal.of:
        sample = collected.samples.get(name, {}).get(number)
        value = None if sample is None else _number(sample, goal.on)
        if value is not None:
            points.append((collected.sizes[name], value))
    return points


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the exponent of the power law nearest to some (size, value), all above zero."""
    x, y = [[math.log(part) for part in axis] for axis in zip(*points, strict=True)]
    return statistics.linear_regression(x, y).slope
