"""The package tools: their locks, their way out to the archive, and what they refuse."""

from __future__ import annotations

import os
import sys
import time

from metal.state import VENV, State, Store
from metal.system import is_root

DRIVER = "580.126.09"
"""What the distribution has for a T4, signed by it."""
DRIVER_PACKAGES = (
    "nvidia-driver-580",
    "nvidia-utils-580",
    "nvidia-kernel-common-580",
    "libnvidia-compute-580",
)
"""Beside the modules for the kernel that runs."""
PIN = "nvidia-driver-pinning-580.173.02"
"""Holds every package of NVIDIA's own repository at that version, above the distribution's."""
OPEN_PACKAGES = (
    *("cuda-keyring", PIN, "nvidia-open", "nvidia-open-580", "nvidia-driver-580-open"),
    *("nvidia-dkms-580-open", "nvidia-kernel-common-580", "nvidia-utils-580"),
    "libnvidia-compute-580",
)
"""What NVIDIA's repository installs as `nvidia-open`."""
COMMON = ("nvidia-kernel-common-580", "nvidia-utils-580", "libnvidia-compute-580")
DEPENDS = {
    "cuda-drivers": ("cuda-drivers-580",),
    "cuda-drivers-580": ("nvidia-driver-580",),
    "nvidia-driver-580": ("nvidia-dkms-580", *COMMON),
    "nvidia-open": ("nvidia-open-580",),
    "nvidia-open-580": ("nvidia-driver-580-open",),
    "nvidia-driver-580-open": ("nvidia-dkms-580-open", *COMMON),
}
"""Of NVIDIA's repository, as far as it matters here."""
CONFLICTS = {
    "nvidia-dkms-580": "nvidia-dkms-580-open",
    "nvidia-dkms-580-open": "nvidia-dkms-580",
}
CUT = "var/lib/dpkg/updates/0001"
"""What dpkg leaves when it is cut in the middle: a note that was not yet merged."""
ARCHIVE = frozenset({VENV, "ubuntu-drivers-common", "build-essential", "curl", *DRIVER_PACKAGES})
"""Beside what belongs to one kernel."""
FRONTEND = "/var/lib/dpkg/lock-frontend"
LISTS = "/var/lib/apt/lists/lock"
PID = 1187
"""Of who holds the lock for installing."""


def apt_get(store: Store, arguments: list[str]) -> int:
    """`update`, `install`, `purge`, `check`, with or without patience for the lock."""
    options, operands = split(arguments)
    verb, names = operands[0], operands[1:]
    if not is_root():
        sys.stderr.write(f"E: Could not open lock file {FRONTEND} - open (13: Permission denied)\n")
        return 100
    if verb == "update":
        return update(store)
    if not wait(store, float(options.get("DPkg::Lock::Timeout", "0"))):
        return 100
    if os.path.exists(f"{store.read().root}/{CUT}"):  # noqa: PTH110  (pathlib is slow to import)
        sys.stderr.write(
            "E: dpkg was interrupted, you must manually run 'dpkg --configure -a' to correct the"
            " problem. \n"
        )
        return 100
    if verb == "check":
        return 0
    with store.change() as state:
        offered = {*ARCHIVE, f"linux-headers-{state.kernel}", *driver_packages(state)}
        if PIN in state.packages:
            offered |= DEPENDS.keys() | CONFLICTS.keys()
        unknown = [name for name in names if name not in offered | set(state.packages)]
        if unknown:
            sys.stderr.write("".join(f"E: Unable to locate package {name}\n" for name in unknown))
            return 100
        if verb == "install":
            return install(state, names)
        held = [name for name in names if name in state.held]
        if held:
            sys.stderr.write("E: Held packages were changed and -y was used\n")
            return 100
        purge(state, names)
    return 0


