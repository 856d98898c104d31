"""Validates names of hosts, users, programs and cloud resources: none may read as an option.

Such names are words of `ssh`, of a shell on the machine and of a cloud's addresses. Every function
returns what is wrong with a name, empty if nothing is.
"""

from __future__ import annotations

import ipaddress
import re

HOST_LENGTH_MAX = 253
LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?", re.ASCII)
"""A part of a host name between two dots (RFC 1123); an underscore is in use for hosts at home."""
ZONE = re.compile(r"[A-Za-z0-9_.-]{1,16}", re.ASCII)
USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,63}", re.ASCII)
PROGRAM = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./@+=:,-]{0,254}", re.ASCII)
CLOUD_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,62}[A-Za-z0-9])?", re.ASCII)
SHOWN_MAX = 60


def host_error(host: str) -> str:
    """Check a host: a name of dotted parts, or an IPv4 or IPv6 address without brackets."""
    shown = _short(host)
    address, percent, zone = host.partition("%")
    try:
        is_v6 = ipaddress.ip_address(address).version == 6
    except ValueError:
        is_v6 = False
    if is_v6:
        named = bool(ZONE.fullmatch(zone)) == bool(percent)
        return "" if named else f"`{shown}` names no network interface after the `%`"
    if host.startswith("-"):
        return f"`{shown}` begins with `-`, like an option of ssh"
    if not host.isascii():
        return f"`{shown}` holds other than ASCII letters; write it as DNS does (`xn--…`)"
    if "@" in host or "/" in host:
        return f"`{shown}` is more than a host: `user`, `port` and paths have a place of their own"
    if host.startswith("[") or ":" in host:
        return f"`{shown}` is no host name; an IPv6 address has no brackets, a port is `port: 22`"
    labels = host.removesuffix(".").split(".")
    if "" in labels:
        return f"`{shown}` has an empty part: two dots, or one at its beginning"
    if len(host) > HOST_LENGTH_MAX or any(len(label) > 63 for label in labels):
        return f"`{shown}` is too long for a host name: 253 letters, and 63 between two dots"
    if not all(LABEL.fullmatch(label) for label in labels):
        return f"`{shown}` is no host name: letters, digits and `-` inside, with dots between"
    return ""


def user_error(user: str) -> str:
    """Check a user: a plain account name."""
    if USER.fullmatch(user):
        return ""
    return (
        f"`{_short(user)}` is no account name: at most 64 letters, digits, `.`, `_`, `-`, `+` and "
        "`@`, beginning with a letter, digit or `_`"
    )


def program_error(program: str) -> str:
    """Check a program: a name or path without spaces, so that no shell reads two words."""
    if PROGRAM.fullmatch(program):
        return ""
    return (
        f"`{_short(program)}` is no path of a program: at most 255 letters, digits and `/._-+@=:,`"
        ", and no `-` at its beginning"
    )


def cloud_name_error(name: str) -> str:
    """Check a region, size or subscription: a word of letters, digits and hyphens."""
    if CLOUD_NAME.fullmatch(name):
        return ""
    return f"`{_short(name)}` is no such name: at most 64 letters and digits, with `-` inside"


def key_path_error(path: str) -> str:
    """Check the path of a key file: any that `ssh` can be given."""
    if path.startswith("-"):
        return f"`{_short(path)}` begins with `-`, like an option of ssh; write `./{_short(path)}`"
    if '"' in path or "${" in path:
        return f"`{_short(path)}` holds a quote or `${{`, which ssh reads as more than a path"
    return ""


def _short(text: str) -> str:
    """Cut a value to what one line can show."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_MAX else f"{line[: SHOWN_MAX - 1]}…"
