"""Runs one of the trainer's tools, and tells a package that cannot be loaded in a sentence.

    python -m trainer.tool results.generate --run-dir RUN

A package that is there and cannot be loaded, such as one built for another torch, raises whatever
it likes when it is imported. That is no fault of ours, and no traceback helps who sees it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

BAD_CONFIG = 78
ROOT = Path(__file__).resolve().parent


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool that the first word names; its exit code, 78 if a package cannot be loaded."""
    name, *arguments = sys.argv[1:] if argv is None else argv
    try:
        return int(importlib.import_module(f"trainer.{name}").main(arguments))
    except Exception as error:
        lacks = loading_failure(error)
        if not lacks:
            raise
        sys.stderr.write(f"{lacks}\n")
        return BAD_CONFIG


def loading_failure(error: BaseException) -> str:
    """What is wrong with a package if loading it raised `error`; empty if something else did."""
    trace: TracebackType | None = error.__traceback__
    loading = isinstance(error, ImportError)
    while trace is not None and not loading:
        code = trace.tb_frame.f_code  # a module's own code runs while it is loaded, and only then
        loading = code.co_name == "<module>" and not Path(code.co_filename).is_relative_to(ROOT)
        trace = trace.tb_next
    if not loading:
        return ""
    said = " ".join(str(error).split()) or type(error).__name__
    return f"{sys.executable} lacks a package, or has one that cannot be loaded: {said}"


if __name__ == "__main__":
    sys.exit(main())
