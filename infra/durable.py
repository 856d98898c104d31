"""Writes files that are whole or absent after a crash; locks that end with their holder."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from infra.untrusted import NotPlain, parse

JSON_BYTES_MAX = 64 << 20


class LockTimeout(Exception):  # noqa: N818  (the caller decides what it means)
    """Somebody else held the lock for the whole of the patience given; carries what they wrote."""

    def __init__(self, path: Path, *, holder: str, waited_s: float) -> None:
        who = holder or "an unnamed process"
        super().__init__(f"`{path}` has been locked for {waited_s:.0f} s by {who}")
        self.path = path
        self.holder = holder


def write_json(path: Path, value: Any, *, mode: int = 0o600) -> None:
    """Replace `path` by `value` as JSON, durably: readers see the old file or the new one, whole.

    Raises `TypeError` or `ValueError` for what JSON cannot hold (NaN included), before anything
    is touched.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    # A path may hold bytes that are no UTF-8; what stands for them is written as JSON escapes it.
    write_bytes(path, text.encode(errors="backslashreplace") + b"\n", mode=mode)


def write_bytes(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace `path` by `data`, durably; nothing of a failed attempt is left beside it.

    When this returns, a power cut cannot bring the old content back.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with open(handle, "wb") as file:  # noqa: PTH123  (a descriptor, not a path)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def append_line(path: Path, line: str, *, mode: int = 0o600) -> None:
    r"""Add one line to a record, durably; a line torn by an earlier crash is closed off first.

    Readers must skip a line that does not parse: it is the trace of a crash, and nothing was
    promised about it. `line` must not contain `\n`.
    """
    if "\n" in line:
        raise ValueError("one record is one line")
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, mode)
    try:
        end = os.lseek(handle, 0, os.SEEK_END)
        torn = end > 0 and os.pread(handle, 1, end - 1) != b"\n"
        data = b"\n" * torn + line.encode() + b"\n"
        while data:
            data = data[os.write(handle, data) :]
        os.fsync(handle)
    finally:
        os.close(handle)
    if end == 0:
        sync_directory(path.parent)


def read_json(path: Path) -> Any | None:
    """Return the value of a file that `write_json` wrote, or None if there is none.

    Raises `ValueError` naming the file if it holds something else.
    """
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return parse(text, bytes_max=JSON_BYTES_MAX)
    except NotPlain as error:
        raise ValueError(f"`{path}` is not JSON: {error}") from error


def sync_directory(path: Path) -> None:
    """Make names created, renamed or removed in the directory `path` survive a power cut."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def locked(
    path: Path,
    *,
    timeout_s: float = 30.0,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[None]:
    """Hold the lock file `path` alone among all processes; the kernel frees it if we die.

    Not re-entrant, also not within one process. The file stays behind on purpose: removing it
    would let two holders hold two different files of one name. Raises `LockTimeout`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        began = clock()
        while not _try_lock(handle):
            if clock() - began >= timeout_s:
                holder = os.pread(handle, 200, 0).decode(errors="replace").strip()
                raise LockTimeout(path, holder=holder, waited_s=timeout_s)
            sleep(0.02)
        with contextlib.suppress(OSError):  # a full disk must not keep us from making room
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


def _try_lock(handle: int) -> bool:
    """Take the lock if it is free now."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
