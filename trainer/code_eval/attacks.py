"""Attacks on the sandbox, run in it before any answer is; each prints what it got.

They are bounded: what gets through does no harm. Standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

FAILURES = (OSError, ValueError, MemoryError, RuntimeError)
ASLEEP_S = 30.0
OPEN_FLAGS = os.O_WRONLY | os.O_CREAT


def read_files(paths: Sequence[str]) -> None:
    """Print what is in files of others."""
    for path in paths:
        with contextlib.suppress(*FAILURES):  # it held
            print(Path(path).read_bytes()[: 1 << 16])  # noqa: T201
        with contextlib.suppress(*FAILURES):  # it held
            print([str(one) for one in Path(path).iterdir()])  # noqa: T201


def read_processes(processes: Sequence[int]) -> None:
    """Print the environment, and look into the memory, of other processes."""
    seen: list[str] = []
    with contextlib.suppress(*FAILURES):  # it held
        seen = [one.name for one in Path("/proc").iterdir() if one.name.isdecimal()]
    for process in {*map(str, processes), str(os.getppid()), *seen} - {str(os.getpid())}:
        read_files([f"/proc/{process}/environ"])
        with contextlib.suppress(*FAILURES):  # it held
            os.close(os.open(f"/proc/{process}/mem", os.O_RDONLY))
            print(f"memory of process {process}")  # noqa: T201


def connect(port: int, path: str, abstract: str) -> None:
    """Connect to a port of this computer, to a socket's path, and to an abstract name."""
    for family, address in (
        (socket.AF_INET, ("127.0.0.1", port)),
        (socket.AF_UNIX, path),
        (socket.AF_UNIX, f"\0{abstract}"),
    ):
        # It held if it fails.
        with contextlib.suppress(*FAILURES), socket.socket(family) as one:
            one.settimeout(0.5)
            one.connect(address)
    # It held if it fails.
    with contextlib.suppress(*FAILURES), socket.socket(type=socket.SOCK_DGRAM) as one:
        one.sendto(b"x", ("127.0.0.1", port))
        print("sent a datagram")  # noqa: T201


def send_signals(processes: Sequence[int]) -> None:
    """Try to end the processes named, then all that can be seen."""
    for process in (*processes, os.getppid()):
        with contextlib.suppress(*FAILURES):  # it held
            os.kill(process, signal.SIGKILL)
    with contextlib.suppress(*FAILURES):  # it held
        os.kill(-1, signal.SIGCONT)


def write_outside(paths: Sequence[str]) -> None:
    """Try to create files outside the work folder."""
    for path in paths:
        with contextlib.suppress(*FAILURES):  # it held
            os.close(os.open(path, OPEN_FLAGS, 0o666))


def change_files(paths: Sequence[str]) -> None:
    """Try to change, to empty and to rename files that are there."""
    for path in map(Path, paths):
        with contextlib.suppress(*FAILURES):  # it held
            path.chmod(0o666)
        with contextlib.suppress(*FAILURES):  # it held
            os.utime(path, (0, 0))
        with contextlib.suppress(*FAILURES):  # it held
            os.truncate(path, 0)
        with contextlib.suppress(*FAILURES):  # it held
            path.rename(path.with_name("renamed"))


def fork_many(count: int) -> None:
    """Fork that many children, which stay, and print how many there were."""
    forked = 0
    for _ in range(count):
        try:
            child = os.fork()
        except OSError:
            break
        if child == 0:
            time.sleep(ASLEEP_S)
            os._exit(0)
        forked += 1
    print(f"forked {forked}")  # noqa: T201


def take_memory(children: int, size_bytes: int) -> None:
    """Let several children take memory, and print how many hold theirs at one time."""
    ends = os.pipe()
    for _ in range(children):
        if os.fork() == 0:
            with contextlib.suppress(MemoryError):  # it held
                taken = bytearray(b"x") * size_bytes
                os.write(ends[1], struct.pack("i", os.getpid() * bool(taken[-1])))
            time.sleep(ASLEEP_S)
            os._exit(0)
    os.set_blocking(ends[0], False)
    finished: list[int] = []
    for _ in range(100):
        time.sleep(0.02)
        with contextlib.suppress(BlockingIOError):  # none of them is done yet
            data = os.read(ends[0], 64)
            finished += [process for (process,) in struct.iter_unpack("i", data)]
        if len(finished) >= children:
            break
    time.sleep(0.1)  # who was ended to make room for another one is gone by then
    held = sum(os.waitpid(process, os.WNOHANG) == (0, 0) for process in finished)
    print(f"held {held}")  # noqa: T201


def fill_folder(size_bytes: int, files: int) -> None:
    """Write that many bytes in files of 1 MiB, then that many empty files; print what stayed."""
    written = made = 0
    with contextlib.suppress(*FAILURES):  # it held
        for at in range(size_bytes >> 20):
            written += Path(f"large-{at}").write_bytes(b"x" * (1 << 20))
    with contextlib.suppress(*FAILURES):  # it held
        for at in range(files):
            os.close(os.open(f"small-{at}", OPEN_FLAGS, 0o600))
            made += 1
    print(f"wrote {written} and {made} files")  # noqa: T201


def gain_privileges() -> None:
    """Try to become root, to make a namespace, to mount, and to use a program that gives rights."""
    library = ctypes.CDLL(None, use_errno=True)
    with contextlib.suppress(*FAILURES):  # it held
        os.setuid(0)
        print("became root")  # noqa: T201
    if library.unshare(0x10000000) == 0:
        print("made a user namespace")  # noqa: T201
    if library.mount(b"none", b"/tmp", b"tmpfs", 0, None) == 0:
        print("mounted")  # noqa: T201
    with contextlib.suppress(*FAILURES, subprocess.SubprocessError):  # it held
        done = subprocess.run(["sudo", "-n", "id", "-u"], capture_output=True, check=True)
        print("sudo", done.stdout)  # noqa: T201


def leave_daemon() -> None:
    """Leave a process of a session of its own that ignores every signal it can."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
            time.sleep(ASLEEP_S)
        os._exit(0)
    time.sleep(0.05)


def print_endlessly() -> None:
    """Write until it is ended."""
    while True:
        os.write(1, b"y" * 4096)


def never_end() -> None:
    """Compute until it is ended."""
    while True:
        os.getpid()


def forge() -> None:
    """Write a verdict of its own to every descriptor there is, and end as if all were well."""
    for descriptor in range(1, 256):
        with contextlib.suppress(OSError):  # it is not open
            os.write(descriptor, b'passed["passed", "", ""]')
    sys.stdout.flush()
    os._exit(0)


ATTACKS: Mapping[str, Callable[..., None]] = MappingProxyType(
    {
        one.__name__: one
        for one in (
            read_files, read_processes, connect, send_signals, write_outside, change_files,
            fork_many, take_memory, fill_folder, gain_privileges, leave_daemon, print_endlessly,
            never_end, forge,
        )
    }
)  # fmt: skip


def attack_task(name: str, arguments: Mapping[str, Any]) -> Callable[[], None]:
    """Return an attack as a task of an answer; what it prints is written out before it ends."""

    def act() -> None:
        ATTACKS[name](**arguments)
        sys.stdout.flush()

    return act
