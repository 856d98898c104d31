"""Finds the caller's public address, the only one that a rented machine's firewall admits."""

from __future__ import annotations

import ipaddress
import socket
import urllib.parse

from infra.errors import NotAllowed, Transient
from infra.renting.http import fetch

WIDEST = 16
"""The shortest prefix that the firewall may admit."""


def source_prefix(address: str) -> str:
    """Check the caller's address as the source that a firewall admits: one host, or a given CIDR.

    Raises `NotAllowed` for anything that would open the machine to the world, could not reach it,
    or is no address.
    """
    try:
        network = ipaddress.ip_network(address.strip(), strict=False)
    except ValueError as error:
        raise NotAllowed(
            f"`{address.strip()[:60]}` is not an address; the firewall must admit exactly yours",
            hint="set QFT_CALLER_ADDRESS to your public address",
        ) from error
    if network.version != 4:
        raise NotAllowed(
            f"`{address}` is an IPv6 address; machines have an IPv4 address only, which no "
            "connection from there would reach",
            hint="set QFT_CALLER_ADDRESS to your public IPv4 address",
        )
    if network.prefixlen < WIDEST:
        raise NotAllowed(
            f"`{network}` would admit too many strangers; the widest allowed is /{WIDEST}",
            hint="set QFT_CALLER_ADDRESS to your public address",
        )
    return str(network)


def own_address(url: str) -> str:
    """Find the address from which this computer reaches a cloud in its own network; else empty.

    A cloud behind a private or loopback address hands out addresses of that same network, where
    the world's view of the caller would open the firewall to nobody. Sends nothing.
    """
    parts = urllib.parse.urlsplit(url)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((parts.hostname or "", parts.port or 443))
            there, here = str(probe.getpeername()[0]), str(probe.getsockname()[0])
    except OSError:  # no such name, or no way there: whoever asks it next will say so
        return ""
    return here if ipaddress.ip_address(there).is_private else ""


def public_address(url: str) -> str:
    """Fetch the caller's address as the page at `url` sees it."""
    try:
        return fetch(url).decode("ascii", "replace").strip()
    except Transient as error:
        raise Transient(
            f"your public address could not be found out ({error})",
            hint="set QFT_CALLER_ADDRESS to it; the firewall admits nobody else",
        ) from error
