"""Two SSH servers of different kind behind one handle: OpenSSH's, and the local machine's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from remote.ssh import Host
from support import sshd
from support.machines import Subject

KINDS = ("openssh", "guest")


@dataclass(frozen=True, kw_only=True)
class RunningServer:
    """A way into a machine whose disk the test can look at."""

    host: Host
    home: Path

    def but(self, **overrides: Any) -> Host:
        """Say how to connect, with other fields."""
        return replace(self.host, **overrides)


@contextmanager
def start_server(kind: str, folder: Path) -> Iterator[RunningServer]:
    """Run a server of that kind below `folder` until the block ends."""
    if kind == "openssh":
        with sshd.serve(folder) as server:
            yield RunningServer(host=server.host(), home=server.home)
        return
    subject = Subject.make(folder)
    try:
        host = Host(
            address="127.0.0.1",
            port=subject.up().ssh_port,
            user="qft",
            key_path=subject.user_key,
            host_key=subject.host_public_key,
        )
        yield RunningServer(host=host, home=subject.machine.disk)
    finally:
        subject.machine.power_off("user")
