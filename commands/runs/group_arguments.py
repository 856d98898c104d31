"""Tells the trainer of one of several machines with whom it trains, and where they meet."""

from __future__ import annotations

from infra.provider import Vm
from infra.run.order import Group

FIRST_PORT = 29400
"""The port of torch's rendezvous. A group takes the next one of a hundred each time that it forms,
since that of the group before may not be free for a minute."""
PORTS = 100


def group_arguments(vm: Vm, group: Group | None, run_id: str) -> list[str]:
    """Return the trainer's arguments for a machine in a group; none for one that trains alone."""
    if group is None or len(group.members) == 1:
        return []
    return [
        *("--nnodes", str(len(group.members))),
        *("--node-rank", str(group.rank_of(vm.node))),
        *("--master-addr", group.master),
        *("--master-port", str(FIRST_PORT + group.number % PORTS)),
        *("--interface-address", vm.private_host),
        *("--rdzv-id", f"{run_id}/{group.number}"),
    ]
