"""What ends the bill without us, set and told: which switches hold, which do not, and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from infra.optional_capabilities import Capping, Guarding, Switch
from infra.provider import Provider, Vm
from infra.retry import with_retries


@dataclass(frozen=True, kw_only=True)
class Guarded:
    """One line for each switch."""

    holding: list[str]
    missing: list[str]
    """With the reason, and how to get it."""


def guard(
    provider: Provider,
    vm: Vm,
    *,
    cap: float | None,
    until_s: float,
    sleep: Callable[[float], None],
) -> Guarded:
    """Set what this provider has, to strike soon after `until_s`, and look which cap it holds.

    `cap` is the one that the user asks for now, USD per hour. Hiccups are ridden out with `sleep`.
    """
    switches: Sequence[Switch] = ()
    if isinstance(provider, Guarding):
        switches = with_retries(lambda: provider.set_safeguards(vm, until_s=until_s), sleep)
    holding = [f"{one.name}: {one.detail}" for one in switches if one.holds]
    missing = [_missing(one) for one in switches if not one.holds]
    if isinstance(provider, Capping):
        held = with_retries(lambda: provider.update_max_price(vm, cap), sleep)
        if held != cap:
            missing.append(_other_cap(held, cap))
    return Guarded(holding=holding, missing=missing)


def _missing(switch: Switch) -> str:
    """A switch that could not be set: which, why, and how to get it."""
    how = f"; to get it: {switch.hint}" if switch.hint else ""
    return f"{switch.name}: {switch.detail}{how}"


def _other_cap(held: float | None, wanted: float | None) -> str:
    """The machine runs under another cap than the one asked for since."""
    now = "none" if held is None else f"{held} USD/h"
    return (
        f"price cap: the machine's is {now}, not the {wanted} USD/h asked for: it changes only "
        "while the machine is deallocated; to get it: `qft down`, then the same command"
    )
