"""Runs ON THE MACHINE: one process that outlives our connection, started once, never twice.

What proves that the job runs is a kernel lock on `job.lock`, taken before the job exists, inherited
by it, and released by the kernel when its last process is gone: neither a pid that was reused nor a
reboot can fool it. Shipped alone by content hash, `python agent_job-<sha8>.py VERB`: request as
JSON on stdin, answer as JSON on stdout. Standard library only, Python 3.8 or later, Linux or macOS.

In the job's directory: `job.lock` (held by the job), `start.lock` (held for moments by who looks or
starts), `job.json` (what was started), `exit.json` (how it ended, whole or absent), `job.log`. Of
the log the beginning and the end are kept: its middle becomes a hole, so that no place in it moves.
"""

# Plain os calls, as descriptors and locks need them:
# ruff: noqa: PTH103, PTH118, PTH123, PTH202, PTH105, PTH116, PTH208, PTH108, PTH120

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

POLL_S = 0.05
MARK = "--qft-answer--\n"
"""What comes before it is chatter of the login shell's start-up files."""
READY = b"ok"
LOG_HEAD = 1 << 20  # these three in bytes; each is a whole number of any disk's blocks
LOG_END = 16 << 20
LOG_SLACK = 16 << 20  # how much more may gather before the middle is given back
LOG_LOOK_S = 1.0
KEEP_SIZE_PUNCH_HOLE = 1 | 2  # Linux: fallocate(2)


def main(argv: list[str]) -> int:
    """Do one verb. Exit 0 with the answer, 3 with `{"error": …}` for what the caller can handle."""
    os.umask(0o077)  # what we make there is its user's alone
    verbs = {"start": start, "status": status, "tail": tail, "stop": stop}
    request = json.loads(sys.stdin.buffer.read() or b"{}")
    sys.stdout.write(MARK)
    sys.stdout.flush()
    try:
        answer = verbs[argv[1]](request)
    except OSError as error:
        answer = {"error": "failed", "path": str(error.filename or "")}
        answer["said"] = error.strerror or str(error)
    json.dump(answer, sys.stdout)
    return 3 if "error" in answer else 0


def start(request: dict[str, Any]) -> dict[str, Any]:
    """Start `argv` detached, unless the job runs already; answer as `status`, and `started`.

    Returns when the process exists, or when it is known why it cannot.
    """
    folder = request["directory"]
    os.makedirs(folder, exist_ok=True)
    with looking(folder) as start_lock:
        lock = take_lock(folder)
        if lock is None:
            return dict(look(folder, running=True), started=False)
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.close(reader)
            os.close(start_lock)  # or it would stay locked for the life of the job
            keep(request, folder, lock, writer)  # never returns
        os.close(writer)
        os.close(lock)
        with os.fdopen(reader, "rb") as pipe:
            said = pipe.read()
        os.wait()
        if said != READY:
            return {"error": "failed", "said": said.decode("utf-8", "replace"), "path": folder}
        return dict(look(folder, running=is_running(folder)), started=True)


def keep(request: dict[str, Any], folder: str, lock: int, writer: int) -> None:
    """Be the job's keeper: leave the session, start it, wait for it, write down how it ended.

    The keeper shares the lock with the job; the one that ends last releases it.
    """
    with contextlib.suppress(OSError):
        os.setsid()
    if os.fork() != 0:
        os._exit(0)  # the starter waits for this one only
    code = 1
    try:
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        child = launch(request, folder, lock)
        os.write(writer, READY)
        os.close(writer)
        for descriptor in (0, 1, 2):
            os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
        watch = (os.path.join(folder, "job.log"), LOG_LOOK_S)
        threading.Thread(target=keep_short, args=watch, daemon=True).start()
        sweep(child)
        code = child.wait()
        ended = {"exit_code": code if code >= 0 else 128 - code, "ended_at": time.time()}
        write_whole(os.path.join(folder, "exit.json"), ended)
        code = 0
    except OSError as error:
        with contextlib.suppress(OSError):  # the pipe is closed once the job runs
            os.write(writer, f"{error.filename or ''}: {error.strerror}".encode())
        with contextlib.suppress(OSError):  # on a full disk nothing more can be written down
            ended = {"exit_code": 127, "ended_at": time.time()}
            write_whole(os.path.join(folder, "exit.json"), ended)
    finally:
        os._exit(code)


