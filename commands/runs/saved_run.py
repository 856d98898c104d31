"""Reads what a started run says of its machine, without the tables that only a training needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from commands.runs.absolute_key import with_absolute_key
from commands.runs.home import RunFolder, read_saved_config
from commands.ui.errors import UsageError
from infra.config import VmTable


@dataclass(frozen=True, kw_only=True)
class SavedRun:
    """The machine table of a run as it was last started, and the file that it came from."""

    name: str
    vm: VmTable
    path: Path

    @property
    def simulated(self) -> bool:
        """Whether this computer plays the machine, so that nobody is charged."""
        return self.vm.provider == "local"

    @property
    def out(self) -> Path:
        """Where the results of the run go."""
        return self.path.parent / "out" / self.name


def read_saved_run(folder: RunFolder) -> SavedRun:
    """Return the machine table that the run was last started with, checked again.

    The config was checked whole when the run was started. Here only the table `vm` is, which is a
    fraction of the work: a command that looks at a run answers sooner. Raises UsageError where the
    config is lost or damaged, or with every fault of the whole config where `vm` has one.
    """
    content, path = saved_content(folder)
    try:
        vm = VmTable.model_validate(content.get("vm", {}))
    except (ValidationError, UnicodeEncodeError):
        from commands.runs.config import check  # all tables

        vm = check(content, path).config.vm
    return SavedRun(name=folder.name, vm=with_absolute_key(vm, path.parent), path=path)


def saved_content(folder: RunFolder) -> tuple[dict[str, Any], Path]:
    """Return the tables that the run was last started with, unchecked, and their file.

    Raises UsageError where the saved config is lost or damaged.
    """
    saved = read_saved_config(folder)
    content, path = saved.get("config"), saved.get("path")
    if not isinstance(content, dict) or not isinstance(path, str):
        raise UsageError(
            f"the run `{folder.name}` has lost its config `{folder.config}`",
            hint="`qft ls --all` and `qft down --all` work without it",
        )
    return content, Path(path)
