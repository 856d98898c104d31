"""Signs in to a machine of the simulated Azure."""

from __future__ import annotations

import time
from pathlib import Path

from infra.provider import Vm
from remote.errors import Unreachable
from remote.ssh import Host, SshConnection, connect

TIMEOUT_S = 120.0


def enter(vm: Vm, key: Path, host_key: str) -> SshConnection:
    """Connect as soon as SSH answers."""
    host = Host(address=vm.host, port=vm.port, user=vm.user, key_path=key, host_key=host_key)
    ends_s = time.monotonic() + TIMEOUT_S
    while time.monotonic() < ends_s:
        try:
            return connect(host)
        except Unreachable:
            time.sleep(0.05)
    raise AssertionError(f"{host} never answered")
