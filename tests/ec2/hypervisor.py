"""What runs inside the simulated machines, as the cloud sees it; by default nothing does."""

from __future__ import annotations

from typing import Protocol

from ec2.resources import Instance


class Hypervisor(Protocol):
    """Runs machines for the cloud."""

    def boot(self, instance: Instance, host: str, *, outbound: bool) -> None:
        """Switch the machine on behind its public address; first made from its user data."""
        ...

    def warn(self, instance: Instance, notice_s: float) -> None:
        """Announce an interruption to the machine."""
        ...

    def halt(self, instance: Instance) -> None:
        """Switch the machine off; its disk stays."""
        ...

    def remove(self, instance: Instance) -> None:
        """Switch the machine off and wipe its disk."""
        ...


class NoHypervisor:
    """Machines with nothing inside."""

    def boot(self, instance: Instance, host: str, *, outbound: bool) -> None:
        """Do nothing."""

    def warn(self, instance: Instance, notice_s: float) -> None:
        """Do nothing."""

    def halt(self, instance: Instance) -> None:
        """Do nothing."""

    def remove(self, instance: Instance) -> None:
        """Do nothing."""
