"""A simulated account as the suites of the seam hold it."""

from __future__ import annotations

import json
import re

from ec2.harness import AwsHarness
from ec2.iam import add_role
from infra.aws.experiments import RECIPE, ROLE

DOCUMENTS = re.findall(r"document '(.*?)'", RECIPE)
"""Trust and policy of the role that may rehearse interruptions, as users are told to make it."""


def add_rehearsals(harness: AwsHarness) -> None:
    """Give an account the role by which interruptions are rehearsed."""
    trust, policy = (json.loads(one) for one in DOCUMENTS)
    add_role(harness.cloud.world, ROLE, trust=trust, policy=policy)


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
