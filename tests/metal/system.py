"""The rest of the system: its units, power, disk, downloads; all as Ubuntu answers."""

from __future__ import annotations

import os
import sys
import time

from metal.state import UNITS, State, Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

METADATA = "169.254.169.254"
ROOT = "METAL_ROOT"
"""In the environment of what runs as root."""


def is_root() -> bool:
    """Whether the program was started through `sudo`."""
    return os.environ.get(ROOT) == "1"


def disk_free(store: Store, arguments: list[str]) -> int:
    """The disk that was rented, not that of this computer."""
    state = store.read()
    total, used = int(state.disk_gb * 1e6), int(state.used_gb * 1e6)
    sys.stdout.write(
        "Filesystem     1024-blocks    Used Available Capacity Mounted on\n"
        f"/dev/root {total} {used} {total - used} {100 * used // total}% /\n"
    )
    del arguments
    return 0


def sleep(store: Store, arguments: list[str]) -> int:
    """Wait, at the machine's pace."""
    store.nap(float(arguments[0].removesuffix("s")))
    return 0


def systemctl(store: Store, arguments: list[str]) -> int:
    """`is-active`, `stop`, `disable`, `reboot`; more for units that are not the system's own."""
    verb, units = arguments[0], [one for one in arguments[1:] if not one.startswith("-")]
    if verb == "is-active":
        active = [unit in store.read().active for unit in units]
        if "--quiet" not in arguments:
            sys.stdout.write("".join("active\n" if one else "inactive\n" for one in active))
        return 0 if any(active) else 3
    if not is_root():
        sys.stderr.write(
            f"Failed to {verb} {' '.join(units)}: Interactive authentication required\n"
        )
        return 1
    if verb in {"reboot", "poweroff"}:
        return press(store, verb)
    if not set(units) & set(UNITS):
        from metal import units as written

        return written.systemctl(store, verb, units, now="--now" in arguments)
    unknown = [unit for unit in units if unit not in UNITS]
    if unknown:
        sys.stderr.write(f"Failed to {verb} unit: Unit file {unknown[0]} does not exist.\n")
        return 1
    # Stopping the upgrades' service waits for an upgrade that is under way, up to half an hour.
    while "unattended-upgrades.service" in units:
        state = store.read()
        if state.frontend_holder != "unattended-upgr" or state.frontend_until <= time.time():
            break
        time.sleep(0.02)
    with store.change() as state:
        state.active = [one for one in state.active if one not in units]
        state.done.append(f"systemctl {verb} {' '.join(units)}")
    return 0


def reboot(store: Store, _arguments: list[str]) -> int:
    """Restart the machine."""
    return press(store, "reboot")


def poweroff(store: Store, _arguments: list[str]) -> int:
    """Switch the machine off."""
    return press(store, "poweroff")


def shutdown(store: Store, arguments: list[str]) -> int:
    """`-h now`, `-P now`, `-r now`; times other than now are not played."""
    flags = {one for one in arguments if one.startswith("-")}
    if "now" not in arguments or not flags <= {"-h", "-P", "-r"}:
        sys.stderr.write(f"shutdown: not played: {' '.join(arguments)}\n")
        return 2
    return press(store, "reboot" if "-r" in flags else "poweroff")


def press(store: Store, button: str) -> int:
    """Press a button: whoever holds the other end of the line acts on the machine."""
    import socket

    if not is_root():
        sys.stderr.write(f"Failed to {button} system: Interactive authentication required.\n")
        return 1
    with store.change() as state:
        state.done.append(button)
    with socket.create_connection(("127.0.0.1", state.button), timeout=5) as line:
        line.sendall(f"{button} {state.name}\n".encode())
    return 0


def cloud_init(store: Store, arguments: list[str]) -> int:
    """Where the first boot is, and how it ended."""
    while running := (state := store.read()).booting or state.cloud_init_until > time.time():
        if "--wait" not in arguments:
            break
        time.sleep(0.02)
    word = "running" if running else "error" if state.cloud_init_error else "done"
    sys.stdout.write(f"status: {word}\n")
    if "--long" in arguments:
        errors = f"\n\t- {state.cloud_init_error}" if word == "error" else " []"
        sys.stdout.write(
            f"extended_status: {'error - done' if word == 'error' else word}\n"
            "boot_status_code: enabled-by-generator\ndetail: {state.datasource}\n"
            f"errors:{errors}\nrecoverable_errors: {{}}\n"
        )
    return 1 if word == "error" else 0


def mokutil(store: Store, _arguments: list[str]) -> int:
    """Whether the firmware takes signed code only."""
    word = "enabled" if store.read().secure_boot else "disabled"
    sys.stdout.write(f"SecureBoot {word}\n")
    return 0


def curl(store: Store, arguments: list[str]) -> int:
    """Fetch NVIDIA's installer, if there is a way out; ask the metadata service, always there."""
    state = store.read()
    if METADATA in arguments[-1]:
        return ask_metadata(state, arguments)
    target = arguments[arguments.index("-o") + 1]
    address = arguments[-1]
    host = address.split("/")[2]
    if not state.outbound:
        store.nap(120)
        sys.stderr.write(
            f"curl: (28) Failed to connect to {host} port 443 after 129345 ms: Couldn't connect to"
            " server\n"
        )
        return 28
    with open(target, "w", encoding="utf-8") as file:  # noqa: PTH123  (pathlib is slow to import)
        file.write("touch /root/executed\n" * state.forged)
        file.write(f'exec nvidia-installer {address.rpartition("/")[2]} "$@"\n')
    with store.change() as state:
        state.done.append(f"curl {address}")
    return 0


def ask_metadata(state: State, arguments: list[str]) -> int:
    """One question to the metadata service, with the headers that were given."""
    import urllib.request

    index = arguments.index("-H") + 1
    headers = dict([arguments[index].split(":", 1)])
    page = arguments[-1].replace(METADATA, f"127.0.0.1:{state.metadata_port}")
    request = urllib.request.Request(page, headers=headers)  # noqa: S310  (loopback)
    with urllib.request.urlopen(request, timeout=180) as answer:  # noqa: S310
        sys.stdout.write(answer.read().decode())
    return 0


def script(store: Store, arguments: list[str]) -> int:
    """Run a file in Python, with the metadata service at its well-known address."""
    import runpy
    import socket

    port, real = store.read().metadata_port, socket.create_connection

    def connect(address: tuple[str, int], *rest: Any, **named: Any) -> Any:
        there = ("127.0.0.1", port) if address[0] == METADATA else address
        return real(there, *rest, **named)

    socket.create_connection = connect  # type: ignore[assignment]  # it takes all that is asked
    sys.argv, sys.path[0] = arguments, os.path.dirname(arguments[0])  # noqa: PTH120
    runpy.run_path(arguments[0], run_name="__main__")
    return 0
