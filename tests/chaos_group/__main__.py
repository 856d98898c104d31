"""Run the kills by `python tests/chaos_group`, with the Python that has qft installed."""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path[0:1] = [str(TESTS), str(TESTS.parent)]  # not this folder: its names are not for everybody

if __name__ == "__main__":
    from chaos_group.command import main

    sys.exit(main(sys.argv[1:]))
