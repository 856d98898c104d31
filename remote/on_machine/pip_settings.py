"""Runs on the machine: prints the options that say where its pip finds packages, one a line.

A company's or a laboratory's machine may reach no index but its own, through its own proxy. Those
settings are kept, since a file with a wrong checksum is refused wherever it comes from; all others
(`user`, `target`, `constraint`, `no-binary`, …) would change what is installed, or where to.
Standard library only, Python 3.8 or later; reads what pip reads, in pip's order.
"""

# It stands alone on a machine, without pathlib's start-up time:
# ruff: noqa: PTH111, PTH118

from __future__ import annotations

import configparser
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SINGLE = ("index-url", "proxy", "cert", "client-cert", "timeout", "keyring-provider")
SEVERAL = ("extra-index-url", "find-links", "trusted-host")
FLAGS = ("no-index",)
SECTIONS = ("global", "install")
"""Later ones win."""


def main() -> int:
    """Print the options; what cannot be read counts as not set."""
    for argument in options(dict(os.environ)):
        sys.stdout.write(argument + "\n")
    return 0


def options(environ: Mapping[str, str]) -> list[str]:
    """Return the options for pip's command line, with `~` and relative paths as pip has them."""
    found = settings(environ)
    arguments = [f"--{name}={' '.join(found[name].split())}" for name in SINGLE if found.get(name)]
    for name in SEVERAL:
        arguments += [f"--{name}={one}" for one in found.get(name, "").split()]
    arguments += [
        f"--{name}"
        for name in FLAGS
        if found.get(name, "").strip().lower() in {"1", "true", "yes", "on", "y", "t"}
    ]
    return arguments


def settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the settings by name: of files, the weakest first, then of the environment."""
    found: dict[str, str] = {}
    for path in files(environ):
        parser = configparser.RawConfigParser()
        try:
            parser.read(path, encoding="utf-8")
        except (OSError, ValueError, configparser.Error):
            continue
        for section in SECTIONS:
            if parser.has_section(section):
                found.update((key.replace("_", "-"), value) for key, value in parser.items(section))
    for name in (*SINGLE, *SEVERAL, *FLAGS):
        value = environ.get("PIP_" + name.upper().replace("-", "_"))
        if value:
            found[name] = value
    return found


def files(environ: Mapping[str, str]) -> Iterator[str]:
    """Yield the configuration files that pip would read, the weakest first."""
    named = environ.get("PIP_CONFIG_FILE", "")
    if named == os.devnull:
        return
    home = environ.get("HOME", "") or os.path.expanduser("~")
    for folder in (environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":"):
        yield os.path.join(folder, "pip", "pip.conf")
    yield "/etc/pip.conf"
    yield os.path.join(home, ".pip", "pip.conf")
    own = environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
    yield os.path.join(own, "pip", "pip.conf")
    if named:
        yield named


if __name__ == "__main__":
    sys.exit(main())
