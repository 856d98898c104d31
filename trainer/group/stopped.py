"""Tells whether a process was stopped by a signal: it holds what it holds, and answers nobody."""

from __future__ import annotations

from pathlib import Path


def is_stopped(pid: int) -> bool:
    """Tell whether a process of this machine is stopped, as by SIGSTOP; False if it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return text.rpartition(")")[2].split()[:1] == ["T"]