def split(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """Tell `-o NAME=VALUE` and flags from words."""
    options: dict[str, str] = {}
    operands = []
    rest = iter(arguments)
    for one in rest:
        if one == "-o":
            name, _, value = next(rest).partition("=")
            options[name] = value
        elif not one.startswith("-"):
            operands.append(one)
    return options, operands


def update(store: Store) -> int:
    """Fetch the lists; a lost network is a warning only, as with the real one."""
    state = store.read()
    if state.lists_until > time.time():
        sys.stderr.write(
            f"E: Could not get lock {LISTS}. It is held by process 1203 (apt-get)\n"
            "E: Unable to lock directory /var/lib/apt/lists/\n"
        )
        return 100
    if not state.outbound:
        store.nap(30)
        sys.stdout.write(f"Ign:1 http://{state.mirror}/ubuntu noble InRelease\n")
        sys.stderr.write(
            f"W: Failed to fetch http://{state.mirror}/ubuntu/dists/noble/InRelease  Could not"
            f" connect to {state.mirror}:80 (20.53.0.1), connection timed out\n"
            "W: Some index files failed to download. They have been ignored, or old ones used"
            " instead.\n"
        )
    return 0


def wait(store: Store, timeout_s: float) -> bool:
    """Wait for the lock on installing as long as apt was told to; say who has it."""
    began = time.time()
    reported = False
    while (state := store.read()).frontend_until > time.time():
        held = (
            f"Could not get lock {FRONTEND}. It is held by process {PID} ({state.frontend_holder})"
        )
        if time.time() - began >= timeout_s / state.pace:
            sys.stderr.write(
                f"E: {held}\nN: Be aware that removing the lock file is not a solution and may"
                " break your system.\nE: Unable to acquire the dpkg frontend lock"
                f" ({FRONTEND}), is another process using it?\n"
            )
            return False
        if not reported:
            reported = True
            sys.stdout.write(f"Waiting for cache lock: {held}...\n")
            sys.stdout.flush()
        time.sleep(0.05)
    return True


def install(state: State, names: list[str]) -> int:
    """Fetch and unpack with what it depends on, and remove what it conflicts with.

    Nothing is done without a way out to the archive, or if a held package would have to go.
    """
    pinned = PIN in state.packages
    wanted = closure(names) if pinned else list(names)
    gone = [CONFLICTS[name] for name in wanted if pinned and CONFLICTS.get(name) in state.packages]
    while more := [
        name
        for name in state.packages
        if name not in gone and set(DEPENDS.get(name, ())) & set(gone)
    ]:
        gone += more
    if set(gone) & set(state.held):
        sys.stderr.write(
            "E: Held packages were changed and -y was used without --allow-change-held-packages.\n"
        )
        return 100
    fresh = [name for name in wanted if name not in state.packages]
    if fresh and not state.outbound:
        sys.stderr.write(
            "".join(
                f"E: Failed to fetch http://{state.mirror}/ubuntu/pool/{name}.deb  Could not"
                f" connect to {state.mirror}:80 (20.53.0.1), connection timed out\n"
                for name in fresh
            )
            + "E: Unable to fetch some archives, maybe run apt-get update or try with"
            " --fix-missing?\n"
        )
        return 100
    if fresh:
        state.done.append(f"apt-get install {' '.join(fresh)}")
    state.packages = sorted({*state.packages, *fresh} - set(gone))
    if pinned and "nvidia-dkms-580" in fresh:
        state.driver, state.open, state.signed = PIN.rpartition("-")[2], False, False
        state.by_file = state.grid = False
    return 0


def closure(names: list[str]) -> list[str]:
    """The packages with all that they depend on."""
    found = list(names)
    for name in found:
        found += [one for one in DEPENDS.get(name, ()) if one not in found]
    return found


def dpkg(store: Store, arguments: list[str]) -> int:
    """`--configure -a`: merges the notes of a cut, as root, if nobody else holds the lock."""
    if "--configure" not in arguments:
        sys.stderr.write("dpkg: error: need an action option\n")
        return 2
    if not is_root():
        sys.stderr.write("dpkg: error: requested operation requires superuser privilege\n")
        return 2
    with store.change() as state:
        if state.frontend_until > time.time():
            sys.stderr.write(
                f"dpkg: error: dpkg frontend lock was locked by another process with pid {PID}\n"
            )
            return 2
        if os.path.exists(f"{state.root}/{CUT}"):  # noqa: PTH110
            os.unlink(f"{state.root}/{CUT}")  # noqa: PTH108
        state.done.append("dpkg --configure -a")
    return 0


def purge(state: State, names: list[str]) -> None:
    """Remove packages, and the driver with them if it was theirs."""
    state.done.append(f"apt-get purge {' '.join(names)}")
    state.packages = [name for name in state.packages if name not in names]
    if not state.by_file and state.driver and "nvidia-utils-580" in names:
        state.driver = state.loaded = ""
        state.open = False


def apt_mark(store: Store, arguments: list[str]) -> int:
    """`hold`, `unhold`, `showhold`; the first two need the lock at once, and wait for nothing."""
    verb, names = arguments[0], arguments[1:]
    if verb == "showhold":
        sys.stdout.write("".join(f"{name}\n" for name in store.read().held))
        return 0
    if not names:
        sys.stderr.write("E: No packages found\n")
        return 100
    if not is_root():
        sys.stderr.write("dpkg: error: required read/write access to the dpkg database\n")
        return 100
    with store.change() as state:
        if state.frontend_until > time.time():
            sys.stderr.write(
                "dpkg: error: dpkg frontend lock was locked by another process with pid"
                f" {PID}\nE: Executing dpkg failed. Are you root?\n"
            )
            return 100
        unknown = [name for name in names if name not in state.packages]
        if unknown:
            sys.stderr.write("".join(f"E: Unable to locate package {name}\n" for name in unknown))
            return 100
        state.done.append(f"apt-mark {verb} {' '.join(names)}")
        kept = {*state.held, *names} if verb == "hold" else set(state.held) - set(names)
        state.held = sorted(kept)
    return 0


def dpkg_query(store: Store, arguments: list[str]) -> int:
    """List `${Status} ${Package}` of what matches; patterns that match nothing are an error."""
    _, operands = split([one for one in arguments if one != "-W"])
    state = store.read()
    code = 0
    if "Abbrev" in operands[0] and not operands[1:]:
        sys.stdout.write("".join(f"ii {name}\n" for name in state.packages))
    for pattern in operands[1:]:  # the first is the format, after `-f`
        stem = pattern.removesuffix("*")
        found = [
            name
            for name in state.packages
            if name == pattern or (stem != pattern and name.startswith(stem))
        ]
        for name in found:
            sys.stdout.write(f"{'hold' if name in state.held else 'install'} ok installed {name}\n")
        if not found:
            sys.stderr.write(f"dpkg-query: no packages found matching {pattern}\n")
            code = 1
    return code


def driver_packages(state: State) -> list[str]:
    """What the distribution installs as its driver for the kernel that runs."""
    return [*DRIVER_PACKAGES, f"linux-modules-nvidia-580-{state.kernel}"]


def ubuntu_drivers(store: Store, arguments: list[str]) -> int:
    """Install the distribution's driver, over whatever an installer of NVIDIA's left there."""
    if "ubuntu-drivers-common" not in store.read().packages:
        sys.stderr.write("sh: 1: ubuntu-drivers: not found\n")
        return 127
    if arguments[0] != "install" or not is_root():
        sys.stderr.write("ubuntu-drivers: this needs root, and a verb\n")
        return 1
    if not wait(store, 0):
        return 1
    if PIN in store.read().packages:
        sys.stderr.write(
            "The following packages have unmet dependencies:\n nvidia-driver-580 : Depends:"
            " libnvidia-compute-580 (= 580.126.09-0ubuntu0.24.04.2)\n"
            "E: Unable to correct problems, you have held broken packages.\n"
        )
        return 1
    with store.change() as state:
        if set(driver_packages(state)) <= set(state.packages):
            sys.stdout.write("All the available drivers are already installed.\n")
            return 0
        code = install(state, driver_packages(state))
        if code == 0:
            state.stray = state.by_file
            state.driver, state.grid, state.by_file, state.signed = DRIVER, False, False, True
            state.stuck = state.open = False
        return code
