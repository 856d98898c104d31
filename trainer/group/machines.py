"""Which of several machines this one is, and how its ranks find those of the others.

Each machine has a launcher, a run directory and checkpoints of its own. The ranks of a machine are
numbered after all of the machines before it, whose numbers the store collects.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One machine of those that do a training together."""

    number: int
    """From 0; the first hosts the store, and writes log and adapter."""
    count: int
    store: str
    """Host and port of the store, on the private network of the machines."""
    address: str
    """This machine's own address there: nothing listens on another interface."""
    rdzv_id: str = ""
    """Which group of machines this is, as torchrun calls it: one of another group never joins."""

    def to_arguments(self) -> list[str]:
        """Return the arguments that tell a process of this machine so."""
        host, _, port = self.store.rpartition(":")
        return [
            *("--nnodes", str(self.count), "--node-rank", str(self.number)),
            *("--master-addr", host, "--master-port", port, "--interface-address", self.address),
            *(("--rdzv-id", self.rdzv_id) if self.rdzv_id else ()),
        ]  # fmt: skip


def machine_key(number: int) -> str:
    """Return the key under which the store has how many ranks a machine starts."""
    return f"machine/{number}"


def names_of(machines: list[int]) -> str:
    """Return these machines for people: `machine 2`, or `machines 1, 2`."""
    return f"machine{'s' * (len(machines) > 1)} {', '.join(map(str, machines))}"
