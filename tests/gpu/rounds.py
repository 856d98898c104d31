"""What is done in which order: the most telling first, what is timed alone, the rest side by side.

A unit is one job and its acts, one after the other; the units of a round share the machine as its
lanes allow. What finds no time left is named in the table as not run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from gpu.acts import Act, attempt, kill_and_resume, train, verify
from gpu.comparisons import EXAMINED, compare, examine, one_by_one
from gpu.jobs import Job, Place
from gpu.lines import Line

TRAIN, RESUME, VERIFY = "load and train", "SIGKILL and resume", "verify"
EXAMINE, PEERS, KERNELS = EXAMINED, "other trainers", "kernels one by one"
PAGED_RANK = 64  # bitsandbytes pages tensors of 100,000 elements or more only: 64 x 2048
LANE_BYTES = 30e9  # of the card's memory for each training beside others
LANE_CORES = 3
LANES_MAX = 4
NAMES = ("card", "speed", "kills", "more-speed", "more-kills", "rest")
"""Of the rounds on a card, in their order."""
LONG = 4096  # tokens of a row, where the order in which attention adds up costs most

ONE = Job(model="1b")
THREE = Job(model="3b", expect_s=25.0, limit_s=140.0)
EIGHT = Job(model="8b", expect_s=35.0, limit_s=170.0)
TINY = Job(model="tiny", expect_s=8.0, limit_s=120.0)
CARD = Job(model="card", expect_s=40.0, limit_s=130.0)


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One job and what is done with it, in this order."""

    job: Job
    acts: tuple[tuple[str, Act], ...]


@dataclass(frozen=True, kw_only=True)
class Round:
    """Units that run side by side, in lanes; alone if there is one lane."""

    name: str
    units: tuple[Unit, ...]
    lanes: int = 1


def alone(job: Job) -> Unit:
    """Train undisturbed, with nothing beside it, for its speed."""
    return Unit(job=job, acts=((TRAIN, partial(train, alone=True)),))


def started(job: Job) -> Unit:
    """Train for the time until the first step, beside others."""
    return Unit(job=job, acts=((TRAIN, partial(train, alone=False)),))


def through(job: Job) -> Unit:
    """Kill, resume and verify a job whose undisturbed run is there."""
    return Unit(job=job, acts=((RESUME, kill_and_resume), (VERIFY, verify)))


def killed(job: Job) -> Unit:
    """Train a job, kill it and resume it; verifying it would say the same."""
    return Unit(job=job, acts=((TRAIN, partial(train, alone=False)), (RESUME, kill_and_resume)))


def whole(job: Job) -> Unit:
    """Everything but the speed."""
    return Unit(job=job, acts=((TRAIN, partial(train, alone=False)), *through(job).acts))


def peers(job: Job, *, expect_s: float, limit_s: float) -> Unit:
    """Compare the speed with that of other trainers, in one process of that length."""
    return Unit(job=replace(job, expect_s=expect_s, limit_s=limit_s), acts=((PEERS, compare),))


def each_kernel(job: Job, *, expect_s: float, limit_s: float) -> Unit:
    """Measure what each kernel is worth, in one process of that length."""
    return Unit(job=replace(job, expect_s=expect_s, limit_s=limit_s), acts=((KERNELS, one_by_one),))


def first_round(lanes: int) -> Round:
    """Return what comes before anything is timed.

    While the card is examined, each base is quantised for the first time, and stored if the trainer
    does so: whatever is timed later finds it there, as a start after an eviction does.
    """
    starts = [replace(job, scale="first start") for job in (EIGHT, ONE, THREE)]
    return Round(
        name="card",
        units=(Unit(job=CARD, acts=((EXAMINE, examine),)), *map(started, starts)),
        lanes=lanes,
    )


def card_rounds(lanes: int, kernels: Sequence[str] = ()) -> list[Round]:
    """Return what is trained on a card, in the order of what it tells; `kernels` are proved ones.

    What finds no time left is left out, so it is what stands last that is dropped first: the usual
    job of 8B and 1B alone, beside other trainers for 1B; their kills, and those of each kernel
    alone; what is timed of 8B, 3B, the kernels and inexact runs; other arithmetic and optimizers,
    of which what pages to the host's memory is last; and what only adds to the above.
    """
    one16, eight16 = (replace(job, precision="fp16") for job in (ONE, EIGHT))
    kept = [replace(ONE, optimizer=name, r=PAGED_RANK) for name in ("adamw8bit", "paged_adamw8bit")]
    single = [replace(ONE, kernels=name, scale="short") for name in kernels]
    long = replace(ONE, length=LONG)
    return [
        Round(
            name="speed",
            units=(alone(EIGHT), alone(ONE), peers(ONE, expect_s=35.0, limit_s=120.0)),
        ),
        Round(
            name="kills", units=(through(EIGHT), through(ONE), *map(killed, single)), lanes=lanes
        ),
        Round(
            name="more-speed",
            units=(
                peers(EIGHT, expect_s=60.0, limit_s=150.0),
                alone(THREE),
                each_kernel(ONE, expect_s=50.0, limit_s=120.0),
                alone(replace(ONE, exact=False)),
            ),
        ),
        Round(
            name="more-kills",
            units=(*map(whole, (one16, kept[0])), through(THREE), *map(whole, (eight16, kept[1]))),
            lanes=lanes,
        ),
        Round(
            name="rest",
            units=(
                alone(long),
                alone(replace(long, exact=False)),
                peers(THREE, expect_s=45.0, limit_s=140.0),
                each_kernel(EIGHT, expect_s=80.0, limit_s=170.0),
            ),
        ),
    ]


def tiny_rounds() -> list[Round]:
    """Return what is done without a card, with a model of seconds."""
    return [Round(name="tiny", units=(whole(TINY),))]


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
        for line in attempt(act, place, unit.job, what=name, hindrance=ready(unit.job)):
            on_line(line)
            lines.append(line)
    return lines
