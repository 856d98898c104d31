"""Describes the machine and the versions that a benchmark ran with."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

OURS = (
    "torch", "transformers", "peft", "bitsandbytes", "accelerate", "numpy", "paramiko", "asyncssh",
)  # fmt: skip
PEERS = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "trl", "datasets")
LOAD_MAX = 0.5
"""Above it, something else works on this machine, and no time is worth anything."""


def describe(root: Path, peers_python: Path) -> dict[str, Any]:
    """Return processor, cores, memory, system, versions of both environments, and the commit."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "load_before": round(os.getloadavg()[0], 2),
        "commit": _output(["git", "-C", str(root), "rev-parse", "--short", "HEAD"]),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in OURS},
        "peers": peers_versions(peers_python),
        "tools": {
            "rsync": _first(["rsync", "--version"], r"version (\S+)"),
            "ssh": _first(["ssh", "-V"], r"(OpenSSH_\S+)"),
        },
    }


def processor() -> str:
    """Return the processor's name as the kernel has it."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else platform.machine()


def version(name: str) -> str | None:
    """Return the version of an installed package."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def peers_versions(python: Path) -> dict[str, str | None]:
    """Return the versions of the other tools in their own environment, nothing if it is missing."""
    if not python.exists():
        return {}
    code = (
        "import json, sys; from importlib import metadata as m\n"
        "has = {d.metadata['Name'] for d in m.distributions()}\n"
        "print(json.dumps({n: m.version(n) if n in has else None for n in sys.argv[1:]}))"
    )
    found: dict[str, str | None] = json.loads(_output([str(python), "-c", code, *PEERS]) or "{}")
    return found


def _first(command: list[str], pattern: str) -> str | None:
    found = re.search(pattern, _output(command))
    return found[1] if found else None


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return (done.stdout + done.stderr).strip()
