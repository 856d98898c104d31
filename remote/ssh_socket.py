"""Opens the line below a connection: TCP that notices silence, SSH that asks for the right key."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from remote.errors import Unreachable, shorten

if TYPE_CHECKING:
    import paramiko

FAST_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
SIGNATURES = {"ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256")}
"""How a key of a type is asked for where that is not the type's own name (RFC 8332)."""


def make_transport(kind: str, sock: socket.socket, **options: Any) -> paramiko.Transport:
    """Prefer the host key of the pinned type, and ciphers that also authenticate.

    A separate checksum in Python halves the speed.
    """
    import paramiko

    transport = paramiko.Transport(sock, **options)
    security = transport.get_security_options()
    security.ciphers = sorted(security.ciphers, key=lambda name: name not in FAST_CIPHERS)
    prefer_key_type(transport, kind)
    return transport


def prefer_key_type(transport: paramiko.Transport, kind: str) -> None:
    """Ask for the host key of one type first: a server has one of each, and shows one."""
    security, of_it = transport.get_security_options(), SIGNATURES.get(kind, (kind,))
    security.key_types = sorted(security.key_types, key=lambda name: name not in of_it)


def open_socket(address: str, port: int, *, timeout_s: float, dead_after_s: int) -> socket.socket:
    """Open the TCP connection, set up so that the kernel notices a peer that fell silent."""
    try:
        sock = socket.create_connection((address, port), timeout=timeout_s)
    except ValueError as error:  # a name with an empty or endless part, which IDNA refuses
        raise Unreachable(f"`{shorten(address)}` is no host name: {error}") from error
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    wanted = {
        "TCP_KEEPIDLE": max(dead_after_s // 3, 1),
        "TCP_KEEPINTVL": max(dead_after_s // 6, 1),
        "TCP_KEEPCNT": 4,
        "TCP_USER_TIMEOUT": dead_after_s * 1000,  # unacknowledged data; Linux only
    }
    for name, value in wanted.items():
        if (option := getattr(socket, name, None)) is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
    return sock
