"""Rounds of work that ranks share: what ends one of them on a rank ends it on all, in one place.

Between two calls of `Peers.gather` every rank has to do the same, or one would wait for another
that is elsewhere. So a notice and an error are gathered as values, beside what was done before
them, and then raised on every rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

from trainer.errors import (
    ConfigError,
    DataError,
    Diverged,
    DoesNotFit,
    NoSandbox,
    PeerLost,
    Preempted,
    TrainerError,
)
from trainer.group.peers import Peers
from trainer.untrusted import table

FAILURES: Mapping[str, type[Exception]] = MappingProxyType(
    {
        one.__name__: one
        for one in (
            *(Preempted, ConfigError, DataError, Diverged, DoesNotFit, NoSandbox),
            *(ArithmeticError, AssertionError, AttributeError, IndexError, KeyError, LookupError),
            *(MemoryError, NotImplementedError, OSError, OverflowError, RuntimeError, TypeError),
            *(UnicodeError, ValueError, ZeroDivisionError),
        )
    }
)
"""What another rank can have met; anything else arrives as a RuntimeError that names it."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Round:
    """What the ranks did of a round, and what ended it; both are the same on every rank."""

    done: list[list[Any]]
    """By rank, what it did, in its order."""
    failure: Exception | None
    """That of the lowest rank that has one."""

    def require(self) -> list[Any]:
        """Return all that was done, rank after rank; raise if anything ended the round."""
        if self.failure is not None:
            raise self.failure
        return [one for of_rank in self.done for one in of_rank]


def share(peers: Peers, work: Iterable[Any]) -> Round:
    """Do the work of this rank, and return what that of all ranks gave.

    `work` yields what JSON can hold. What it yielded before it raised an error stands.

    Raises:
        PeerLost: another rank is gone.
    """
    done: list[Any] = []
    mine: Exception | None = None
    try:
        for one in work:
            done.append(one)  # noqa: PERF402 - what was yielded before an error has to stay
    except PeerLost:
        raise
    except Exception as error:
        if peers.lockstep:  # the others are in the middle of a pass: they notice that this one goes
            raise
        mine = error  # raised by `Round.require`, on every rank
    words = [table(one) for one in peers.gather({"done": done, "failure": _written(mine)})]
    failed = [rank for rank, one in enumerate(words) if one.get("failure")]
    failure: Exception | None = None
    if failed:
        own = failed[0] == peers.rank
        failure = mine if own else _read(table(words[failed[0]]["failure"]))
    return Round(done=[list(one.get("done") or ()) for one in words], failure=failure)


def on_all(peers: Peers, act: Callable[[], object]) -> None:
    """Do something on every rank; what it raises on one is raised on all."""

    def work() -> Iterable[None]:
        act()
        return ()

    share(peers, _late(work)).require()


def on_first(peers: Peers, act: Callable[[], T]) -> T:
    """Do something on rank 0 alone and return on every rank what it gave, which JSON can hold.

    What it raises there is raised on all.
    """
    found: list[T] = []

    def work() -> Iterable[T]:
        if peers.rank == 0:
            found.append(act())
        return found

    gathered: list[T] = share(peers, _late(work)).require()
    return found[0] if found else gathered[0]


def _late(work: Callable[[], Iterable[Any]]) -> Iterable[Any]:
    """Begin the work when the first of it is asked for, so that its errors are noticed there."""
    yield from work()


def _written(failure: Exception | None) -> dict[str, Any] | None:
    """Return an error as JSON can hold it."""
    if failure is None:
        return None
    readable = (one.__name__ for one in type(failure).__mro__ if one.__name__ in FAILURES)
    kind = type(failure).__name__
    if isinstance(failure, TrainerError | Preempted | OSError):
        kind = next(readable, kind)
    if isinstance(failure, TrainerError):
        return {"kind": kind, "problems": failure.problems}
    spoken = failure.args[0] if isinstance(failure, KeyError) and failure.args else failure
    return {"kind": kind, "problems": [str(spoken)]}


def _read(written: Mapping[str, Any]) -> Exception:
    """Return the error that another rank met."""
    kind = str(written.get("kind"))
    problems = [str(one) for one in written.get("problems") or ()]
    made = FAILURES.get(kind)
    if made is None:
        return RuntimeError(f"{kind}: {' '.join(problems)}")
    if issubclass(made, TrainerError):
        return made(problems)
    return made(*problems[:1])
