"""Run the benchmarks by `python tests/bench`, with the Python that has qft installed."""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path[0:1] = [str(TESTS), str(TESTS.parent)]  # not this folder: its names are not for everybody

if __name__ == "__main__":
    from bench.command import main

    sys.exit(main(sys.argv[1:]))
