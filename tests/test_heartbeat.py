"""Which attempt of the trainer a heartbeat is of: what an earlier one said counts no more."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from commands.runs.workload import SshWorkload
from infra.provider import Observation, PowerState, StopReason, Vm
from infra.run.heartbeat import SILENCE, Heartbeat, is_of_before, read_heartbeat
from infra.run.observer import StallDetector
from infra.timestamps import format_utc
from remote.job import JobState, JobStatus

STARTED_S = 1_000_000.0
RUNNING = JobStatus(state=JobState.RUNNING, attempt=2, pid=7, started_at=STARTED_S)


@pytest.mark.parametrize(
    ("pid", "beat_s", "before"),
    [
        (5, STARTED_S - 60, True),
        (7, STARTED_S + 5, False),
        (7, STARTED_S - 3600, False),  # the clock was set back after the start
        (5, STARTED_S + 5, False),  # the interpreter is a launcher with a child
    ],
)
def test_a_heartbeat_is_of_before_by_pid_and_time(pid: int, beat_s: float, *, before: bool) -> None:
    """One mark alone may deceive, and a trainer without any heartbeat would be restarted."""
    assert (
        is_of_before(
            Heartbeat(pid=pid, updated_at=format_utc(beat_s)),
            pid=RUNNING.pid,
            started_at=RUNNING.started_at,
        )
        is before
    )


@pytest.mark.parametrize(
    "heartbeat", [{}, {"pid": 5}, {"pid": 5, "updated_at": 3}, {"pid": [], "updated_at": "then"}]
)
def test_strange_heartbeats_are_left_to_others(heartbeat: dict[str, Any]) -> None:
    """The machine may write what it likes there; nothing is concluded from it."""
    assert not is_of_before(
        read_heartbeat(json.dumps(heartbeat)), pid=RUNNING.pid, started_at=RUNNING.started_at
    )


def test_an_eviction_that_is_over_does_not_explain_the_next_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A machine that its owner stops after an eviction is not taken for evicted again."""
    config = SimpleNamespace(
        helper_python="python3",
        pull_lock=None,
        copies=None,
        leads=lambda: True,
        nodes=1,
        rents=True,
        brings_home=False,
        layout=SimpleNamespace(run_dir="qft/x/run"),
        home=Path("/nowhere"),
        expected=lambda: None,
        on_message=lambda _text: None,
    )
    work = SshWorkload(config)  # type: ignore[arg-type]  # as much of a config as is used
    beat = format_utc(STARTED_S - 60)
    old = Heartbeat(pid=5, updated_at=beat, phase="preempted", step=3)
    monkeypatch.setattr(work, "_job", lambda _vm: SimpleNamespace(status=lambda: RUNNING))
    monkeypatch.setattr(work, "_heartbeat", lambda _vm: old)
    watch = StallDetector(now_s=0.0)

    seen = work.job_status(Vm(provider="x", run_id="x", id="x", region="a", size="s"))
    watch.with_durations(seen, 1.0)

    assert (seen.heartbeat, seen.step) == (SILENCE, 0)
    stop = Observation(power=PowerState.DEALLOCATED, stop_reason=StopReason.UNKNOWN)
    assert watch.reason_of(stop) is StopReason.UNKNOWN
