"""Releases the compute of a run, with the end of its billing and what remains of the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from infra.errors import ProviderError
from infra.provider import PowerState, Provider, Removed, StopReason, Vm
from infra.retry import with_retries
from infra.run.stop_reasons import waiver_data
from infra.timestamps import parse_utc_s


def release(provider: Provider, vm: Vm, sleep: Callable[[float], None]) -> dict[str, Any]:
    """Deallocate the machine; return what the journal holds of the end of its compute.

    `until_s` is when it ceased to bill, None if that is not known. A machine that its vendor took
    meanwhile may have cost nothing since `waived_since_s`. Raises what `Provider.deallocate` does.
    """
    with_retries(lambda: provider.deallocate(vm), sleep)
    until_s = provider.billed_until_s(vm)
    if not vm.interruption_is_free:
        return {"until_s": until_s}
    try:
        seen = with_retries(lambda: provider.observe(vm), sleep)
    except ProviderError:  # it is released all the same, and counts as billed
        return {"until_s": until_s}
    since_s = parse_utc_s(seen.since)
    since = {} if since_s is None else {"since_s": since_s}
    return {"until_s": until_s, **(since | waiver if (waiver := waiver_data(seen)) else {})}


def may_restart(provider: Provider, vm: Vm, sleep: Callable[[float], None]) -> bool:
    """Return whether the provider may start a released machine again by itself.

    It does so with what it has interrupted, and never with what we or a person stopped.
    """
    if not provider.traits_of(vm).restarts_itself:
        return False
    seen = with_retries(lambda: provider.observe(vm), sleep)
    interrupted = seen.stop_reason in {StopReason.EVICTED, StopReason.PRICE}
    return seen.power is PowerState.DEALLOCATED and interrupted


def stop_restarts(
    provider: Provider,
    vm: Vm,
    *,
    now_s: float,
    disk_days: float | None,
    sleep: Callable[[float], None],
) -> list[str]:
    """Set the provider's own safeguards to stop the machine from now on; return their names.

    `disk_days` from now the disk may go, too; None keeps it. None of them is set if the provider
    refuses that: the machine is released all the same.
    """
    try:
        found = with_retries(
            lambda: provider.set_safeguards(vm, until_s=now_s, disk_days=disk_days), sleep
        )
    except ProviderError:  # the caller reports that nothing stops it
        return []
    # The machine's own program has exactly the limit: it learns of it only when somebody connects.
    return [one.name for one in found if one.is_set and one.stops_at_s not in {None, now_s}]


def billed_until_s(removed: Sequence[Removed]) -> float | None:
    """Return when the compute of what was removed ceased to bill; None if that is not known."""
    times_s = [at for one in removed if (at := parse_utc_s(one.billed_until)) is not None]
    return max(times_s, default=None)


def still_there(
    provider: Provider, run_id: str, recorded: Vm | None, sleep: Callable[[float], None]
) -> list[Vm]:
    """List what the provider still has of a run, asking also for the machine in its record.

    A provider that lists by tags does not see what lost them.
    """
    found = with_retries(lambda: provider.list_run(run_id), sleep)
    if found or recorded is None or not provider.traits.rents:
        return found
    seen = with_retries(lambda: provider.observe(recorded), sleep)
    return [] if seen.power is PowerState.GONE else [replace(recorded, power=seen.power)]
