"""Which folders an answer may read, and the root in which it sees nothing but these.

Standard library only.
"""

from __future__ import annotations

import os
import stat
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

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
ROOT = Path("/tmp")  # noqa: S108 - there is one everywhere; the new root is mounted over it
WORK = "/tmp/work"  # noqa: S108 - in a `/tmp` that only the answer sees
SHARED_MEMORY = "/dev/shm"  # noqa: S108 - likewise
SHARED_BYTES = 64 << 20
PACKAGES = ("site-packages", "dist-packages")


def readable() -> list[str]:
    """Return the paths that an answer may read: the system's, and those of this interpreter."""
    roots = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}
    wanted = [f"{root}/{name}" for root in sorted(roots) for name in OF_INTERPRETER]
    wanted += sorted({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "platlib")})
    wanted += [str(Path(sys.executable).resolve())]
    # What a `.pth` file adds, such as the environment that has torch; no project of the user's.
    wanted += [path for path in sys.path if Path(path).name in PACKAGES]
    found: list[Path] = []
    for path in map(Path, (*SYSTEM, *wanted)):
        if os.path.lexists(path) and not any(path.is_relative_to(one) for one in found):
            found.append(path)
    return [str(path) for path in found]


def enter_new_root(shown: Sequence[str], limits: Limits) -> None:
    """Replace the root by one that holds `shown` read-only, few devices, and an empty `/tmp`.

    This process must be the first one of its own namespaces of mounts and processes. It is left in
    an empty work folder in memory.

    Raises:
        OSError: a mount was refused, as it is in most containers.
    """
    linux.mount("none", "/", "", linux.MS_REC | linux.MS_PRIVATE)
    paths = [Path(path) for path in (*shown, *DEVICES) if Path(path).exists()]
    sources = [
        (path, os.open(path, os.O_PATH | os.O_CLOEXEC)) for path in paths if not path.is_symlink()
    ]
    links = [(path, path.readlink()) for path in paths if path.is_symlink()]
    os.umask(0o022)  # folders on the way to what is shown must be open to the second user
    flags = linux.MS_NOSUID | linux.MS_NODEV
    linux.mount("none", str(ROOT), "tmpfs", flags, "size=1m,nr_inodes=2k,mode=755")
    for name in ("proc", "tmp", "dev/shm", "old"):
        (ROOT / name).mkdir(parents=True)
    size = f"size={limits.folder_bytes},nr_inodes={limits.folder_files},mode=1777"
    linux.mount("none", str(ROOT / "tmp"), "tmpfs", flags, size)
    shared = f"size={min(SHARED_BYTES, limits.folder_bytes)},nr_inodes=256,mode=1777"
    linux.mount("none", f"{ROOT}{SHARED_MEMORY}", "tmpfs", flags | linux.MS_NOEXEC, shared)
    for path, descriptor in sources:  # after those: an interpreter may lie below `/tmp`
        _bind(descriptor, _below_root(path), read_only=str(path) not in DEVICES)
        os.close(descriptor)
    for path, target in links:
        _below_root(path).parent.mkdir(parents=True, exist_ok=True)
        _below_root(path).symlink_to(target)
    linux.mount("none", f"{ROOT}/proc", "proc", flags | linux.MS_NOEXEC)
    linux.restrict_mount(f"{ROOT}/proc", linux.MOUNT_READ_ONLY)
    _change_root()


def _change_root() -> None:
    """Make the new root the only one, read-only, and enter the work folder."""
    linux.pivot_root(str(ROOT), f"{ROOT}/old")
    os.chdir("/")
    linux.unmount("/old")
    Path("/old").rmdir()
    linux.restrict_mount("/", linux.MOUNT_READ_ONLY, recursive=False)
    Path(WORK).mkdir()
    Path(WORK).chmod(0o1777)  # nobody else can see it
    os.chdir(WORK)
    os.umask(0o077)


def _below_root(path: Path) -> Path:
    return ROOT / path.relative_to("/")


def _bind(descriptor: int, target: Path, *, read_only: bool) -> None:
    """Show what a descriptor names under another path; the old path may be hidden by now."""
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    linux.mount(f"/proc/self/fd/{descriptor}", str(target), "", linux.MS_BIND | linux.MS_REC)
    attributes = linux.MOUNT_NOSUID | (linux.MOUNT_READ_ONLY | linux.MOUNT_NODEV) * read_only
    linux.restrict_mount(str(target), attributes)
