"""Restricts which files a process may open to a list of folders (Landlock, Linux 5.13 and newer).

Standard library only.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterable

from trainer.code_eval.linux import system_call

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
VERSION_FLAG, RULE_PATH_BENEATH = 1, 1
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
FILE_ACCESS = EXECUTE | WRITE_FILE | READ_FILE | 1 << 14 | 1 << 15
ACCESS_OF_VERSION = (0, 0x1FFF, 0x3FFF, 0x7FFF, 0x7FFF, 0xFFFF)
"""All access over files that a version of Landlock knows, by its number."""
NETWORK_SINCE, SCOPE_SINCE = 4, 6
BIND_AND_CONNECT, ABSTRACT_SOCKETS_AND_SIGNALS = 3, 3


def version() -> int:
    """Return the version of Landlock that the kernel has; 0 if it has none."""
    try:
        return system_call(CREATE_RULESET, None, 0, VERSION_FLAG, what="landlock")
    except OSError:
        return 0


def make_rules(readable: Iterable[str], writable: Iterable[str]) -> int:
    """Return the descriptor of rules that allow to open nothing but what is below these paths.

    Newer versions also refuse TCP, abstract sockets, and signals to processes outside. A path that
    is not there is passed over. Make them while the paths can be reached.

    Raises:
        OSError: the kernel has no Landlock.
    """
    found = version()
    access = ACCESS_OF_VERSION[min(found, len(ACCESS_OF_VERSION) - 1)]
    network = BIND_AND_CONNECT if found >= NETWORK_SINCE else 0
    scope = ABSTRACT_SOCKETS_AND_SIGNALS if found >= SCOPE_SINCE else 0
    values = struct.pack("QQQ", access, network, scope)
    size_bytes = 24 if found >= SCOPE_SINCE else 16 if found >= NETWORK_SINCE else 8
    rules = system_call(CREATE_RULESET, values[:size_bytes], size_bytes, 0, what="landlock")
    for path in readable:
        _allow(rules, path, (EXECUTE | READ_FILE | READ_DIR) & access)
    for path in writable:
        _allow(rules, path, access)
    return rules


def restrict(rules: int) -> None:
    """Hold this process and its children to the rules; it must have given up new privileges."""
    system_call(RESTRICT_SELF, rules, 0, what="landlock")
    os.close(rules)


def _allow(rules: int, path: str, access: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        granted = access if is_folder else access & FILE_ACCESS
        values = struct.pack("=Qi", granted, descriptor)
        system_call(ADD_RULE, rules, RULE_PATH_BENEATH, values, 0, what=f"landlock {path}")
    finally:
        os.close(descriptor)
