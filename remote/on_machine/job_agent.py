"""Runs on the machine: starts one process that outlives the connection, once, and reports on it.

The job runs as long as a kernel lock on `job.lock` is held: it is taken before the job exists,
inherited by it, and released by the kernel when its last process is gone, so that neither a reused
pid nor a reboot is taken for it. Shipped alone by content hash (hence one file), started over SSH:
`python job_agent-<sha8>.py VERB`, request as JSON on stdin, answer as JSON on stdout. Standard
library only, Python 3.8 or later, Linux or macOS.

In the job's directory: `job.lock` (held by the job), `start.lock` (held for moments by whoever
starts the job or asks about it), `job.json` (what was started), `exit.json` (how it ended, whole or
absent), `job.log`. Of a long log the beginning and the end are kept: its middle becomes a hole, so
that no offset changes. A secret is handed to the job through a pipe, its stdin; it is in no file,
command line or environment.
"""

# Plain os calls, as descriptors and locks need them:
# ruff: noqa: PTH103, PTH118, PTH123, PTH202, PTH105, PTH116, PTH208, PTH108, PTH120

from __future__ import annotations

import base64
import contextlib
import errno
import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

POLL_S = 0.05
ANSWER_MARK = "--qft-answer--\n"
"""What comes before it was printed by the login shell's start-up files."""
STARTED = b"ok"
LOG_HEAD_BYTES = 1 << 20  # these three in bytes; each is a whole number of any disk's blocks
LOG_END_BYTES = 16 << 20
LOG_SLACK_BYTES = 16 << 20  # how much more may gather before the middle is given back
LOG_CHECK_S = 1.0
KEEP_SIZE_PUNCH_HOLE = 1 | 2  # Linux: fallocate(2)
SECRET_BYTES_MAX = 4096  # what every pipe holds, so that writing it never waits


def main(argv: list[str]) -> int:
    """Run one verb. Exit 0 with the answer, 3 with `{"error": …}` for the caller to handle."""
    os.umask(0o077)  # what we make there is its user's alone
    verbs = {"start": start, "status": status, "tail": tail, "stop": stop}
    request = json.loads(sys.stdin.buffer.read() or b"{}")
    if request.get("secret"):
        forbid_core_dumps()  # of us and of the job
    sys.stdout.write(ANSWER_MARK)
    sys.stdout.flush()
    try:
        answer = verbs[argv[1]](request)
    except OSError as error:
        answer = {"error": "failed", "path": str(error.filename or "")}
        answer["message"] = error.strerror or str(error)
    json.dump(answer, sys.stdout)
    return 3 if "error" in answer else 0


def start(request: dict[str, Any]) -> dict[str, Any]:
    """Start `argv` detached, unless the job runs already; answer as `status`, with `started`.

    Returns when the process exists, or when it is known why it cannot.
    """
    folder = request["directory"]
    os.makedirs(folder, exist_ok=True)
    with start_lock_held(folder) as start_lock:
        lock = take_lock(folder)
        if lock is None:
            return dict(describe(folder, running=True), started=False)
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.close(reader)
            os.close(start_lock)  # or it would stay locked for the life of the job
            supervise(request, folder, lock, writer)  # never returns
        os.close(writer)
        os.close(lock)
        with os.fdopen(reader, "rb") as pipe:
            message = pipe.read()
        os.wait()
        if message != STARTED:
            text = message.decode("utf-8", "replace")
            return {"error": "failed", "message": text, "path": folder}
        return dict(describe(folder, running=is_running(folder)), started=True)


def supervise(request: dict[str, Any], folder: str, lock: int, writer: int) -> None:
    """Leave the session, start the job, wait for it and record how it ended.

    This process shares the lock with the job; the one that ends last releases it.
    """
    with contextlib.suppress(OSError):  # it leads a session already
        os.setsid()
    if os.fork() != 0:
        os._exit(0)  # the starter waits for this one only
    code = 1
    try:
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        child = launch(request, folder, lock)
        os.write(writer, STARTED)
        os.close(writer)
        for descriptor in (0, 1, 2):
            os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
        log_limit = (os.path.join(folder, "job.log"), LOG_CHECK_S)
        threading.Thread(target=limit_log_forever, args=log_limit, daemon=True).start()
        kill_leftovers(child)
        code = child.wait()
        ended = {"exit_code": code if code >= 0 else 128 - code, "ended_at": time.time()}
        write_whole(os.path.join(folder, "exit.json"), ended)
        code = 0
    except OSError as error:
        with contextlib.suppress(OSError):  # the pipe is closed once the job runs
            os.write(writer, f"{error.filename or ''}: {error.strerror}".encode())
        with contextlib.suppress(OSError):  # on a full disk nothing more can be recorded
            ended = {"exit_code": 127, "ended_at": time.time()}
            write_whole(os.path.join(folder, "exit.json"), ended)
    finally:
        os._exit(code)


