"""Follows a run that another process drives: looks at the same machine and changes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable

from commands.runs import factory
from commands.runs.home import is_locked
from commands.runs.request import RunRequest
from commands.runs.session import build_workload
from commands.runs.take_lock import lock_taker_of
from commands.ui.nodes import each_node, leader
from infra.run import actions as act
from infra.run.budget import bill
from infra.run.context import TurnReport
from infra.run.decide import Seen
from infra.run.fold import fold
from infra.run.journal import read
from infra.run.state import RunEnd, RunState
from infra.run.workload import HostNotTrusted, HostUnfit, HostUnreachable, JobView

POLL_EVERY_S = 1.0


def follow(
    request: RunRequest, *, began: int | None = None, sleep: Callable[[float], None] = time.sleep
) -> RunEnd | None:
    """Show the run until its driver ends it; None if the driver died without an ending.

    An ending counts that is later than the first `began` events: those there were when this command
    was typed, or as it begins to follow. A driver that another `qft` ends is not followed up: that
    one writes the ending. The journal is only read, and the trainer only looked at.
    """
    first = fold(read(request.folder.journal))
    provider = factory.make_provider(request.loaded.config.vm, request.home)
    workload = build_workload(request, first.run_id, provider, watch_only=True)
    began = len(read(request.folder.journal)) if began is None else began
    try:
        while True:
            # First, so that what a driver wrote before it left is among what is read after.
            driven = is_locked(request.folder) or lock_taker_of(request.folder) is not None
            events = read(request.folder.journal)
            state = fold(events)
            if state.ending is not None and len(events) > began:
                return state.ending
            if not driven:
                return None
            now_s = time.time()
            job = _glance(workload.job_status, each_node(state)[leader(state)])
            request.console.report(
                TurnReport(
                    state=state,
                    seen=Seen(job=job),
                    action=act.Wait(wait_s=POLL_EVERY_S, reason="following another `qft`"),
                    bill=bill(state, now_s),
                    now_s=now_s,
                )
            )
            sleep(POLL_EVERY_S)
    finally:
        workload.disconnect()


def _glance(look: Callable[..., JobView], state: RunState) -> JobView | None:
    """Look at the trainer if there is one; what the machine's own trouble is, its driver tells."""
    if state.vm is None or not state.up or not state.launched:
        return None
    try:
        return look(state.vm)
    except (HostUnreachable, HostNotTrusted, HostUnfit):
        return None
