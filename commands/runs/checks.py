"""One thing that `qft doctor` looked at: whether it is in order, and how to mend it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from commands.ui.errors import Exit
from infra.renting.checks import Check as AccountCheck


@dataclass(frozen=True, kw_only=True)
class Check(AccountCheck):
    """One thing that was looked at, with how `qft doctor` ends for it."""

    exit_code: int = int(Exit.USAGE)
    """How `qft doctor` ends for it: 4 where the machine is the trouble, not what it was told."""

    @property
    def failed(self) -> bool:
        """Whether it stands in the way, and does not only limit."""
        return self.required and not self.ok

    @property
    def line(self) -> str:
        """The check in words."""
        mark = "ok  " if self.ok else "FAIL" if self.required else "warn"
        fix = f"\n      fix: {self.fix}" if self.fix and not self.ok else ""
        return f"{mark}  {self.name}: {self.detail}{fix}"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def exit_code(checks: Sequence[Check]) -> int:
    """How it ends: what the user can mend here comes before what is the machine's."""
    return min((check.exit_code for check in checks if check.failed), default=int(Exit.DONE))
