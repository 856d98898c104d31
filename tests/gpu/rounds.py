"""What is done in which order: the most telling first, what is timed alone, the rest side by side.

A unit is one job and its acts, one after the other; the units of a round share the machine as its
lanes allow. What finds no time left is named in the table as not run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from gpu.acts import Act, Job, Place, attempt, compare_speed, kill_and_resume, train, verify
from gpu.lines import Line

TRAIN, RESUME, VERIFY, SPEED = (
    "load and train", "SIGKILL and resume", "verify", "transformers.Trainer",
)  # fmt: skip
PAGED_RANK = 64  # bitsandbytes pages tensors of 100,000 elements or more only: 64 x 2048
LANE_BYTES = 30e9  # of the card's memory for each training beside others
LANE_CORES = 3
LANES_MAX = 4

ONE = Job(model="1b")
EIGHT = Job(model="8b", expect_s=35.0, limit_s=170.0)
TINY = Job(model="tiny", expect_s=8.0, limit_s=120.0)


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One job and what is done with it, in this order."""

    job: Job
    acts: tuple[tuple[str, Act], ...]


@dataclass(frozen=True, kw_only=True)
class Round:
    """Units that run side by side, in lanes; alone if there is one lane."""

    units: tuple[Unit, ...]
    lanes: int = 1


def alone(job: Job) -> Unit:
    """Train undisturbed, with nothing beside it, for its speed."""
    return Unit(job=job, acts=((TRAIN, partial(train, alone=True)),))


def through(job: Job) -> Unit:
    """Kill, resume and verify a job whose undisturbed run is there."""
    return Unit(job=job, acts=((RESUME, kill_and_resume), (VERIFY, verify)))


def whole(job: Job) -> Unit:
    """Everything but the speed."""
    return Unit(job=job, acts=((TRAIN, partial(train, alone=False)), *through(job).acts))


def speed(job: Job) -> Unit:
    """Compare the speed with that of `transformers.Trainer`."""
    return Unit(job=job, acts=((SPEED, compare_speed),))


def card_rounds(lanes: int) -> list[Round]:
    """Return what is done on a card, in the order of what it tells.

    bfloat16 first, alone, with one comparison of speed; then kills and the other arithmetic, side
    by side, of which what pages to the host's memory is last; then the other comparison.
    """
    one16, eight16 = (
        Job(model=job.model, precision="fp16", expect_s=job.expect_s, limit_s=job.limit_s)
        for job in (ONE, EIGHT)
    )
    kept = [
        Job(model="1b", optimizer=name, r=PAGED_RANK) for name in ("adamw8bit", "paged_adamw8bit")
    ]
    return [
        Round(units=(alone(ONE), speed(ONE), alone(EIGHT))),
        Round(
            units=(through(ONE), through(EIGHT), whole(eight16), whole(one16), *map(whole, kept)),
            lanes=lanes,
        ),
        Round(units=(speed(EIGHT),)),
    ]


def tiny_rounds() -> list[Round]:
    """Return what is done without a card, with a model of seconds."""
    return [Round(units=(whole(TINY),))]


def lanes_for(memory_bytes: float | None, cores: int) -> int:
    """Return how many trainings share a card of that memory and so many cores."""
    if not memory_bytes:
        return 1
    return max(1, min(int(memory_bytes // LANE_BYTES), cores // LANE_CORES, LANES_MAX))


def do(
    rounds: Sequence[Round],
    place: Place,
    *,
    ready: Callable[[Job], str | None],
    on_line: Callable[[Line], None],
) -> list[Line]:
    """Do all rounds; return the lines in the order of the plan, and `on_line` each as it ends.

    `ready` says why a job cannot be done at all, such as a model that could not be written.
    """
    lines: list[Line] = []
    for one in rounds:
        with ThreadPoolExecutor(one.lanes) as pool:
            waiting = [pool.submit(_unit, unit, place, ready, on_line) for unit in one.units]
            for each in waiting:
                lines += each.result()
    return lines


def _unit(
    unit: Unit, place: Place, ready: Callable[[Job], str | None], on_line: Callable[[Line], None]
) -> list[Line]:
    lines = []
    for name, act in unit.acts:
        line = attempt(act, place, unit.job, what=name, hindrance=ready(unit.job))
        on_line(line)
        lines.append(line)
    return lines
