"""Runs a command of the trainer in this process, as qft starts it in another."""

from __future__ import annotations

import contextlib
import io
import subprocess

from trainer.__main__ import main


def in_here(_module: str, words: list[str], **_: object) -> subprocess.CompletedProcess[str]:
    """Run a tool of the trainer in this process, which has loaded its libraries already."""
    printed, reported = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(reported):
        code = main(words)
    return subprocess.CompletedProcess(words, code, printed.getvalue(), reported.getvalue())
