"""Puts a forked child into the sandbox, by one of two mechanisms, and ends whatever it leaves.

`namespaces`: a root, processes, a network and users of its own. `landlock`: for containers, which
may make no namespaces; files by Landlock, processes by their user and by adoption. Both add a
second user where there is root, limits, and a filter of system calls. Standard library only.
"""

from __future__ import annotations

import os
import pwd
import resource
import shutil
import signal
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.code_eval import folders, landlock, linux, seccomp, usage
from trainer.code_eval.cgroups import Groups
from trainer.code_eval.limits import Limits

NAMESPACES, LANDLOCK = "namespaces", "landlock"
UNSHARED = (
    linux.CLONE_NEWNS | linux.CLONE_NEWPID | linux.CLONE_NEWNET | linux.CLONE_NEWIPC
    | linux.CLONE_NEWUTS
)  # fmt: skip
FIRST_FREE_USER, LAST_FREE_USER = 1_880_000_000, 2_147_000_000
"""User numbers that no convention gives to anybody; the number of a process fits behind."""
FIRST_IN_CONTAINER = 50_000
"""Where a container maps 65,536 users only."""


@dataclass(frozen=True)
class Sandbox:
    """What an answer is put into. `user` is the second user; None where there is no root."""

    mechanism: str
    user: int | None
    groups: Groups | None
    readable: tuple[str, ...]
    parent_resident_bytes: int
    parent_address_bytes: int

    def describe(self) -> dict[str, str]:
        """Return in words what holds the answers."""
        return {
            "mechanism": self.mechanism,
            "user": "a second user" if self.user is not None else "a user namespace"
            if self.mechanism == NAMESPACES else "the same user",
            "memory": "a control group" if self.groups else "measured every 10 ms",
        }  # fmt: skip


def make_sandbox(mechanism: str, groups: Groups | None) -> Sandbox:
    """Describe the sandbox that this process can make, for all answers that it forks."""
    return Sandbox(
        mechanism=mechanism,
        user=free_user() if os.geteuid() == 0 else None,
        groups=groups,
        readable=tuple(folders.readable()),
        parent_resident_bytes=usage.resident_bytes(os.getpid()),
        parent_address_bytes=usage.address_bytes(os.getpid()),
    )


def free_user() -> int:
    """Return a user number that nobody has, and no other parent of answers takes now."""
    with open("/proc/self/uid_map") as file:  # noqa: PTH123
        spans = [(int(first), int(count)) for first, _, count in map(str.split, file)]
    highest = max(first + count - 1 for first, count in spans)
    if highest > LAST_FREE_USER:
        return FIRST_FREE_USER + os.getpid()
    user = FIRST_IN_CONTAINER + os.getpid() % 10_000
    taken = {one.pw_uid for one in pwd.getpwall()}
    while user in taken:
        user += 1
    return user


def enter(sandbox: Sandbox, limits: Limits, folder: str, run: Callable[[], None]) -> None:
    """Enter the sandbox in a freshly forked child, call `run`, and never return.

    `folder` is the work folder of the mechanism `landlock`. The exit code is that of `run`'s
    process; 128 + N if signal N ended it.
    """
    os.umask(0o077)
    linux.end_with_parent()
    if sandbox.mechanism == NAMESPACES:
        _enter_namespaces(sandbox, limits)
    else:
        os.chdir(folder)
        os.environ.update(TMPDIR=folder, HOME=folder, MPLCONFIGDIR=folder)
    rules = None
    if sandbox.mechanism == LANDLOCK:  # as the second user it may not reach these paths any more
        shown = [*sandbox.readable, *folders.DEVICES, *folders.NUMBERS]
        rules = landlock.make_rules(shown, [folder, os.devnull])
    _become_nobody(sandbox, limits)
    if rules is not None:
        landlock.restrict(rules)
    seccomp.install()
    run()
    os._exit(0)


def _enter_namespaces(sandbox: Sandbox, limits: Limits) -> None:
    """Return in a process that is the second one of its own namespaces; others wait for it."""
    if sandbox.user is None:
        _enter_user_namespace()
    else:
        linux.unshare(UNSHARED)
    first = os.fork()
    if first:
        _become_quiet()
        os._exit(_exit_code_of(first))
    linux.end_with_parent()  # the first process of the namespace: with it all others end
    folders.enter_new_root(sandbox.readable, limits)
    answer = os.fork()
    if answer:
        _become_quiet()
        os._exit(_exit_code_of(answer))
    os.environ.update(TMPDIR="/tmp", HOME=folders.WORK, MPLCONFIGDIR=folders.WORK)  # noqa: S108


