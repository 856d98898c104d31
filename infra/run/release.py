"""Releases the compute of a run, with the end of its billing and what remains of the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from infra.provider import PowerState, Provider, Removed, Vm
from infra.retry import with_retries
from infra.timestamps import parse_utc_s


def release(provider: Provider, vm: Vm, sleep: Callable[[float], None]) -> float | None:
    """Deallocate the machine; return when it ceased to bill compute, None if that is not known.

    Raises what `Provider.deallocate` does.
    """
    with_retries(lambda: provider.deallocate(vm), sleep)
    return provider.billed_until_s(vm)


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
