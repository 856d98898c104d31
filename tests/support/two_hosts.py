"""Two network namespaces joined by a cable, as two hosts that count what they send: needs root."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

FRAME_BYTES = 9000  # so that headers are less than a hundredth of what is sent


class NoNamespaces(Exception):  # noqa: N818 - no error: a machine that does not permit it
    """Network namespaces cannot be made here; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Host:
    """One of the two."""

    name: str  # of its namespace
    interface: str
    address: str

    def command(self, words: Sequence[str]) -> list[str]:
        """Return the command line that runs `words` on this host."""
        return ["ip", "netns", "exec", self.name, *words]

    def sent_bytes(self) -> int:
        """Return how many bytes its interface has sent so far, headers included."""
        path = f"/sys/class/net/{self.interface}/statistics/tx_bytes"
        ended = subprocess.run(
            self.command(["cat", path]), capture_output=True, text=True, check=True
        )
        return int(ended.stdout)


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Make two hosts that reach each other and nothing else; remove them afterwards.

    Raises:
        NoNamespaces: this user or this machine cannot make any.
    """
    number = os.getpid() % 10000
    hosts = [
        Host(
            name=f"qft-{number}-{at}",
            interface=f"qft{number}-{at}",
            address=f"10.79.0.{at + 1}",
        )
        for at in range(2)
    ]
    if os.geteuid() != 0:
        raise NoNamespaces("making network namespaces needs root")
    try:
        _make(hosts)
        yield hosts[0], hosts[1]
    finally:
        for host in hosts:
            with suppress(OSError):  # there is no `ip`: nothing was made
                subprocess.run(
                    ["ip", "netns", "delete", host.name], check=False, capture_output=True
                )


def _make(hosts: Sequence[Host]) -> None:
    for host in hosts:
        _ip("netns", "add", host.name)
    one, other = hosts
    _ip(
        *("link", "add", one.interface, "netns", one.name, "type", "veth"),
        *("peer", "name", other.interface, "netns", other.name),
    )
    for host in hosts:
        inside = ("-n", host.name)
        _ip(*inside, "address", "add", f"{host.address}/24", "dev", host.interface)
        _ip(*inside, "link", "set", host.interface, "mtu", str(FRAME_BYTES), "up")
        _ip(*inside, "link", "set", "lo", "up")


def _ip(*words: str) -> None:
    try:
        ended = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    except OSError as error:
        raise NoNamespaces(f"there is no `ip` here: {error}") from error
    if ended.returncode:
        raise NoNamespaces(f"`ip {' '.join(words)}`: {ended.stderr.strip()}")
