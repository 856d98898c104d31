"""Changes the host key of a machine, so that a kill at any point leaves it reachable.

The new key is written down before it can be in use, and from then on both are accepted; when the
machine presents it, that is written down, and the old one is refused from then on.
"""

from __future__ import annotations

from collections.abc import Callable

from infra.provider import Vm
from infra.run.journal import Kind
from infra.run.workload import HostUnfit, Workload


def change_host_key(
    workload: Workload, machine: Callable[[], Vm], record: Callable[..., object]
) -> str:
    """Change it, or go on with a change that was cut; return why it could not be, or nothing.

    `machine` returns the machine as the record has it then. Raises `HostUnreachable` and
    `HostNotTrusted`; the machine is reachable by what is recorded afterwards, too.
    """
    try:
        line = workload.make_host_key(machine())
        if line != machine().next_host_public_key:
            record(Kind.HOST_KEY_INTENDED, public_key=line)
        workload.use_host_key(machine(), line)
    except HostUnfit as error:
        record(Kind.HOST_KEY_KEPT, reason=str(error))
        return f"the host key of the first boot stays in use: {error}"
    record(Kind.HOST_KEY_CHANGED, public_key=line)
    return ""
