"""Runs the variants of a measure in turn, round after round, and keeps every sample."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.measure import Measure, Sample, Unavailable, Variant, Workplace


@dataclass(kw_only=True)
class Collected:
    """What is there of one measure so far."""

    measure: Measure
    samples: dict[str, dict[int, Sample]] = field(default_factory=dict)
    """By variant, then by round; a variant that failed has what it did before."""
    sizes: dict[str, float] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    """By variant, or under "" of all: why it was not measured to the end."""

    def to_json(self) -> dict[str, Any]:
        """Return every sample, for the results file."""
        return {
            "name": self.measure.name,
            "title": self.measure.title,
            "unit": self.measure.unit,
            "samples": {
                variant: [{"round": at, **_sample_json(one)} for at, one in found.items()]
                for variant, found in self.samples.items()
            },
            "problems": self.problems,
        }


def _sample_json(sample: Sample) -> dict[str, Any]:
    return {
        "value": sample.value,
        "wall_s": sample.wall_s,
        "cpu_s": sample.cpu_s,
        **({"also": dict(sample.also)} if sample.also else {}),
        **({"facts": dict(sample.facts)} if sample.facts else {}),
    }


def collect(
    measure: Measure, place: Workplace, *, rounds: int, on_sample: Callable[[Collected], None]
) -> Collected:
    """Open a measure and run all of its variants once a round; what fails is left out from then on.

    The order of the variants turns by one each round, so that none always follows the same other.
    `on_sample` is called after every sample, so that a run that is cut leaves what it has.
    """
    collected = Collected(measure=measure)
    try:
        with measure.open(place) as variants:
            collected.samples = {one.name: {} for one in variants}
            collected.sizes = {one.name: one.size for one in variants if one.size is not None}
            for number in range(rounds):
                turn = 0 if measure.in_order else number % len(variants)
                for variant in [*variants[turn:], *variants[:turn]]:
                    if not _is_over(variant, number, variants, collected):
                        _run(variant, number, collected, place)
                        on_sample(collected)
    except Unavailable as reason:
        collected.problems[""] = str(reason)
    except Exception as error:  # noqa: BLE001 - one measure that breaks must not end the others
        collected.problems[""] = _describe(error)
        place.on_message(traceback.format_exc())
    return collected


def _is_over(
    variant: Variant, number: int, variants: Sequence[Variant], collected: Collected
) -> bool:
    """Tell whether a variant is left out of a round: it failed, has enough rounds, or was beaten.

    It is beaten if another way to use the same tool was better in the first round.
    """
    enough = variant.rounds_max is not None and number >= variant.rounds_max
    if enough or variant.name in collected.problems:
        return True
    if not variant.choice_of:
        return False
    ways = [one.name for one in variants if one.choice_of == variant.choice_of]
    first = {way: collected.samples[way][0].value for way in ways if 0 in collected.samples[way]}
    tried = all(way in first or way in collected.problems for way in ways)
    best = max if collected.measure.higher_is_better else min
    return tried and bool(first) and best(first, key=first.__getitem__) != variant.name


def _run(variant: Variant, number: int, collected: Collected, place: Workplace) -> None:
    before = cpu_seconds()
    began_s = time.perf_counter()
    try:
        sample = variant.run(number)
    except Unavailable as reason:
        collected.problems[variant.name] = str(reason)
        place.on_message(f"  {variant.name}: not measured: {reason}")
        return
    except Exception as error:  # noqa: BLE001 - likewise for one variant
        collected.problems[variant.name] = _describe(error)
        place.on_message(f"  {variant.name}: failed: {error}")
        return
    wall_s = time.perf_counter() - began_s
    used_s = cpu_seconds() - before
    facts: Mapping[str, Any] = {
        **sample.facts,
        "load": round(os.getloadavg()[0], 2),
        **({"others_cpu_s": round(max(0.0, used_s - sample.cpu_s), 2)} if sample.cpu_s else {}),
    }
    collected.samples[variant.name][number] = replace(sample, facts=facts)
    place.on_message(
        f"  round {number + 1}, {variant.name}: {sample.value:.4g} {collected.measure.unit}"
        f" ({wall_s:.1f} s)"
    )


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def cpu_seconds() -> float:
    """Return the CPU seconds that all processes of this machine have used since it was booted."""
    fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
    user, nice, system, _idle, _iowait, irq, softirq = map(int, fields[:7])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
