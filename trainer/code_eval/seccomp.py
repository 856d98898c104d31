"""Refuses system calls that no answer needs: sockets, namespaces, mounts, traces, kernel parts.

A filter of classic BPF, as `man 2 seccomp` describes it. Standard library only.
"""

from __future__ import annotations

import ctypes
import platform
import struct

from trainer.code_eval.linux import PR_SET_SECCOMP, SECCOMP_MODE_FILTER, prctl

LOAD, JUMP_EQUAL, JUMP_AT_LEAST, JUMP_BITS, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, KILL_PROCESS = 0x7FFF0000, 0x80000000
EPERM, ENOSYS = 0x00050001, 0x00050026
AT_NUMBER, AT_ARCHITECTURE, AT_FIRST_ARGUMENT = 0, 4, 16
NAMESPACE_FLAGS = 0x7E020000
"""All flags of `clone` that make a namespace."""
X32_BIT = 0x40000000
CLONE3 = 435
"""Its flags lie in memory, where no filter can look: it is refused, and glibc takes `clone`."""
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
CLONE = {"x86_64": 56, "aarch64": 220}
REFUSED = {
    "socket": (41, 198),
    "socketpair": (53, 199),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "mknodat": (259, 33),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "kexec_load": (246, 104),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "quotactl": (179, 60),
    "acct": (163, 89),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "syslog": (103, 116),
    "personality": (135, 92),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "pidfd_getfd": (438, 438),
    "mount_setattr": (442, 442),
    "memfd_secret": (447, 447),
}
"""The numbers on x86-64 and on 64-bit ARM."""


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def is_supported(machine: str = "") -> bool:
    """Tell whether the numbers of this architecture's system calls are listed here."""
    return (machine or platform.machine()) in ARCHITECTURES


def instructions(machine: str) -> list[tuple[int, int, int, int]]:
    """Return the filter for an architecture; calls of any other one end the process."""
    refused = sorted({numbers[machine != "x86_64"] for numbers in REFUSED.values()})
    found = [
        (LOAD, 0, 0, AT_ARCHITECTURE),
        (JUMP_EQUAL, 1, 0, ARCHITECTURES[machine]),
        (RETURN, 0, 0, KILL_PROCESS),
        (LOAD, 0, 0, AT_NUMBER),
        (JUMP_AT_LEAST, 0, 1, X32_BIT),
        (RETURN, 0, 0, KILL_PROCESS),
        (JUMP_EQUAL, 0, 1, CLONE3),
        (RETURN, 0, 0, ENOSYS),
        (JUMP_EQUAL, 0, 3, CLONE[machine]),
        (LOAD, 0, 0, AT_FIRST_ARGUMENT),
        (JUMP_BITS, 0, 1, NAMESPACE_FLAGS),
        (RETURN, 0, 0, EPERM),
        (LOAD, 0, 0, AT_NUMBER),
    ]
    for at, number in enumerate(refused):
        found.append((JUMP_EQUAL, len(refused) - at, 0, number))
    return [*found, (RETURN, 0, 0, ALLOW), (RETURN, 0, 0, EPERM)]


def install() -> None:
    """Filter the system calls of this process and its children from now on.

    It must have given up new privileges before. Raises `OSError` if the kernel has no filters.
    """
    listed = instructions(platform.machine())
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in listed))
    program = _Program(len(listed), ctypes.addressof(code))
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, what="seccomp", more=ctypes.byref(program))
