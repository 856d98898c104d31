"""Run by `make kernels`: the proofs in Triton's interpreter, then the compiler for every card.

Triton must be importable. The interpreter replaces the compiler in a whole process, so each of the
two has a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
PARTS = ("interpreted", "compiled")


def main(arguments: list[str]) -> int:
    """Run one part if it is named, else all, each in its own process; 1 if one of them fails."""
    if arguments:
        if arguments[0] == "compiled":
            from triton_kernels.compiled import check
        else:
            from triton_kernels.interpreted import check
        problems = check(sys.stdout.write)
        sys.stdout.writelines(f"FAILED: {problem}\n" for problem in problems)
        return int(bool(problems))
    codes = []
    for part in PARTS:
        environment = {**os.environ, "TRITON_INTERPRET": str(int(part == "interpreted"))}
        command = [sys.executable, str(Path(__file__).parent), part]
        codes.append(subprocess.run(command, env=environment, check=False).returncode)
    return int(any(codes))


if __name__ == "__main__":
    sys.path[0:1] = [str(TESTS), str(TESTS.parent)]  # not this folder: its names are not for all
    sys.exit(main(sys.argv[1:]))
