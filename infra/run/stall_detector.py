"""How long a trainer or its machine has been silent, told by the watcher's own clock."""

from __future__ import annotations

from dataclasses import replace

from infra.provider import Observation, StopReason
from infra.run.decide import JobView

UNWATCHED_S = 600.0
"""Nobody looked for longer than this: the computer slept, and the silence begins anew."""


class StallDetector:
    """Tells how long the trainer has been silent or stalled, on this side's clock.

    The machine's clock may be wrong, so only the change of what it says counts.
    """

    def __init__(self, *, now_s: float) -> None:
        self._beat: object = None
        self._beat_s = now_s
        self._mark: object = None
        self._mark_s = now_s
        self._unreachable_since_s: float | None = None
        self._observed_s = now_s
        self.caller_allowed = False
        """Whether, in this silence, the firewall was asked to let this computer in."""
        self.saw_preemption = False
        """Whether the trainer wrote down that it was told of an eviction."""

    def with_durations(self, job: JobView, now_s: float) -> JobView:
        """Fill in `silent_s` and `stalled_s`."""
        beat = job.heartbeat.updated_at
        mark = (job.step, job.heartbeat.phase, job.heartbeat.message)
        self.saw_preemption |= job.heartbeat.phase == "preempted"
        if beat != self._beat:
            self._beat, self._beat_s = beat, now_s
        if mark != self._mark:
            self._mark, self._mark_s = mark, now_s
        return replace(job, silent_s=now_s - self._beat_s, stalled_s=now_s - self._mark_s)

    def reason_of(self, stop: Observation) -> StopReason:
        """Why the machine stopped; the notice that the trainer wrote down counts if nobody says."""
        reason, saw_preemption = stop.stop_reason or StopReason.UNKNOWN, self.saw_preemption
        self.saw_preemption = False
        return StopReason.EVICTED if saw_preemption and reason is StopReason.UNKNOWN else reason

    def unreachable_for_s(self, now_s: float) -> float:
        """The machine does not answer; return since how many seconds."""
        if self._unreachable_since_s is None or now_s - self._observed_s > UNWATCHED_S:
            self._unreachable_since_s = now_s
            self.caller_allowed = False
        self._observed_s = now_s
        return now_s - self._unreachable_since_s

    def reachable(self) -> None:
        """The machine answers, or is known to be down."""
        self._unreachable_since_s = None
        self.caller_allowed = False
