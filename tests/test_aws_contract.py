"""EC2 keeps every promise of the seam, shown through the unmodified SDK on a simulated cloud."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ec2.contract import Patient, add_rehearsals
from ec2.harness import aws
from support.contract import Harness, RentingContract


class TestAws(RentingContract):
    """The suite that every renting provider passes."""

    @pytest.fixture
    def harness(self, tmp_path: Path) -> Iterator[Harness]:
        """An account of its own for each test, with the role for rehearsals."""
        with aws(tmp_path) as harness:
            add_rehearsals(harness)
            yield Patient(harness)
