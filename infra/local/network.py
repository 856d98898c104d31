"""Gives the machines of a run addresses of their own on this computer's loopback interface."""

from __future__ import annotations

import errno
import hashlib
import socket
from collections.abc import Collection, Iterator

from infra.errors import NotAllowed

FIRST_HOST = 10
"""The last number of node 0's address."""


def choose_network(key: str, taken: Collection[str]) -> str:
    """Return the first three numbers of a run's addresses, such as `127.83.7`.

    The same for the same key unless another run has them, and never those of 127.0: what else
    listens on this computer's loopback is there.
    """
    return next(one for one in _networks(key) if one not in taken)


def address_of(network: str, node: int) -> str:
    """Return the private address of a node."""
    return f"{network}.{FIRST_HOST + node}"


def network_of(address: str) -> str:
    """Return the network of an address that `address_of` returned."""
    return address.rpartition(".")[0]


def check_usable(address: str) -> None:
    """Raise `NotAllowed` if this computer has no such address, as outside of Linux."""
    try:
        with socket.socket() as probe:
            probe.bind((address, 0))
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:
            raise
        raise NotAllowed(
            f"several machines need addresses of their own, and this computer has no {address}",
            hint=f"on macOS `sudo ifconfig lo0 alias {address}` adds it; Linux has it",
        ) from error


def _networks(key: str) -> Iterator[str]:
    """Networks to try, without end; which ones depends on the key only."""
    number = 0
    while True:
        digest = hashlib.sha256(f"{number}/{key}".encode()).digest()
        yield f"127.{1 + digest[0] % 254}.{digest[1]}"
        number += 1
