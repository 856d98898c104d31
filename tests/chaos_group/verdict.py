"""Compares runs with the undisturbed one, and makes the table and the verdict of all kills."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from chaos_group.plan import Kill, Kind

LEAVE_S_MAX = 30.0
"""How long the other ranks may stay after one has fallen silent."""


@dataclass(frozen=True)
class Outcome:
    """What must be the same in every run: each step, the adapter and the scores."""

    params: Mapping[int, str]  # by step
    adapter: Mapping[str, str]  # SHA-256 by file
    scores: Mapping[str, Any]  # by stage


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one kill did."""

    kill: Kill
    code: int | None  # with which the group ended; None: it had to be killed
    redone: int  # steps
    left_s: float | None = None  # from the kill until the last survivor had ended
    next_step_s: float | None = None  # from the kill until the next start had done a step
    problems: tuple[str, ...] = ()


@dataclass(kw_only=True)
class Tried:
    """All kills of one configuration."""

    name: str
    results: list[Result] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    runs: int = 0

    @property
    def problems(self) -> list[str]:
        """Return everything that is not as promised."""
        return [*self.differences, *(text for one in self.results for text in one.problems)]

    @property
    def is_equal(self) -> bool:
        """Tell whether no bit differs."""
        return not self.differences

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        return asdict(self) | {"equal": self.is_equal, "problems": self.problems}


def prefix_differences(found: Mapping[int, str], expected: Mapping[int, str]) -> list[str]:
    """Return in which steps a log, which may end early, has other parameters."""
    return [
        f"step {step}: parameters {digest}, expected {expected.get(step)}"
        for step, digest in found.items()
        if expected.get(step) != digest
    ]


def differences(found: Outcome, expected: Outcome) -> list[str]:
    """Return how a finished run differs from the undisturbed one."""
    missing = sorted(set(expected.params) - set(found.params))
    return [
        *prefix_differences(found.params, expected.params),
        *([f"steps {missing} are not in the log"] if missing else []),
        *([] if found.adapter == expected.adapter else ["another adapter"]),
        *([] if found.scores == expected.scores else ["other scores"]),
    ]


def without_times(value: Any) -> Any:
    """Return scores without what a clock measured."""
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if k != "seconds" and not k.endswith("_per_s")}
        return {key: without_times(one) for key, one in kept.items()}
    return [without_times(one) for one in value] if isinstance(value, list) else value


def problems_of(
    kill: Kill, *, redone: int, left_s: float | None, orphans: Sequence[int]
) -> list[str]:
    """Return what a kill has shown that is not as promised, bits apart."""
    found = []
    if kill.world > 1 and kill.kind.leaves_survivors and redone > 1:
        found.append(f"{redone} steps were done again, 1 is the most")
    if kill.kind is Kind.NOTICE and redone:
        found.append(f"{redone} steps were done again in spite of a notice")
    if left_s is None:
        found.append("the other processes did not end by themselves")
    elif kill.kind.is_stop and left_s > LEAVE_S_MAX:
        found.append(f"the other ranks ended {left_s:.1f} s after the loss")
    if orphans:
        found.append(f"processes remained: {list(orphans)}")
    where = f"{kill.kind} in a world of {kill.world}"
    return [f"{where}: {text}" for text in found]


def table(tried: Sequence[Tried]) -> list[str]:
    """Return a line for each configuration, under a head."""
    rows = [("configuration", "kills by kind", "worlds", "redone", "loss to next step", "equal")]
    for one in tried:
        kinds = Counter(str(result.kill.kind) for result in one.results)
        worlds = sorted({result.kill.world for result in one.results})
        rows.append(
            (
                one.name,
                ", ".join(f"{kinds[kind]} {kind}" for kind in Kind if kinds[kind]),
                " ".join(map(str, worlds)),
                f"{sum(result.redone for result in one.results)}",
                _seconds([result.next_step_s for result in one.results]),
                "yes" if one.is_equal else "NO",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _seconds(values: Sequence[float | None]) -> str:
    found = sorted(value for value in values if value is not None)
    if not found:
        return "-"
    return f"{found[len(found) // 2]:.1f} s, at most {found[-1]:.1f}"


def exit_code(tried: Sequence[Tried], *, kills: int) -> int:
    """Return 0 if all kills were done and nothing differs from what is promised, else 1."""
    done = sum(len(one.results) for one in tried)
    return int(done < kills or any(one.problems for one in tried))
