"""Which folders an answer may read, and the root in which it sees nothing but these.

Standard library only.
"""

from __future__ import annotations

import os
import stat
import sys
import sysconfig
from collections.abc import Sequence

from trainer.code_eval import linux
from trainer.code_eval.limits import Limits

SYSTEM = (
    "/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/etc/ld.so.cache", "/etc/localtime",
    "/etc/fonts", "/etc/mime.types", "/etc/alternatives",
)  # fmt: skip
"""What a program needs of the system; nothing of it is anybody's own."""
OF_INTERPRETER = ("lib", "lib64", "bin", "share", "pyvenv.cfg")
"""What is read of a Python installation: its root may be a home folder."""
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
NUMBERS = ("/proc/cpuinfo", "/proc/meminfo")
"""Where there is no `/proc` of the answer's own, these two files are all of it."""
WORK = "/tmp/work"  # noqa: S108 - in a `/tmp` that only the answer sees
SHARED_MEMORY = "/dev/shm"  # noqa: S108 - likewise
SHARED_BYTES = 64 << 20


def readable() -> list[str]:
    """Return the paths that an answer may read: the system's, and those of this interpreter."""
    roots = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}
    wanted = [f"{root}/{name}" for root in sorted(roots) for name in OF_INTERPRETER]
    wanted += sorted({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "platlib")})
    wanted += [os.path.realpath(sys.executable)]
    found = [path for path in (*SYSTEM, *wanted) if os.path.lexists(path)]
    return [path for at, path in enumerate(found) if not _is_below(path, found[:at])]


def _is_below(path: str, others: Sequence[str]) -> bool:
    return any(path == one or path.startswith(f"{one}/") for one in others)


def enter_new_root(shown: Sequence[str], limits: Limits) -> None:
    """Replace the root by one that holds `shown` read-only, few devices, and an empty `/tmp`.

    This process must be the first one of its own namespaces of mounts and processes. It is left in
    an empty work folder in memory.

    Raises:
        OSError: a mount was refused, as it is in most containers.
    """
    linux.mount("none", "/", "", linux.MS_REC | linux.MS_PRIVATE)
    sources = [(path, os.open(path, os.O_PATH | os.O_CLOEXEC)) for path in _opened(shown)]
    links = [(path, os.readlink(path)) for path in shown if os.path.islink(path)]
    flags = linux.MS_NOSUID | linux.MS_NODEV
    linux.mount("none", "/tmp", "tmpfs", flags, "size=1m,nr_inodes=2k,mode=755")  # noqa: S108
    for path, descriptor in sources:
        _bind(descriptor, f"/tmp{path}", read_only=path not in DEVICES)
        os.close(descriptor)
    for path, target in links:
        os.makedirs(os.path.dirname(f"/tmp{path}"), exist_ok=True)
        os.symlink(target, f"/tmp{path}")
    for name in ("proc", "tmp", "dev/shm", "old"):
        os.makedirs(f"/tmp/{name}", exist_ok=True)
    linux.mount("none", "/tmp/proc", "proc", flags | linux.MS_NOEXEC)
    linux.pivot_root("/tmp", "/tmp/old")  # noqa: S108
    os.chdir("/")
    linux.unmount("/old")
    os.rmdir("/old")
    size = f"size={limits.folder_bytes},nr_inodes={limits.folder_files},mode=1777"
    linux.mount("none", "/tmp", "tmpfs", flags, size)  # noqa: S108
    shared = f"size={min(SHARED_BYTES, limits.folder_bytes)},nr_inodes=256,mode=1777"
    linux.mount("none", SHARED_MEMORY, "tmpfs", flags | linux.MS_NOEXEC, shared)
    linux.restrict_mount("/proc", linux.MOUNT_READ_ONLY)
    linux.restrict_mount("/", linux.MOUNT_READ_ONLY, recursive=False)
    os.mkdir(WORK)
    os.chmod(WORK, 0o1777)  # noqa: S103 - nobody else can see it
    os.chdir(WORK)


def _opened(shown: Sequence[str]) -> list[str]:
    """Return what is bound into the new root: of links only the names are needed there."""
    return [path for path in (*shown, *DEVICES) if os.path.exists(path) and not os.path.islink(path)]


def _bind(descriptor: int, target: str, *, read_only: bool) -> None:
    """Show what a descriptor names under another path; the old path may be hidden by now."""
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
    linux.mount(f"/proc/self/fd/{descriptor}", target, "", linux.MS_BIND | linux.MS_REC)
    attributes = linux.MOUNT_NOSUID | (linux.MOUNT_READ_ONLY | linux.MOUNT_NODEV) * read_only
    linux.restrict_mount(target, attributes)