def launch(request: dict[str, Any], folder: str, lock: int) -> subprocess.Popen[bytes]:
    """Start the job itself in a session of its own, with the lock open, all output in the log."""
    attempt = load_json(os.path.join(folder, "job.json")).get("attempt", 0) + 1
    with contextlib.suppress(FileNotFoundError):  # the first attempt
        os.unlink(os.path.join(folder, "exit.json"))
    record = {"attempt": attempt, "argv": request["argv"], "started_at": time.time()}
    record["keeper"] = os.getpid()
    write_whole(os.path.join(folder, "job.json"), dict(record, pid=0))
    mode = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    log = os.open(os.path.join(folder, "job.log"), mode, 0o600)
    stdin = open_secret(request.pop("secret", ""))
    child = subprocess.Popen(
        request["argv"],
        cwd=request["cwd"],
        env={**os.environ, **request["env"]},
        stdin=stdin,
        stdout=log,
        stderr=log,
        start_new_session=True,
        pass_fds=[lock],
        preexec_fn=restore_signals,  # noqa: PLW1509  (one thread only)
    )
    os.close(log)
    if stdin != subprocess.DEVNULL:
        os.close(stdin)  # the job has the only end now
    write_whole(os.path.join(folder, "job.json"), dict(record, pid=child.pid))
    return child


def open_secret(secret: str) -> int:
    """Return a descriptor from which `secret` can be read once; /dev/null's number without one."""
    if not secret:
        return subprocess.DEVNULL
    data = secret.encode()
    if len(data) > SECRET_BYTES_MAX:
        raise OSError(errno.EMSGSIZE, "the secret is too long")
    reader, writer = os.pipe()
    os.write(writer, data)
    os.close(writer)
    return reader


def forbid_core_dumps() -> None:
    """Let no crash of this process, or of one that it starts, write its memory to a disk.

    The limit is 1 and not 0: only then does Linux not run a program that collects dumps, either.
    """
    with contextlib.suppress(OSError, ValueError):  # the limit is lower already
        resource.setrlimit(resource.RLIMIT_CORE, (1, 1))


def limit_log_forever(log: str, every_s: float) -> None:
    """Keep a log from filling the disk, for as long as this process runs."""
    while True:
        time.sleep(every_s)
        # Without such holes (macOS, some network disks) the log stays whole, as long as it is.
        with contextlib.suppress(OSError, AttributeError, ImportError):  # see above
            punch_hole(log)


def punch_hole(log: str) -> None:
    """Free the disk blocks between the first and the last part of a long log.

    Writers go on at the end; readers find every byte that is left at its old offset.
    """
    import ctypes  # a tenth of this script's start, which every look at a job pays

    with open(log, "r+b") as file:
        number = file.fileno()
        size = os.fstat(number).st_size
        if size - find_hole(number)[1] < LOG_END_BYTES + LOG_SLACK_BYTES:
            return
        length = (size - LOG_END_BYTES) // LOG_HEAD_BYTES * LOG_HEAD_BYTES - LOG_HEAD_BYTES
        punch = ctypes.CDLL(None, use_errno=True).fallocate
        punch.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
        if punch(number, KEEP_SIZE_PUNCH_HOLE, LOG_HEAD_BYTES, length):
            raise OSError(ctypes.get_errno(), "the disk takes no holes", log)


def find_hole(number: int) -> tuple[int, int]:
    """Return where the hole of an open log begins and ends; equal if it has none."""
    end = LOG_HEAD_BYTES
    with contextlib.suppress(OSError, AttributeError):  # it ends before, or holes are unknown here
        end = os.lseek(number, LOG_HEAD_BYTES, os.SEEK_DATA)
    return LOG_HEAD_BYTES, end


def kill_leftovers(child: subprocess.Popen[bytes]) -> None:
    """Wait for the end, then kill what the job left in its group: it may still use the GPU."""
    if hasattr(os, "waitid"):
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # not reaped: the pid stays ours
        with contextlib.suppress(ProcessLookupError, PermissionError):  # none is left
            os.killpg(child.pid, signal.SIGKILL)


