"""Looks for a CUDA card where the trainer cannot be asked, since something it needs is missing.

    python -m gpu.card

prints JSON in the terms of `python -m trainer probe`, by torch if it is there, else by the driver.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from typing import Any


def main() -> int:
    """Print what was found."""
    facts = {"python": platform.python_version(), "gpu": None, "memory_bytes": None}
    try:
        facts |= by_torch()
    except (ImportError, OSError):
        facts |= by_driver()
    sys.stdout.write(json.dumps(facts) + "\n")
    return 0


def by_torch() -> dict[str, Any]:
    """Return what torch sees."""
    import torch

    if not torch.cuda.is_available():
        return {"device": "cpu"}
    properties = torch.cuda.get_device_properties(0)
    return {"device": "cuda", "gpu": properties.name, "memory_bytes": properties.total_memory}


def by_driver() -> dict[str, Any]:
    """Return what the driver's own tool lists first; without that tool there is no card."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return {"device": "cpu"}
    names = done.stdout.split("\n")
    return {"device": "cuda", "gpu": names[0].strip()} if names[0].strip() else {"device": "cpu"}


if __name__ == "__main__":
    sys.exit(main())
