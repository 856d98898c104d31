"""Finds the directories of machines, and of machines that are being deleted, by run and node.

vms/RUN/          node 0 of a run, which is the only one of most runs
vms/RUN.nI/       node I of a run that has several; a run id has no dot
trash/NAME.ID/    what was the directory NAME of `vms`
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from infra.durable import sync_directory
from infra.errors import BadRequest

NODES_MAX = 200
"""Of one run: so many private addresses there are for it."""
_RUN = "[a-z0-9][a-z0-9-]{0,39}"


@dataclass(frozen=True, kw_only=True)
class Directories:
    """The directories below one root."""

    root: Path

    def of(self, run_id: str, node: int = 0) -> Path:
        """Where a machine lives; raises `BadRequest` for an id that is no name, or no such node."""
        if not re.fullmatch(_RUN, run_id):
            raise BadRequest(f"`{run_id}` cannot be a run id: 1 to 40 of a-z, 0-9 and -")
        if not 0 <= node < NODES_MAX:
            raise BadRequest(f"{node} is no number of a machine: a run has 0 to {NODES_MAX - 1}")
        return self.root / "vms" / (f"{run_id}.n{node}" if node else run_id)

    def all(self) -> list[Path]:
        """The directories of all machines, and of halves of them."""
        return _entries(self.root / "vms")

    def of_run(self, run_id: str) -> list[Path]:
        """The directories of one run's machines, by node."""
        found = [path for path in self.all() if owner_of(path.name)[0] == run_id]
        return sorted(found, key=lambda path: owner_of(path.name))

    def make_trash(self) -> Path:
        """Make the directory of what is being deleted, if there is none, and return it."""
        trash = self.root / "trash"
        trash.mkdir(exist_ok=True)
        return trash

    def trash(self) -> list[Path]:
        """What is being deleted, or was when somebody was killed over it."""
        return _entries(self.root / "trash")

    def discard(self, directory: Path) -> bool:
        """Move a machine's directory into the trash; whether there was one."""
        if not directory.exists():
            return False
        directory.rename(self.make_trash() / f"{directory.name}.{secrets.token_hex(4)}")
        sync_directory(directory.parent)
        return True


def name_in_trash(discarded: Path) -> str:
    """The name that a directory in the trash had before."""
    return discarded.name.rpartition(".")[0]


def owner_of(name: str) -> tuple[str, int]:
    """Return run and node of a machine's directory; any other name counts as a run's."""
    match = re.fullmatch(rf"({_RUN})\.n([1-9][0-9]{{0,2}})", name)
    return (match[1], int(match[2])) if match else (name, 0)


def remove_tree(directory: Path) -> None:
    """Remove a directory, also where its owner made parts of it read-only; links stay links."""
    for inner, folders, _ in os.walk(directory):
        for path in (Path(inner, name) for name in folders):
            if not path.is_symlink():
                path.chmod(0o700)
    shutil.rmtree(directory)


def _entries(directory: Path) -> list[Path]:
    """The directories in a directory that may not exist."""
    return [path for path in directory.iterdir() if path.is_dir()] if directory.exists() else []
