"""Two SSH servers of different make behind one handle: OpenSSH's, and the local machine's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from remote.ssh import Host
from support import sshd
from support.machines import Subject

MAKES = ("openssh", "guest")


@dataclass(frozen=True, kw_only=True)
class Door:
    """A way into a machine whose disk the test can look at."""

    host: Host
    home: Path

    def but(self, **changes: Any) -> Host:
        """Say how to connect, with other fields."""
        return replace(self.host, **changes)


@contextmanager
def open_door(make: str, folder: Path) -> Iterator[Door]:
    """Run a server of that make below `folder` until the block ends."""
    if make == "openssh":
        with sshd.serve(folder) as server:
            yield Door(host=server.host(), home=server.home)
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
        yield Door(host=host, home=subject.machine.disk)
    finally:
        subject.machine.power_off("user")