def restore_signals() -> None:
    """Restore in the job the signals that its supervisor ignores."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def status(request: dict[str, Any]) -> dict[str, Any]:
    """Return the job's state: `absent`, `running`, `exited` with a code, or `lost` without one."""
    folder = request["directory"]
    if not os.path.isdir(folder):  # noqa: PTH112
        return {"state": "absent", "log_bytes": 0}
    with start_lock_held(folder):
        return describe(folder, running=is_running(folder))


def describe(folder: str, *, running: bool) -> dict[str, Any]:
    """Return the records of a job as one answer."""
    record = load_json(os.path.join(folder, "job.json"))
    ended = load_json(os.path.join(folder, "exit.json"))
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

    Across the hole one line says how many bytes are gone.
    """
    path = os.path.join(request["directory"], "job.log")
    answer: dict[str, Any] = {"data": "", "offset": max(request["offset"], 0)}
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            offset = max(request["offset"] + (size if request["offset"] < 0 else 0), 0)
            file.seek(offset)
            data = file.read(request["limit"])
            first, last = find_hole(file.fileno())  # afterwards: what was read may be gone by now
        if offset < first:
            data = data[: first - offset] if last > first else data
            offset += len(data)
        elif offset < last:
            data, offset = gap_notice(last - offset)[: request["limit"]], last
        else:
            offset += len(data)
        answer["offset"] = offset
        answer["data"] = base64.b64encode(data).decode("ascii")
    except FileNotFoundError:
        answer["offset"] = 0
    if request.get("status"):
        answer["status"] = status(request)
    return answer


def gap_notice(size: int) -> bytes:
    """Return the line that stands for a hole of the log."""
    return b"\n[... %d bytes of the log were dropped here, to leave room on the disk ...]\n" % size


def stop(request: dict[str, Any]) -> dict[str, Any]:
    """Ask the job to end (SIGTERM to its groups), kill it after `grace_s`; answer as `status`."""
    folder, grace_s = request["directory"], request["grace_s"]
    for number, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 10.0)):
        if status(request)["state"] != "running":
            break
        with start_lock_held(folder):  # another call that just tries the lock is not the job
            groups = process_groups(folder)
        for group in groups:
            with contextlib.suppress(ProcessLookupError):  # it has ended
                os.killpg(group, number)
        ends_at = time.monotonic() + wait_s
        while time.monotonic() < ends_at and status(request)["state"] == "running":
            time.sleep(POLL_S)
    return status(request)


def process_groups(folder: str) -> set[int]:
    """Return the process groups of the job: of the recorded process, and of all that have the lock.

    A process that has the lock open is part of the job, whatever its pid. The supervisor is left
    out: it must live to record the end.
    """
    record = load_json(os.path.join(folder, "job.json"))
    if not is_linux():
        return {record["pid"]} if record.get("pid") else set()
    lock = os.stat(os.path.join(folder, "job.lock"))
    groups: set[int] = set()
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in (os.getpid(), record.get("keeper")):
            with contextlib.suppress(ProcessLookupError):  # it has ended
                if has_open(int(name), lock):
                    groups.add(os.getpgid(int(name)))
    return groups


def is_linux() -> bool:
    """Whether /proc lists the open files of processes."""
    return os.path.isdir("/proc/self/fd")  # noqa: PTH112


def has_open(pid: int, lock: os.stat_result) -> bool:
    """Whether a process has the lock file open."""
    folder = f"/proc/{pid}/fd"
    with contextlib.suppress(OSError):  # it ended, or belongs to somebody else
        for name in os.listdir(folder):
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                found = os.stat(os.path.join(folder, name))
                if (found.st_dev, found.st_ino) == (lock.st_dev, lock.st_ino):
                    return True
    return False


@contextlib.contextmanager
def start_lock_held(folder: str) -> Iterator[int]:
    """Hold `start.lock`, so that one process at a time tries the job's lock, as a job holds it."""
    descriptor = os.open(os.path.join(folder, "start.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def take_lock(folder: str) -> int | None:
    """Take the job's lock if it is free; it is held as long as the descriptor is open."""
    descriptor = os.open(os.path.join(folder, "job.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def is_running(folder: str) -> bool:
    """Whether a process of the job is alive, by the kernel's lock."""
    lock = take_lock(folder)
    if lock is None:
        return True
    os.close(lock)
    return False


def load_json(path: str) -> dict[str, Any]:
    """Read a record; one that is absent or cut short is empty."""
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
