"""Starts one life of a local machine, detached: whoever started it may die, the machine stays.

Started by `vm.py` as `python -m infra.local.start_vm --dir DIR --life N`. It listens to nobody
but the files in `DIR`; `vm_process.py` is what it then does.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path


def main(arguments: list[str]) -> int:
    """Detach, then play one life of the machine until it is stopped, evicted or deleted."""
    parser = argparse.ArgumentParser(prog="python -m infra.local.start_vm", description=__doc__)
    parser.add_argument("--dir", type=Path, required=True, help="the machine's directory")
    parser.add_argument("--life", type=int, required=True, help="which start of it this is")
    chosen = parser.parse_args(arguments)
    if os.fork():
        os._exit(0)  # the caller waits for this, and so never has a guest as its own child
    from infra.local.vm_process import run  # after the fork: the caller does not wait for imports

    run(chosen.dir, chosen.boot)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
