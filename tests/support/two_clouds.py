"""Two simulated clouds at once: one time for both, and their providers in the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from arm.harness import AzureHarness
from ec2.harness import AwsHarness


def in_step(first: AzureHarness, second: AwsHarness) -> None:
    """Let the two clouds have one time, whoever lets it pass."""
    sleeps = (first.cloud.clock.sleep, second.cloud.clock.sleep)

    def sleep(seconds: float) -> None:
        for one in sleeps:
            one(seconds)
        second.cloud.world.run_due()

    first.cloud.clock.sleep = second.cloud.clock.sleep = sleep  # type: ignore[method-assign]


def maker(harness: Any) -> Any:
    """What makes a provider for any table, over one simulated cloud."""

    def make(_self: object, _vm: object, state_dir: Path, _environment: object) -> Any:
        return harness.provider(state_dir=state_dir)

    return make
