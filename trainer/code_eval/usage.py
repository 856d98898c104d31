"""Measures what an answer's processes and its folder use, where no control group limits them.

Standard library only.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def children(process: int) -> list[int]:
    """Return the direct children of a process, of all of its threads."""
    found: list[int] = []
    try:
        for thread in Path(f"/proc/{process}/task").iterdir():
            found += [int(one) for one in (thread / "children").read_text().split()]
    except OSError:  # it has ended, or a thread of it has
        return found
    return found


def descendants(process: int) -> list[int]:
    """Return all processes below a process."""
    found: list[int] = []
    queue = children(process)
    while queue:
        found += queue
        queue = [grandchild for child in queue for grandchild in children(child)]
    return found


def resident_bytes(process: int) -> int:
    """Return the memory of a process that is in use; 0 if it has ended."""
    return _statm(process, 1)


def address_bytes(process: int) -> int:
    """Return the address space of a process; 0 if it has ended."""
    return _statm(process, 0)


def _statm(process: int, field: int) -> int:
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[field]) * PAGE_BYTES
    except (OSError, IndexError):
        return 0


def own_bytes(processes: Iterable[int], *, shared_bytes: int) -> int:
    """Return what processes use beyond what each of them shares with its parent."""
    return sum(max(0, resident_bytes(one) - shared_bytes) for one in processes)


def used_of_disk(folder: str) -> tuple[int, int]:
    """Return the bytes and the files that are in use on the file system of a folder."""
    found = os.statvfs(folder)
    return (
        (found.f_blocks - found.f_bfree) * found.f_frsize,
        found.f_files - found.f_ffree,
    )
