"""Leaves a machine to the vendor that has announced to take it, where that costs less.

EC2 does not bill the first hour of a machine that it interrupts itself, but does if the machine is
stopped from outside after the notice.
"""

from __future__ import annotations

from collections.abc import Callable

from infra.errors import ProviderError
from infra.provider import PowerState, Provider, Vm
from infra.retry import with_retries
from infra.run.workload import HostNotTrusted, HostUnfit, HostUnreachable, JobView

TAKEN_S_MAX = 180.0
"""The notice is of two minutes; a vendor that has not come by then will not come."""
POLL_S = 5.0


def is_announced(vm: Vm, job_status: Callable[[Vm], JobView]) -> bool:
    """Whether the machine is about to be taken, and costs less if it is; False if unknown."""
    if not vm.interruption_is_free:
        return False
    try:
        return job_status(vm).eviction_announced
    except (HostUnreachable, HostNotTrusted, HostUnfit):
        return False


def wait_until_taken(
    provider: Provider,
    vm: Vm,
    *,
    sleep: Callable[[float], None],
    on_message: Callable[[str], None],
    poll_s: float = POLL_S,
) -> None:
    """Return when the machine no longer runs, or the vendor has not come in `TAKEN_S_MAX`.

    Never raises for the provider: whoever releases the machine next meets the same trouble.
    """
    on_message(
        "the provider is about to take the machine, so it is left to do that,"
        f" for {TAKEN_S_MAX / 60:.0f} min at most, since a first hour that it ends is not billed"
    )
    waited_s = 0.0
    while waited_s < TAKEN_S_MAX:
        try:
            seen = with_retries(lambda: provider.observe(vm), sleep)
        except ProviderError:
            return
        if seen.power is not PowerState.RUNNING:
            return
        sleep(poll_s)
        waited_s += poll_s