def launch(request: dict[str, Any], folder: str, lock: int) -> subprocess.Popen[bytes]:
    """Start the job itself in a session of its own, the lock open, all output in the log."""
    attempt = load(os.path.join(folder, "job.json")).get("attempt", 0) + 1
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(folder, "exit.json"))
    record = {"attempt": attempt, "argv": request["argv"], "started_at": time.time()}
    record["keeper"] = os.getpid()
    write_whole(os.path.join(folder, "job.json"), dict(record, pid=0))
    mode = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    log = os.open(os.path.join(folder, "job.log"), mode, 0o600)
    child = subprocess.Popen(
        request["argv"],
        cwd=request["cwd"],
        env={**os.environ, **request["env"]},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
        pass_fds=[lock],
        preexec_fn=natural_signals,  # noqa: PLW1509  (one thread only)
    )
    os.close(log)
    write_whole(os.path.join(folder, "job.json"), dict(record, pid=child.pid))
    return child


def keep_short(log: str, every_s: float) -> None:
    """Keep a log from filling the disk, for as long as this process lives."""
    while True:
        time.sleep(every_s)
        # Without such holes (macOS, some network disks) the log stays whole, as long as it is.
        with contextlib.suppress(OSError, AttributeError, ImportError):
            shorten(log)


def shorten(log: str) -> None:
    """Give the disk back what lies between the first and the last part of a long log.

    Whoever writes goes on at the end, whoever reads finds every byte that is left at its old place.
    """
    import ctypes  # a tenth of this script's start, which every look at a job pays

    with open(log, "r+b") as file:
        number = file.fileno()
        size = os.fstat(number).st_size
        if size - hole(number)[1] < LOG_END + LOG_SLACK:
            return
        length = (size - LOG_END) // LOG_HEAD * LOG_HEAD - LOG_HEAD
        punch = ctypes.CDLL(None, use_errno=True).fallocate
        punch.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
        if punch(number, KEEP_SIZE_PUNCH_HOLE, LOG_HEAD, length):
            raise OSError(ctypes.get_errno(), "the disk takes no holes", log)


def hole(number: int) -> tuple[int, int]:
    """Find what was given back of an open log: from where, to where; nothing if both are one."""
    end = LOG_HEAD
    with contextlib.suppress(OSError, AttributeError):  # it ends before, or holes are unknown here
        end = os.lseek(number, LOG_HEAD, os.SEEK_DATA)
    return LOG_HEAD, end


def sweep(child: subprocess.Popen[bytes]) -> None:
    """Wait for the end, then kill what the job left in its group: it may still hold the GPU."""
    if hasattr(os, "waitid"):
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # not reaped: the pid stays ours
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)


