"""Extra powers that some providers have, each a small protocol, so that a plain one stays plain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from infra.provider import Observation, Removed, Vm, Want


class Switch(Protocol):
    """Something outside this computer that ends compute billing."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    @property
    def holds(self) -> bool:
        """Whether it is set."""
        ...

    @property
    def detail(self) -> str:
        """What it does, or why it could not be set."""
        ...

    @property
    def hint(self) -> str:
        """How to get one that could not be set; empty if it holds or nobody knows."""
        ...


@runtime_checkable
class Guarding(Protocol):
    """To end the bill when everything of ours is dead, and to keep strangers out."""

    def set_safeguards(self, vm: Vm, *, until_s: float) -> Sequence[Switch]:
        """Set every switch that may be set, to strike soon after `until_s`, seconds since 1970.

        Never raises for one that cannot be set. Call again within 23 hours for a later limit.
        """
        ...

    def allow_caller_ip(self, vm: Vm) -> bool:
        """Let the firewall admit the caller's address of now; whether it had to change."""
        ...


@runtime_checkable
class Foreseeing(Protocol):
    """To tell beforehand which switches will hold."""

    def preview_safeguards(self, want: Want, *, until_s: float) -> Sequence[Switch]:
        """What `set_safeguards` is expected to set for such a machine; changes nothing.

        `until_s` is the limit in seconds since 1970.
        """
        ...


@runtime_checkable
class Capping(Protocol):
    """To change the hard price cap of a machine that exists."""

    def update_max_price(self, vm: Vm, max_price_usd_per_h: float | None) -> float | None:
        """Make that the machine's cap where the vendor allows it now; the cap then in force.

        Silent, and without effect, for a machine whose cap cannot change now because it runs: the
        answer then differs from what was asked. Raises `Gone` if there is no such machine.
        """
        ...


@runtime_checkable
class Explaining(Protocol):
    """To say, minutes after a stop, why it really was."""

    def stop_reason_from_log(
        self, vm: Vm, *, after_s: float, before_s: float
    ) -> Observation | None:
        """What is on record of a stop between those two times, in seconds since 1970.

        None if nothing is (yet). Only reason, `since` and `detail` of the answer mean something.
        """
        ...


@runtime_checkable
class Dating(Protocol):
    """To say when the bill for a machine's compute really ended."""

    def billed_until_s(self, vm: Vm) -> float | None:
        """When a machine that `deallocate` released ceased to bill compute, seconds since 1970.

        By this computer's clock, however late the provider told of it; None if it is not known.
        Asks nobody.
        """
        ...


@runtime_checkable
class Telling(Protocol):
    """To tell how far a removal is that takes minutes."""

    def delete_telling(self, run_id: str, tell: Callable[[str], None]) -> list[Removed]:
        """Do what `delete` does; `tell` gets a line at each stage and about once a minute."""
        ...
