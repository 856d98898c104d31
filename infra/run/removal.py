"""Releases and removes through the seam, with what its providers can tell about it meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from infra.optional_capabilities import Dating, Telling
from infra.provider import PowerState, Provider, Removed, Vm
from infra.retry import with_retries
from infra.timestamps import parse_utc_s


def release(provider: Provider, vm: Vm, sleep: Callable[[float], None]) -> float | None:
    """Deallocate the machine; when it ceased to bill compute, None if the provider cannot tell.

    Raises what `Provider.deallocate` does.
    """
    with_retries(lambda: provider.deallocate(vm), sleep)
    return provider.billed_until_s(vm) if isinstance(provider, Dating) else None


def remove(
    provider: Provider, run_id: str, tell: Callable[[str], None], sleep: Callable[[float], None]
) -> list[Removed]:
    """Remove everything of the run, telling how far it is. Raises what `Provider.delete` does."""
    if isinstance(provider, Telling):
        return with_retries(lambda: provider.delete_telling(run_id, tell), sleep)
    return with_retries(lambda: provider.delete(run_id), sleep)


def billed_until_s(removed: Sequence[Removed]) -> float | None:
    """When the compute of what was removed ceased to bill; None if the provider does not tell."""
    times_s = [at for one in removed if (at := parse_utc_s(one.billed_until)) is not None]
    return max(times_s, default=None)


def still_there(
    provider: Provider, run_id: str, known: Vm | None, sleep: Callable[[float], None]
) -> list[Vm]:
    """What the provider lists of a run; asked by its id, too, where a machine of it is known.

    Who lists by tags does not see what lost them.
    """
    found = [vm for vm in with_retries(provider.list_all, sleep) if vm.run_id == run_id]
    if found or known is None or not provider.traits.rents:
        return found
    seen = with_retries(lambda: provider.observe(known), sleep)
    return [] if seen.power is PowerState.GONE else [replace(known, power=seen.power)]
