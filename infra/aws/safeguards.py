"""Sets what ends the bill when everything of ours is dead, and says what could not be set."""

from __future__ import annotations

from dataclasses import dataclass

from infra.aws.context import AwsContext
from infra.provider import Safeguard, Vm, Want


@dataclass(frozen=True, kw_only=True)
class AwsSafeguards:
    """`MaxPrice`, `ValidUntil`, the machine's own shutdown, schedules, an alarm."""

    context: AwsContext

    def set_safeguards(self, vm: Vm, *, until_s: float) -> list[Safeguard]:
        """Set every safeguard that may be set, to end compute soon after `until_s` (since 1970)."""
        raise NotImplementedError

    def preview_safeguards(self, want: Want, *, until_s: float) -> list[Safeguard]:
        """Predict what `set_safeguards` can set for such a machine; never raises."""
        raise NotImplementedError

    def leftovers(self, run_id: str, region: str) -> list[str]:
        """The names of the schedules and alarms of a run that exist in a region."""
        raise NotImplementedError

    def remove(self, run_id: str, region: str) -> list[str]:
        """Remove the schedules and alarms of a run in a region; return their names."""
        raise NotImplementedError
