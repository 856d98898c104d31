"""Azure rents several machines for one run: one group, one network, one rule in its firewall."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from arm.contract import Patient
from arm.harness import azure
from support.contract import Harness
from support.nodes_contract import NodesContract


class TestAzureNodes(NodesContract):
    """The suite that every provider passes whose runs can have several machines."""

    @pytest.fixture
    def harness(self, tmp_path: Path) -> Iterator[Harness]:
        """A cloud of its own for each test."""
        with azure(tmp_path) as harness:
            yield Patient(harness)
