"""Runs tests that failed once more, each alone, and accepts at most two that pass then.

    python .ci/again.py FAILURES.json

FAILURES.json is what `tests/conftest.py` writes: pytest's exit status, and each failed test's id
with the line of its first failure. Exits with 0 if all of them pass now; their names and first
failures are the last lines, so that somebody mends them. Exits with 1 if one fails again, if more
than two had failed, or if it was not single tests that failed (lint, types, what could not be
collected).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

FLAKY_MAX = 2
TESTS_FAILED = 1  # pytest's exit status: the tests ran, and some failed


def verdict(record: Mapping[str, Any] | None, passes: Callable[[str], bool]) -> tuple[bool, str]:
    """Decide whether the run counts as green, and say why.

    `record` is the content of FAILURES.json, None if there is no such file; `passes` runs the one
    test of that id again and says whether it passed.
    """
    if (
        record is None
        or record["exit_status"] != TESTS_FAILED
        or record["uncollected"]
        or not record["failed"]
    ):
        return False, "it was not a single test that failed: see above"
    failed: dict[str, str] = record["failed"]
    if len(failed) > FLAKY_MAX:
        return False, f"{len(failed)} tests failed; at most {FLAKY_MAX} are run again"
    lines = []
    for test, first in failed.items():
        if not passes(test):
            return False, f"failed again, alone: {test}"
        lines.append(f"flaky: {test} failed, and passed when it was run again alone")
        lines.append(f"  its first failure: {first}")
    lines.append(f"{len(failed)} flaky, of at most {FLAKY_MAX}: mend what the first failures say")
    return True, "\n".join(lines)


def _passes(test: str) -> bool:
    environ = {name: value for name, value in os.environ.items() if name != "QFT_TEST_FAILURES"}
    environ |= {"OMP_NUM_THREADS": "1", "PYTEST_ADDOPTS": ""}
    print(f"again, alone: {test}", flush=True)
    words = [sys.executable, "-m", "pytest", test]
    return subprocess.run(words, env=environ, check=False).returncode == 0


def _main(path: Path) -> int:
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    green, text = verdict(record, _passes)
    print(text, flush=True)
    return 0 if green else 1


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1])))
