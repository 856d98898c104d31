"""Trains one configuration undisturbed, then again and again under kills, and compares."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from support import tiny

from chaos_group import progress
from chaos_group.plan import Kill, Kind, last_world, runs_of
from chaos_group.processes import Group, await_true, send
from chaos_group.progress import Progress
from chaos_group.verdict import Outcome, Result, Tried, differences, prefix_differences, problems_of

KILLS_PER_RUN = 5  # so that a run never ends before its last kill
LIMIT_S = 600.0  # for whatever must happen at all, on a machine that does other work too
END_S = 120.0  # for a group to end once it has been hit; what is promised is less
GOOD_CODES = (0, 75, -signal.SIGTERM)  # after a SIGTERM; the last: before it could be handled


@dataclass(frozen=True, kw_only=True)
class Calm:
    """The undisturbed run by one process."""

    outcome: Outcome
    start_s: float  # until the first step
    step_s: float


def train_calmly(run: Path) -> Calm:
    """Train without a kill."""
    began_s = time.monotonic()
    group = Group(run, world=1)
    await_true(lambda: group.has_ended or progress.last_step(run) > 0, limit_s=LIMIT_S)
    start_s = time.monotonic() - began_s
    finish(group, run)
    found = progress.records(run)
    mean_s = sum(record["seconds"] for record in found) / len(found)
    return Calm(outcome=progress.outcome(run), start_s=start_s, step_s=mean_s)


def finish(group: Group, run: Path) -> None:
    """Wait until a start has ended well."""
    ended = await_true(lambda: group.has_ended, limit_s=LIMIT_S)
    left = group.kill_all()
    if not ended or group.parent.returncode != 0:
        raise RuntimeError(f"ended with {group.parent.returncode}: {tail(run)}")
    if left:
        raise RuntimeError(f"processes remained after a good end: {left}")


def tail(run: Path) -> str:
    """Return the end of what a run printed."""
    return (run / "log").read_text(encoding="utf-8", errors="replace")[-3000:]


def try_all(
    name: str,
    kills: Sequence[Kill],
    *,
    config: Mapping[str, Any],
    folder: Path,
    on_message: Callable[[str], None],
) -> Tried:
    """Do the kills of one configuration, in as many runs as they need."""
    tried = Tried(name=name)
    calm = train_calmly(tiny.write_config(folder / "calm", config))
    on_message(f"{name}: {calm.start_s:.1f} s to the first step, {calm.step_s:.3f} s a step")
    for number, chosen in enumerate(runs_of(kills, kills_per_run=KILLS_PER_RUN)):
        run = tiny.write_config(folder / f"run-{number}", config)
        under_kills = _UnderKills(run, calm, tried, on_message)
        try:
            under_kills.do_all(chosen)
        except RuntimeError as error:
            tried.differences.append(f"run {number}: {error}")
        tried.runs += 1
        on_message(f"  run {number}: {'equal' if tried.is_equal else 'DIFFERS'}")
        if not tried.problems:
            shutil.rmtree(run)
    return tried


class _UnderKills:
    """One run that is started, killed and started again until it has ended well."""

    def __init__(
        self, run: Path, calm: Calm, tried: Tried, on_message: Callable[[str], None]
    ) -> None:
        self._run = run
        self._calm = calm
        self._tried = tried
        self._on_message = on_message
        self._open: list[tuple[Result, float]] = []
        """Kills after which no step was done yet, each with its moment."""

    def do_all(self, kills: Sequence[Kill]) -> None:
        """Do the kills of this run, then let it end, and compare it."""
        try:
            for kill in kills:
                self._start_and_kill(kill)
            group, began = Group(self._run, world=last_world(kills)), Progress.of(self._run)
            self._await_steps(group, began, 1)
            finish(group, self._run)
        finally:
            self._close_all(None)
        self._tried.differences += differences(progress.outcome(self._run), self._calm.outcome)

    def _start_and_kill(self, kill: Kill) -> None:
        began = Progress.of(self._run)
        group = Group(self._run, world=kill.world)
        try:
            self._await_moment(group, began, kill)
            if group.has_ended:
                code = group.parent.returncode
                raise RuntimeError(f"ended with {code} before {kill}: {tail(self._run)}")
            before_s = time.monotonic()
            result = self._kill(group, kill)
        finally:
            group.kill_all()
        found = prefix_differences(progress.params(self._run), self._calm.outcome.params)
        self._tried.differences += [f"after {kill}: {text}" for text in found]
        self._open.append((result, before_s))
        self._on_message(
            f"  {kill.kind}, world {kill.world}, after step {progress.last_step(self._run)}: "
            f"ended with {result.code}, the others after {result.left_s or END_S:.1f} s"
        )

    def _await_moment(self, group: Group, began: Progress, kill: Kill) -> None:
        if kill.steps:
            self._await_steps(group, began, kill.steps)
            time.sleep(kill.fraction * self._calm.step_s)
            return
        delay_s = kill.fraction * self._calm.start_s * (1 + kill.world) / 2
        self._await_steps(group, began, 1, limit_s=delay_s)
        is_there = {kill.rank} if kill.kind not in {Kind.PARENT, Kind.NOTICE} else set()
        await_true(lambda: group.has_ended or is_there <= set(group.ranks()), limit_s=LIMIT_S)

    def _await_steps(
        self, group: Group, began: Progress, steps: int, *, limit_s: float = LIMIT_S
    ) -> None:
        """Wait until a start has done so many steps; note when it has done its first."""
        deadline_s = time.monotonic() + limit_s
        for wanted in dict.fromkeys((1, steps)):
            left_s = max(0.0, deadline_s - time.monotonic())
            await_true(
                lambda wanted=wanted: group.has_ended or began.steps_done() >= wanted,  # type: ignore[misc] # mypy does not infer lambdas with defaults
                limit_s=left_s,
            )
            if began.steps_done() and self._open:
                self._close_all(began.base())

    def _close_all(self, base: int | None) -> None:
        """Complete the kills that a step has followed now; None: none will."""
        now_s = time.monotonic()
        for at, (result, moment_s) in enumerate(self._open):
            redone = max(0, result.redone - (base or 0)) if at == 0 and base is not None else 0
            more = problems_of(result.kill, redone=redone, left_s=result.left_s, orphans=())
            self._tried.results.append(
                replace(
                    result,
                    redone=redone,
                    next_step_s=None if base is None else now_s - moment_s,
                    problems=(*result.problems, *more),
                )
            )
        self._open.clear()

    def _kill(self, group: Group, kill: Kill) -> Result:
        """Hit the group, and see how it ends; `redone` of the result is the last step logged."""
        ranks = group.ranks()
        victim = group.parent.pid
        if kill.kind.leaves_survivors:
            if kill.rank not in ranks:
                raise RuntimeError(f"there is no rank {kill.rank} among {ranks}: {tail(self._run)}")
            victim = ranks[kill.rank]
        signals = {Kind.NOTICE: signal.SIGTERM}
        number = signal.SIGSTOP if kill.kind.is_stop else signals.get(kill.kind, signal.SIGKILL)
        began_s = time.monotonic()
        send(victim, number)
        others = [pid for pid in group.pids() if pid not in {victim, group.parent.pid}]
        if kill.kind is Kind.NOTICE:
            others.append(group.parent.pid)
        alone = await_true(lambda: not living(others), limit_s=END_S)
        left_s = time.monotonic() - began_s if alone else None
        await_true(lambda: group.has_ended and not group.pids(), limit_s=END_S)
        code = group.parent.poll()
        orphans = group.kill_all()
        found = problems_of(kill, redone=0, left_s=0.0, orphans=orphans)
        if kill.kind is Kind.NOTICE and code not in GOOD_CODES:
            found.append(f"{kill.kind} in a world of {kill.world}: ended with {code}")
        return Result(
            kill=kill,
            code=code,
            redone=progress.last_step(self._run),
            left_s=left_s,
            problems=tuple(found),
        )


def living(pids: Sequence[int]) -> list[int]:
    """Return those processes that have not ended; one that waits to be reaped has."""
    return [pid for pid in pids if _state(pid) not in {"", "Z", "X"}]


def _state(pid: int) -> str:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
        return text.rpartition(")")[2].split()[0]
    except OSError:
        return ""