def _enter_user_namespace() -> None:
    user, group = os.geteuid(), os.getegid()
    linux.unshare(UNSHARED | linux.CLONE_NEWUSER)
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{user} {user} 1"),
        ("gid_map", f"{group} {group} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:  # noqa: PTH123
            file.write(text)


def _become_quiet() -> None:
    """Close everything, so that pipes end when the answer ends and not when its waiters do."""
    os.closerange(0, 1024)


def _exit_code_of(process: int) -> int:
    """Wait for a process, and return how it ended as an exit code."""
    while True:
        ended, status = os.waitpid(process, 0)
        if ended == process:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _become_nobody(sandbox: Sandbox, limits: Limits) -> None:
    """Set the limits, change to the second user, and give up every way to gain rights."""
    busy = 0 if sandbox.user is not None or sandbox.mechanism == NAMESPACES else _tasks_of_user()
    cpu_s = int(limits.wall_s) + 1
    for name, value in (
        (resource.RLIMIT_AS, sandbox.parent_address_bytes + limits.address_bytes),
        (resource.RLIMIT_NPROC, limits.processes + busy),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        hard = resource.getrlimit(name)[1]
        most = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(name, (most, most))
    linux.forbid_new_privileges()
    linux.empty_bounding_set()
    kept: list[int] = []
    if sandbox.user is not None:
        # In a root of its own the folders on the way to what is shown are open.
        above = sandbox.mechanism == LANDLOCK
        kept = _needed_to_read(sandbox.readable, above=above)
        linux.prctl(linux.PR_SET_KEEPCAPS, bool(kept), what="keep capabilities")
        os.setgroups([])
        os.setresgid(sandbox.user, sandbox.user, sandbox.user)
        os.setresuid(sandbox.user, sandbox.user, sandbox.user)
    linux.keep_capabilities(*kept)
    if sandbox.mechanism == LANDLOCK:
        linux.end_with_parent()


def _needed_to_read(paths: Sequence[str], *, above: bool) -> list[int]:
    """Return the capabilities that the second user needs to read these paths.

    Where the interpreter is its owner's alone, reading past permissions lets it in; everything that
    is not listed is hidden, or shut by Landlock. `above`: the folders on the way count, too.

    Raises:
        OSError: a folder is closed to him, and this process cannot hand that capability on.
    """
    closed = [path for path in paths if not _is_open_to_all(path, above=above)]
    if not closed:
        return []
    if not linux.has_capability(linux.CAP_DAC_READ_SEARCH):
        raise PermissionError(
            f"{closed[0]} is in a folder that is closed to other users, and answers run as one: "
            "open the folders above it (chmod o+x), or name another interpreter (eval.python)"
        )
    return [linux.CAP_DAC_READ_SEARCH]


def _is_open_to_all(path: str, *, above: bool) -> bool:
    """Tell whether everybody may read a folder or a file, and enter all `above` it."""
    real = Path(path).resolve()
    needed = 0o005 if real.is_dir() else 0o004
    if real.stat().st_mode & needed != needed:
        return False
    return not above or all(one.stat().st_mode & 0o001 for one in real.parents)


def _tasks_of_user() -> int:
    """Count the processes and threads of this user, which its limit counts, too."""
    count, user = 0, os.getuid()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if entry.stat().st_uid == user:
                    count += len([*(entry / "task").iterdir()])
            except OSError:
                continue  # it has ended meanwhile
    return count


def work_folder(sandbox: Sandbox) -> str:
    """Make the folder in memory that an answer works in; empty where it has a root of its own.

    Raises:
        OSError: there is no file system in memory to make it in.
    """
    if sandbox.mechanism == NAMESPACES:
        return ""
    folder = tempfile.mkdtemp(prefix="qft-answer-", dir=folders.SHARED_MEMORY)
    if sandbox.user is not None:
        os.chown(folder, sandbox.user, sandbox.user)
    return folder


def end_all(sandbox: Sandbox, pids: Sequence[int]) -> None:
    """Kill the processes given, and with a second user all that are his, at once."""
    for process in pids:
        kill(process)
    if sandbox.user is None or sandbox.mechanism == NAMESPACES:
        return
    helper = os.fork()
    if helper == 0:
        try:
            os.setgroups([])
            os.setresgid(sandbox.user, sandbox.user, sandbox.user)
            os.setresuid(sandbox.user, sandbox.user, sandbox.user)
            if os.getresuid() == (sandbox.user,) * 3:  # as root it would end the whole machine
                os.kill(-1, signal.SIGKILL)  # of this user's processes it spares its caller alone
        finally:
            os._exit(0)
    os.waitpid(helper, 0)


def kill(process: int) -> None:
    """Kill one process that may have ended already."""
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return


def remove_work_folder(folder: str) -> None:
    """Remove a work folder and what the answer left there; links are not followed."""
    if folder:
        shutil.rmtree(folder, ignore_errors=True)
