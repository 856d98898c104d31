"""Azure keeps every promise of the seam, shown through the unmodified SDKs on a simulated cloud."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from arm.contract import Patient
from arm.harness import azure
from support.contract import Harness, RentingContract


class TestAzure(RentingContract):
    """The suite that every renting provider passes."""

    @pytest.fixture
    def harness(self, tmp_path: Path) -> Iterator[Harness]:
        """A cloud of its own for each test."""
        with azure(tmp_path) as harness:
            yield Patient(harness)
