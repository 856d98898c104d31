"""Prints how far the memory formula is from published peaks: `make memory`.

All at once, and as a check against overfitting, each row and each source with the fitted settings
chosen without it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from support.memory_errors import leave_one_out, leave_one_source_out, summary

from trainer.estimate.points import error_lines, read_rows

POINTS = Path(__file__).resolve().parent.parent / "docs" / "memory-points.csv"


def lines(path: Path) -> list[str]:
    """Return the errors of the rows of a file."""
    rows = read_rows(path)
    by_source = leave_one_source_out(rows)
    every = [one for errors in by_source.values() for one in errors]
    return [
        *error_lines(rows),
        f"each row left out: {summary(leave_one_out(rows))}",
        f"each source left out: {summary(every)}",
        *(f"  {name or 'others'}: {summary(errors)}" for name, errors in by_source.items()),
    ]


if __name__ == "__main__":
    sys.stdout.write("\n".join(lines(Path(sys.argv[1]) if sys.argv[1:] else POINTS)) + "\n")
