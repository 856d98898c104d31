"""EC2 keeps every promise of the seam, shown through the unmodified SDK on a simulated cloud."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ec2.harness import AwsHarness, aws
from support.contract import Harness, RentingContract


class TestAws(RentingContract):
    """The suite that every renting provider passes."""

    @pytest.fixture
    def harness(self, tmp_path: Path) -> Iterator[Harness]:
        """A cloud of its own for each test."""
        with aws(tmp_path) as harness:
            yield Patient(harness)


class Patient:
    """The suite looks every 0.05 s; a cloud takes minutes."""

    def __init__(self, harness: AwsHarness) -> None:
        self._harness = harness
        self.regions = harness.regions
        self.provider = harness.provider
        self.set_capacity = harness.set_capacity
        self.set_price = harness.set_price

    def advance(self, seconds: float) -> None:
        """Let a hundred times as much time pass."""
        self._harness.advance(100 * seconds)
