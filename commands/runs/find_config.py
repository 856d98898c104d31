"""Finds the config that a command line means: a run.yaml, or a run that was started before."""

from __future__ import annotations

import os
from pathlib import Path

from commands.runs.config import LoadedConfig, check, load
from commands.runs.home import RUN_NAME, RunFolder, pick_run, run_folder
from commands.runs.saved_run import saved_content
from commands.ui.errors import UsageError


def find_config(wanted: str, home: Path) -> LoadedConfig:
    """Return the checked config of a file or of a known run; empty means the run.yaml here.

    Raises UsageError if there is none, or with every fault in it.
    """
    if not wanted:
        here = Path("run.yaml")
        if here.exists():
            return load(here)
        return reopen(pick_run(home, "", cwd=Path.cwd()))
    if wanted.endswith((".yaml", ".yml")) or os.path.isfile(wanted):  # noqa: PTH113  (a name of any length)
        return load(Path(wanted))
    named = RUN_NAME.fullmatch(wanted) and run_folder(home, wanted).exists()
    if os.path.isdir(wanted) and not named:  # noqa: PTH112
        raise UsageError(f"`{wanted}` is a directory", hint=f"try `{wanted.rstrip('/')}/run.yaml`")
    return reopen(pick_run(home, wanted, cwd=Path.cwd()))


def reopen(folder: RunFolder) -> LoadedConfig:
    """Return the config that the run was last started with, checked again."""
    content, path = saved_content(folder)
    return check(content, path)
