"""Sends the warnings of libraries to a log file instead of the terminal.

What a user should read qft prints itself. `PYTHONWARNINGS` or `python -W`, set by somebody who
wants to see them, leaves the warnings where they are.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import MutableMapping
from pathlib import Path

LOG_BYTES_MAX = 1 << 20
QUIET = {
    "PYTHONWARNINGS": "ignore",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "BITSANDBYTES_NOWELCOME": "1",
}
"""What this process and the trainer's tools here find; a value of the user's own stays."""


def log_library_warnings(path: Path, environ: MutableMapping[str, str]) -> None:
    """Send warnings, and what libraries log, to the file at `path`, if its folder is there."""
    if sys.warnoptions:
        return
    for name, value in QUIET.items():
        environ.setdefault(name, value)
    root = logging.getLogger()
    root.addHandler(_LogFile(path, level=logging.WARNING))
    logging.captureWarnings(capture=True)


class _LogFile(logging.Handler):
    """Appends what comes to a file, opened for each line, since there are few or none."""

    def __init__(self, path: Path, *, level: int) -> None:
        super().__init__(level)
        self._path = path
        self.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; a log that cannot be written is no reason to disturb anybody."""
        with contextlib.suppress(OSError):  # the first record finds no file yet
            if self._path.stat().st_size > LOG_BYTES_MAX:
                self._path.replace(self._path.with_suffix(".log.old"))
        # A warning is not worth a failure.
        with contextlib.suppress(OSError), self._path.open("a", encoding="utf-8") as file:
            file.write(f"{self.format(record)}\n".encode(errors="replace").decode())
