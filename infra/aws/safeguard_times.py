"""Decides when each safeguard of a machine takes effect: arithmetic, in seconds since 1970.

    limit             qft and the machine itself stop it
    limit             Scheduler stops it, and again every 15 minutes for a day or longer
    limit + 1 h       EC2 ends the spot request: it restarts and replaces nothing any more
    limit + N days    with `budget: {disk_days: N}`: Scheduler cancels the request and terminates

One stop is not enough: EC2 starts a machine again that happened to be interrupted at that moment.
Nothing cancels the request unless the disk may go, since that deletes the disk of a stopped machine
(EC2 user guide, "Terminate a Spot Instance"). And a machine whose request is cancelled or over
cannot be stopped any more, only terminated ("Stop a Spot Instance", limitations): so no limit may
lie beyond the end of the request, and a later one needs another machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S
EXPIRES_AFTER_S = HOUR_S
"""How long after the limit the spot request ends."""
LAST_STOP_BEFORE_S = 600.0
"""The last limit that a machine can be held to lies so long before the end of its request."""
STOP_EVERY_MIN = 15
STOPS_FOR_S = DAY_S
LEAD_S = 120.0
"""Scheduler works by the minute, and refuses a time that has passed."""
TERMINATE_AFTER_S = 300.0
"""Terminated before the request is cancelled, a machine would be replaced by a new one."""
DISK_AFTER_S_MIN = HOUR_S
"""A machine is stopped for at least so long before its disk goes."""
START_GRACE_S = 1800.0
"""How long a machine that is started again is left alone until its new limit is set."""


def request_expiry_s(until_s: float) -> float:
    """When the spot request of a machine with the limit `until_s` is to end (`ValidUntil`)."""
    return math.ceil(until_s) + EXPIRES_AFTER_S


def latest_limit_s(expires_s: float) -> float:
    """The latest limit that holds for a machine whose spot request ends at `expires_s`."""
    return expires_s - LAST_STOP_BEFORE_S


@dataclass(frozen=True, kw_only=True)
class ScheduleTimes:
    """When the schedules of one machine act, each on a full minute."""

    stop_s: float
    """The first stop; repeated every `STOP_EVERY_MIN` minutes."""
    stops_end_s: float
    cancel_s: float | None = None
    """When the request is cancelled; None keeps the disk."""
    terminate_s: float | None = None


def schedule_times(
    *, now_s: float, until_s: float, expires_s: float | None, disk_days: float | None
) -> ScheduleTimes:
    """Choose the times for the limit `until_s`.

    `expires_s` is the end of the spot request, None if it has none. `disk_days` after the limit the
    disk may go; None keeps it.
    """
    limit_s = until_s if expires_s is None else min(until_s, latest_limit_s(expires_s))
    stop_s = _minute(max(limit_s, now_s + LEAD_S))
    if disk_days is None:
        # As long as EC2 may still start the machine by itself.
        ends_s = max(stop_s + STOPS_FOR_S, _minute((expires_s or 0.0) + HOUR_S))
        return ScheduleTimes(stop_s=stop_s, stops_end_s=ends_s)
    cancel_s = max(_minute(limit_s + disk_days * DAY_S), stop_s + DISK_AFTER_S_MIN)
    return ScheduleTimes(
        stop_s=stop_s,
        stops_end_s=cancel_s,
        cancel_s=cancel_s,
        terminate_s=cancel_s + TERMINATE_AFTER_S,
    )


def _minute(at_s: float) -> float:
    return math.ceil(at_s / 60) * 60.0
