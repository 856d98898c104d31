"""Says what a failed step means, from what it printed and what the kernel said."""

from __future__ import annotations

import re

from remote.xid import explain

LOCKED = re.compile(r"(?:held by process \d+ \([^)]*\)|locked by another process with pid \d+)")
NO_WAY_OUT = re.compile(
    r"connection timed out|connecttimeout|failed to establish a new connection|could not connect to"
    r"|couldn't connect to server|failed to connect to|could not resolve|network is unreachable"
    r"|temporary failure in name resolution|temporary failure resolving",
    re.IGNORECASE,
)
NO_WAY_OUT_HINT = (
    "the machine has no way out to the Internet: its network card needs a public address or its"
    " subnet a NAT gateway, and no firewall or policy may close ports 80 and 443 outbound"
)
TOO_OLD = re.compile(r"driver on your system is too old|driver version is insufficient")


def reason(log: str, kernel: str) -> str:
    """Explain a failed step; empty if nothing fits.

    The card's own words come first, then the last line of the log that means something: a lock
    that was waited for is no reason once it was had.
    """
    if errors := explain(kernel):
        return "; ".join(errors)
    meant = (meaning(line) for line in reversed(log.splitlines()))
    return next(filter(None, meant), "")


def meaning(line: str) -> str:
    """Explain one line of a log; empty if it tells nothing."""
    if held := LOCKED.search(line):
        return (
            f"another package tool is still at work (lock {held[0]}): wait for it, or end it on"
            " the machine (`qft ssh`), then repeat the command"
        )
    if NO_WAY_OUT.search(line):
        return NO_WAY_OUT_HINT
    if TOO_OLD.search(line):
        return "the driver is older than the wheels need: choose another image or size"
    return ""
