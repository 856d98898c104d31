"""The table of played programs, and the way in: `NAME ARGUMENTS…` on the machine leads here."""

from __future__ import annotations

import importlib
import sys

from metal.state import Store

PROGRAMS = {
    "apt-get": "packages.apt_get",
    "apt-mark": "packages.apt_mark",
    "cloud-init": "system.cloud_init",
    "curl": "system.curl",
    "df": "system.disk_free",
    "dmesg": "gpu.dmesg",
    "dpkg": "packages.dpkg",
    "dpkg-query": "packages.dpkg_query",
    "init": "firstboot.boot",
    "lspci": "gpu.lspci",
    "modinfo": "gpu.modinfo",
    "mokutil": "system.mokutil",
    "nvidia-installer": "gpu.installer",
    "nvidia-smi": "gpu.nvidia_smi",
    "nvidia-uninstall": "gpu.uninstall",
    "pip": "pythons.pip",
    "poweroff": "system.poweroff",
    "reboot": "system.reboot",
    "script": "system.script",
    "shutdown": "system.shutdown",
    "sleep": "system.sleep",
    "systemctl": "system.systemctl",
    "ubuntu-drivers": "packages.ubuntu_drivers",
    "venv": "pythons.venv",
}
SHELLED = {
    "id": '[ "$METAL_ROOT" = 1 ] && echo 0 || echo 1000',
    "sudo": '[ "$1" = -n ] && shift; METAL_ROOT=1 exec "$@"',
    "uname": 'case "$1" in -r) echo {kernel} ;; -m) echo x86_64 ;; *) echo Linux ;; esac',
    # A real shell, for which the machine's own files stand at their real names. A machine that
    # goes down ends what renames them, too: half a text must not be run, and end well.
    "sh": """
moved() {{
  sed -E -e 's#{root}#\\x01#g' \\
    -e 's#(^|[^A-Za-z0-9_./-])/(etc|proc|sys|var|root)/#\\1{root}/\\2/#g' -e 's#\\x01#{root}#g'
}}
case "$1" in
  -c) text=$(printf '%s\\n' "$2" | moved) || exit; shift 2; exec /bin/sh -c "$text" "$@" ;;
  -s) shift; text=$(moved) || exit; exec /bin/sh -c "$text" sh "$@" ;;
  *) text=$(moved < "$1") || exit; exec /bin/sh -c "$text" "$@" ;;
esac""",
}
"""Those that are needed most, written for speed as shell scripts."""
NO_SUDO = "echo 'sudo: a password is required' >&2; exit 1"
"""`sudo` of a user who may not become root without a password."""


def main(arguments: list[str]) -> int:
    """Play one program: `DIRECTORY NAME ARGUMENTS…`."""
    directory, name, *rest = arguments
    module, _, function = PROGRAMS[name].partition(".")
    played = getattr(importlib.import_module(f"metal.{module}"), function)
    return int(played(Store(directory), rest))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
