"""Calls of Linux that Python has no function for, by ctypes. Standard library only."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from functools import cache
from pathlib import Path

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 0x1000, 0x4000, 1 << 18
MNT_DETACH = 2
MOUNT_READ_ONLY, MOUNT_NOSUID, MOUNT_NODEV = 1, 2, 4
AT_RECURSIVE, AT_EMPTY_PATH = 0x8000, 0x1000
MOUNT_SETATTR = 442  # the same number on every architecture, as all from 424 on
PR_SET_PDEATHSIG, PR_SET_KEEPCAPS, PR_SET_SECCOMP = 1, 8, 22
PR_CAPBSET_DROP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 24, 36, 38
SECCOMP_MODE_FILTER = 2
CAP_DAC_READ_SEARCH, CAP_LAST = 2, 63
CAPABILITY_VERSION_3 = 0x20080522
CAPSET = {"x86_64": 126, "aarch64": 91}
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}


@cache
def library() -> ctypes.CDLL:
    """Return the C library of this process."""
    return ctypes.CDLL(None, use_errno=True)


def checked(result: int, what: str) -> int:
    """Return the result of a call; raise `OSError` with what was tried if it failed."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def system_call(number: int, *arguments: int | bytes | None, what: str) -> int:
    """Make a system call by its number; integers are passed as 64 bits."""
    passed = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    return checked(library().syscall(ctypes.c_long(number), *passed), what)


def unshare(flags: int) -> None:
    """Leave the namespaces named by `flags` for fresh ones."""
    checked(library().unshare(ctypes.c_int(flags)), "unshare")


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """Mount a file system, or bind a folder."""
    result = library().mount(
        source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode()
    )
    checked(result, f"mount {target}")


def unmount(target: str) -> None:
    """Detach a mount, also one that is in use."""
    checked(library().umount2(target.encode(), ctypes.c_int(MNT_DETACH)), f"unmount {target}")


def restrict_mount(target: str, attributes: int, *, recursive: bool = True) -> None:
    """Add attributes such as read-only to a mount, and to those below it."""
    values = struct.pack("QQQQ", attributes, 0, 0, 0)
    flags = AT_RECURSIVE if recursive else 0
    system_call(
        MOUNT_SETATTR, -100, target.encode(), flags, values, len(values), what=f"restrict {target}"
    )


def pivot_root(new_root: str, old_root: str) -> None:
    """Make a mounted folder the root, and leave the old root under another one below it."""
    number = PIVOT_ROOT[platform.machine()]
    system_call(number, new_root.encode(), old_root.encode(), what="pivot_root")


def prctl(option: int, value: int | ctypes.c_void_p, *, what: str, more: object = 0) -> None:
    """Change an attribute of this process."""
    passed = ctypes.c_ulong(value) if isinstance(value, int) else value
    rest = ctypes.c_ulong(more) if isinstance(more, int) else more
    checked(library().prctl(ctypes.c_int(option), passed, rest, 0, 0), what)


def end_with_parent() -> None:
    """Have this process killed when its parent ends; a change of user undoes it."""
    prctl(PR_SET_PDEATHSIG, 9, what="end with the parent")


def adopt_orphans() -> None:
    """Make this process the parent of all its descendants that lose theirs."""
    prctl(PR_SET_CHILD_SUBREAPER, 1, what="adopt orphans")


def forbid_new_privileges() -> None:
    """Let no program that is executed gain rights by its owner or its capabilities."""
    prctl(PR_SET_NO_NEW_PRIVS, 1, what="no new privileges")


def empty_bounding_set() -> None:
    """Give up all capabilities for whatever this process executes."""
    for capability in range(CAP_LAST + 1):
        library().prctl(PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0)


def has_capability(capability: int) -> bool:
    """Tell whether this process may use a capability."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapPrm:"):
            return bool(int(line.split()[1], 16) >> capability & 1)
    return False


def keep_capabilities(*kept: int) -> None:
    """Reduce the capabilities of this process to those named; without any, it has none."""
    mask = sum(1 << one for one in kept)
    head = struct.pack("II", CAPABILITY_VERSION_3, 0)
    values = struct.pack("IIIIII", mask, mask, 0, 0, 0, 0)
    system_call(CAPSET[platform.machine()], head, values, what="drop capabilities")
