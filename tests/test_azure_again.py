"""An operation that failed is begun anew by the next try, and is not asked about for ever."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from arm import Disruption, DisruptionKind
from arm.disruptions import Disruptions
from arm.harness import azure, spec
from arm.replies import ArmError, Reply, Request

from infra.errors import NoCapacity, NotAllowed, Transient
from infra.provider import PowerState


@dataclass
class Doomed(Disruptions):
    """Lets the first operation of a kind fail, each time that anybody asks about it."""

    path: str = ""
    """A regular expression for the pages of such operations."""
    reply: Reply = field(default_factory=Reply)
    page: str = ""
    """The one that fails."""

    def take(self, request: Request) -> Disruption | None:
        """The failure, if the request asks about that operation."""
        if self.path and re.search(self.path, request.path, re.IGNORECASE):
            self.page = self.page or request.path
            if request.path == self.page:
                return Disruption(kind=DisruptionKind.ANSWER, reply=self.reply)
        return super().take(request)


def test_start_is_ordered_anew_after_one_that_failed(tmp_path: Path) -> None:
    """A start that ran into a full region works as soon as there is room again."""
    with azure(tmp_path) as harness:
        vm = harness.provider().create(spec())
        harness.advance(300)
        harness.provider().deallocate(vm)
        harness.set_capacity("eastus", free=False)
        with pytest.raises(NoCapacity):
            harness.provider().start(vm)
        harness.set_capacity("eastus", free=True)

        harness.provider().start(vm)

        assert harness.provider().observe(vm).power is PowerState.RUNNING


def test_part_of_the_network_is_made_anew_after_one_that_failed(tmp_path: Path) -> None:
    """A firewall or network whose making failed for a passing reason is asked for again."""
    body = {"status": "Failed", "error": {"code": "RetryableError", "message": "Try again."}}
    doomed = Doomed(path=r"Microsoft\.Network/.*/operations/", reply=Reply(body=body))
    with azure(tmp_path, disruptions=doomed) as harness:
        with pytest.raises(Transient, match="Try again"):
            harness.provider().create(spec())

        vm = harness.provider().create(spec())

        assert harness.provider().observe(vm).power is PowerState.RUNNING
        assert len(harness.cloud.machines()) == 1


def test_removal_is_ordered_anew_after_one_that_was_forbidden(tmp_path: Path) -> None:
    """Once a policy no longer forbids it, the same command removes the run."""
    refusal = ArmError(403, "RequestDisallowedByPolicy", "No.").reply()
    doomed = Doomed(path=r"/operationresults/", reply=refusal)
    with azure(tmp_path, disruptions=doomed) as harness:
        harness.provider().create(spec())
        with pytest.raises(NotAllowed, match="policy"):
            harness.provider().delete("run-a")

        harness.provider().delete("run-a")

        assert harness.cloud.leftovers() == []


def test_release_that_failed_is_ordered_anew(tmp_path: Path) -> None:
    """A machine that Azure did not manage to release is never taken for one that does not bill."""
    body = {"status": "Failed", "error": {"code": "InternalExecutionError", "message": "Oops."}}
    doomed = Doomed(reply=Reply(body=body))
    with azure(tmp_path, disruptions=doomed) as harness:
        vm = harness.provider().create(spec())
        harness.advance(300)
        doomed.path = r"Microsoft\.Compute/.*/operations/"
        with pytest.raises(Transient, match="still bills"):
            harness.provider().deallocate(vm)

        harness.provider().deallocate(vm)

        assert harness.provider().observe(vm).power is PowerState.DEALLOCATED
