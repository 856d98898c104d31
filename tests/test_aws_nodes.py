"""Several machines of one run on EC2: one network, one group, and nothing that one costs another."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from ec2.harness import AwsHarness, aws
from ec2.iam import add_role
from support.contract import Harness
from support.nodes_contract import NodesContract
from test_aws_contract import DOCUMENTS, Patient

from infra.aws.experiments import ROLE


def with_rehearsals(harness: AwsHarness) -> AwsHarness:
    """The account with the role by which interruptions are rehearsed."""
    trust, policy = (json.loads(one) for one in DOCUMENTS)
    add_role(harness.cloud.world, ROLE, trust=trust, policy=policy)
    return harness


class TestAwsNodes(NodesContract):
    """The suite that every provider passes whose runs can have several machines."""

    @pytest.fixture
    def harness(self, tmp_path: Path) -> Iterator[Harness]:
        """An account of its own; whatever happened in it, its machines are closed to strangers."""
        with aws(tmp_path) as harness:
            yield Patient(with_rehearsals(harness))

            assert harness.open_doors() == []
