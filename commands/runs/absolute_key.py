"""Makes the path of a user's own key absolute."""

from __future__ import annotations

from pathlib import Path

from infra.config import VmTable


def with_absolute_key(vm: VmTable, folder: Path) -> VmTable:
    """Return the table with its key's path from `folder` on: other commands start elsewhere."""
    table = vm.ssh
    if table is None:
        return vm
    key = str(folder / Path(table.key).expanduser())
    return vm.model_copy(update={"ssh": table.model_copy(update={"key": key})})
