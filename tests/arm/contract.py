"""The simulated Azure as the contract suites use it."""

from __future__ import annotations

from arm.harness import AzureHarness


class Patient:
    """The suite looks every 0.05 s; a cloud takes minutes."""

    def __init__(self, harness: AzureHarness) -> None:
        self._harness = harness
        self.regions = harness.regions
        self.provider = harness.provider
        self.set_capacity = harness.set_capacity
        self.set_price = harness.set_price

    def advance(self, seconds: float) -> None:
        """Let a hundred times as much time pass."""
        self._harness.advance(100 * seconds)
