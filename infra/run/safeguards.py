"""Sets what ends the bill without us, and lists which safeguards are set, which not, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from infra.provider import Provider, Safeguard, Vm
from infra.retry import with_retries
from infra.run.replacement import other_cap


@dataclass(frozen=True, kw_only=True)
class SafeguardsSet:
    """The safeguards of a machine, one line for each."""

    holding: list[str]
    missing: list[str]
    """With the reason, and how to get it."""
    latest_limit_s: float | None = None
    """The latest limit to which this machine can be held; None: any."""
    other_cap: str = ""
    """Why another cap takes another machine; empty if this one has the cap that is asked for."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a machine is held to."""

    cap: float | None
    """The price cap that the user asks for now, USD per hour."""
    until_s: float
    """When compute is to end, in seconds since 1970."""
    disk_days: float | None = None
    """How long after that the disk may go, too; None keeps it."""


def set_safeguards(
    provider: Provider, vm: Vm, limits: Limits, *, sleep: Callable[[float], None]
) -> SafeguardsSet:
    """Set what this provider has, to end compute at the limit, and check the price cap.

    Hiccups are ridden out with `sleep`.
    """
    found = with_retries(
        lambda: provider.set_safeguards(vm, until_s=limits.until_s, disk_days=limits.disk_days),
        sleep,
    )
    missing = [_missing(one) for one in found if not one.is_set]
    in_force = with_retries(lambda: provider.update_max_price(vm, limits.cap), sleep)
    fixed = not provider.traits_of(vm).cap_changes
    if in_force != limits.cap and not fixed:
        missing.append(_other_cap(in_force, limits.cap))
    holding = [f"{one.name}: {one.detail}" for one in found if one.is_set]
    latest = [one.latest_limit_s for one in found if one.latest_limit_s is not None]
    return SafeguardsSet(
        holding=holding,
        missing=missing,
        latest_limit_s=min(latest, default=None),
        other_cap=other_cap(vm, in_force, limits.cap) if fixed else "",
    )


def _missing(safeguard: Safeguard) -> str:
    """Describe a safeguard that could not be set: why, and how to get it."""
    how = f"; to get it: {safeguard.hint}" if safeguard.hint else ""
    return f"{safeguard.name}: {safeguard.detail}{how}"


def _other_cap(in_force: float | None, wanted: float | None) -> str:
    """Describe that the machine runs under another cap than the one asked for since."""
    now = "none" if in_force is None else f"{in_force} USD/h"
    return (
        f"price cap: the machine's is {now}, not the {wanted} USD/h asked for: it changes only "
        "while the machine is deallocated; to get it: `qft down`, then the same command"
    )
