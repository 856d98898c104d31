"""EC2 keeps every promise of the seam, shown through the unmodified SDK on a simulated cloud."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from ec2.harness import AwsHarness, aws
from ec2.iam import add_role
from support.contract import Harness, RentingContract

from infra.aws.experiments import RECIPE, ROLE

DOCUMENTS = re.findall(r"document '(.*?)'", RECIPE)
"""Trust and policy of the role that may rehearse interruptions, as users are told to make it."""


class TestAws(RentingContract):
    """The suite that every renting provider passes."""

    @pytest.fixture
    def harness(self, tmp_path: Path) -> Iterator[Harness]:
        """An account of its own for each test, with the role for rehearsals."""
        with aws(tmp_path) as harness:
            trust, policy = (json.loads(one) for one in DOCUMENTS)
            add_role(harness.cloud.world, ROLE, trust=trust, policy=policy)
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
