"""Chooses who is killed, how, when, and with how many ranks: all of it follows from the seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import cycle, islice, pairwise

WORLDS = (1, 3, 2)
"""The world sizes, in the order in which a run goes through them, again and again."""
STEPS_MAX = 5  # a kill comes at most so many steps after the first one of its start
EARLY = 0.2  # of the kills come before the first step of their start


class Kind(StrEnum):
    """What is done to a group."""

    FIRST_RANK = "SIGKILL of rank 0"
    OTHER_RANK = "SIGKILL of another rank"
    PARENT = "SIGKILL of the parent"
    FIRST_SILENT = "SIGSTOP of rank 0"
    OTHER_SILENT = "SIGSTOP of another rank"
    NOTICE = "SIGTERM"

    @property
    def is_stop(self) -> bool:
        """Whether a rank falls silent, but does not end."""
        return self in {Kind.FIRST_SILENT, Kind.OTHER_SILENT}

    @property
    def leaves_survivors(self) -> bool:
        """Whether other ranks live on that can save the last whole step."""
        return self in {Kind.FIRST_RANK, Kind.OTHER_RANK} or self.is_stop


ALONE = (Kind.PARENT, Kind.NOTICE)
"""What can be done to a training by one process, which is its own parent."""


@dataclass(frozen=True, kw_only=True)
class Kill:
    """One kill: of what, of how many, and when."""

    kind: Kind
    world: int
    steps: int
    """How many steps of this start come first; 0: it may come while the model is loaded."""
    fraction: float
    """Of a step, or of the time that a start takes: when the kill comes after these steps."""
    rank: int = 0
    """Which rank is hit, if the kind means one."""


def counts_by_name(names: Sequence[str], kills: int) -> dict[str, int]:
    """Divide the kills among the configurations as evenly as can be; the first get the rest."""
    share, rest = divmod(kills, len(names))
    return {name: share + (at < rest) for at, name in enumerate(names)}


def choose_kills(count: int, chance: random.Random) -> list[Kill]:
    """Choose the kills of one configuration, in order.

    The world size changes from one to the next as in `WORLDS`. Every kind comes once before one
    comes again, as far as the world size permits it.
    """
    kinds = _in_turn(tuple(Kind), chance)
    kinds_alone = _in_turn(ALONE, chance)
    first = chance.randrange(len(WORLDS))
    worlds = islice(cycle(WORLDS), first, first + count)
    return [_choose(world, next(kinds_alone if world == 1 else kinds), chance) for world in worlds]


def _choose(world: int, kind: Kind, chance: random.Random) -> Kill:
    early = chance.random() < EARLY
    steps = 0 if early else chance.randint(1, STEPS_MAX)
    other = kind in {Kind.OTHER_RANK, Kind.OTHER_SILENT}
    rank = chance.randrange(1, world) if other else 0
    return Kill(kind=kind, world=world, steps=steps, fraction=chance.random(), rank=rank)


def _in_turn(kinds: Sequence[Kind], chance: random.Random) -> Iterator[Kind]:
    """Yield all kinds in a random order, then in another one, and so on."""
    while True:
        yield from chance.sample(kinds, len(kinds))


def runs_of(kills: Sequence[Kill], *, kills_per_run: int) -> list[list[Kill]]:
    """Divide the kills into runs, as even as can be, of at most so many each."""
    runs = max(1, -(-len(kills) // kills_per_run))
    bounds = [len(kills) * at // runs for at in range(runs + 1)]
    return [list(kills[low:high]) for low, high in pairwise(bounds)]


def last_world(kills: Sequence[Kill]) -> int:
    """Return how many ranks end the run after its last kill: the next of `WORLDS`."""
    if not kills:
        return WORLDS[1]
    return WORLDS[(WORLDS.index(kills[-1].world) + 1) % len(WORLDS)]