def natural_signals() -> None:
    """Give the job the signals back that its keeper ignores."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def status(request: dict[str, Any]) -> dict[str, Any]:
    """Tell how the job is: `absent`, `running`, `exited` with a code, or `lost` without one."""
    folder = request["directory"]
    if not os.path.isdir(folder):  # noqa: PTH112
        return {"state": "absent", "log_bytes": 0}
    with looking(folder):
        return look(folder, running=is_running(folder))


def look(folder: str, *, running: bool) -> dict[str, Any]:
    """Fold what is known into one answer."""
    record = load(os.path.join(folder, "job.json"))
    ended = load(os.path.join(folder, "exit.json"))
    log = os.path.join(folder, "job.log")
    answer = {key: record.get(key) for key in ("attempt", "pid", "started_at", "argv")}
    answer["log_bytes"] = os.path.getsize(log) if os.path.exists(log) else 0  # noqa: PTH110
    if running:
        return dict(answer, state="running")
    if not record:
        return dict(answer, state="absent")
    return dict(answer, state="exited" if ended else "lost", **ended)


def tail(request: dict[str, Any]) -> dict[str, Any]:
    """Read the log from `offset` (negative: from its end), at most `limit` bytes, as base64.

    In the place of a middle that is gone there is a line that says so.
    """
    path = os.path.join(request["directory"], "job.log")
    answer: dict[str, Any] = {"data": "", "offset": max(request["offset"], 0)}
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            offset = max(request["offset"] + (size if request["offset"] < 0 else 0), 0)
            file.seek(offset)
            data = file.read(request["limit"])
            first, last = hole(file.fileno())  # asked afterwards: what was read may be gone by now
        if offset < first:
            data = data[: first - offset] if last > first else data
            offset += len(data)
        elif offset < last:
            data, offset = gap(last - offset)[: request["limit"]], last
        else:
            offset += len(data)
        answer["offset"] = offset
        answer["data"] = base64.b64encode(data).decode("ascii")
    except FileNotFoundError:
        answer["offset"] = 0
    if request.get("status"):
        answer["status"] = status(request)
    return answer


def gap(size: int) -> bytes:
    """Say that a part of the log is gone."""
    return b"\n[... %d bytes of the log were dropped here, to leave room on the disk ...]\n" % size


def stop(request: dict[str, Any]) -> dict[str, Any]:
    """Ask the job to end (SIGTERM to its groups), kill it after `grace_s`; answer as `status`."""
    folder, grace_s = request["directory"], request["grace_s"]
    for number, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 10.0)):
        if status(request)["state"] != "running":
            break
        with looking(folder):  # whoever just tries the lock, in another call, is not the job
            groups = groups_of(folder)
        for group in groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, number)
        ends_at = time.monotonic() + wait_s
        while time.monotonic() < ends_at and status(request)["state"] == "running":
            time.sleep(POLL_S)
    return status(request)


def groups_of(folder: str) -> set[int]:
    """Find the process groups of the job: of the recorded process, and of all that hold the lock.

    Who holds the lock is part of the job by the kernel's word, whatever its pid. The keeper is left
    out: it must live to write down the end.
    """
    record = load(os.path.join(folder, "job.json"))
    if not is_linux():
        return {record["pid"]} if record.get("pid") else set()
    lock = os.stat(os.path.join(folder, "job.lock"))
    groups: set[int] = set()
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in (os.getpid(), record.get("keeper")):
            with contextlib.suppress(ProcessLookupError):
                if holds(int(name), lock):
                    groups.add(os.getpgid(int(name)))
    return groups


def is_linux() -> bool:
    """Tell whether /proc can be asked."""
    return os.path.isdir("/proc/self/fd")  # noqa: PTH112


def holds(pid: int, lock: os.stat_result) -> bool:
    """Tell whether a process has the lock file open."""
    folder = f"/proc/{pid}/fd"
    with contextlib.suppress(OSError):  # it ended, or belongs to somebody else
        for name in os.listdir(folder):
            with contextlib.suppress(FileNotFoundError):
                found = os.stat(os.path.join(folder, name))
                if (found.st_dev, found.st_ino) == (lock.st_dev, lock.st_ino):
                    return True
    return False


@contextlib.contextmanager
def looking(folder: str) -> Iterator[int]:
    """Let only one process at a time try the job's lock: a try must not look like a job."""
    descriptor = os.open(os.path.join(folder, "start.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def take_lock(folder: str) -> int | None:
    """Take the job's lock if nobody holds it; the descriptor keeps it."""
    descriptor = os.open(os.path.join(folder, "job.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def is_running(folder: str) -> bool:
    """Ask the kernel whether a process of the job is alive."""
    lock = take_lock(folder)
    if lock is None:
        return True
    os.close(lock)
    return False


def load(path: str) -> dict[str, Any]:
    """Read a record; one that is absent or torn is empty."""
    try:
        with open(path, "rb") as file:
            found = json.load(file)
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_whole(path: str, record: dict[str, Any]) -> None:
    """Replace `path` so that a crash leaves the old or the new content, never a part."""
    temp = f"{path}.{os.getpid()}.tmp"
    with open(temp, "w", encoding="utf-8") as file:
        json.dump(record, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temp, path)
    descriptor = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
