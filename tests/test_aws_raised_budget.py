"""A budget that outlasts the spot request of a machine on AWS takes another machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from ec2 import iam, schedules
from ec2.harness import AwsHarness, aws, spec
from ec2.runner import ObedientWorkload
from ec2.state import ACCOUNT

from infra.aws.permissions import role_policy, trust_policy
from infra.offer import Offer, Want
from infra.provider import VmSpec
from infra.run.budget import Budget
from infra.run.context import RunContext
from infra.run.fold import fold
from infra.run.journal import Journal, Kind, Outcome, read
from infra.run.plan import Goal, RunPlan
from infra.run.supervisor import Supervisor
from infra.run.workload import Workload

HOUR_S = 3600.0
CAP = 0.30


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[AwsHarness]:
    """An account with the role of Scheduler."""
    with aws(tmp_path / "aws") as harness:
        world = harness.cloud.world
        iam.add_role(
            world, "qft-scheduler", trust=trust_policy(ACCOUNT), policy=role_policy(ACCOUNT)
        )
        yield harness


def up(harness: AwsHarness, path: Path, *, hours: float) -> None:
    """Have a machine ready, under a budget of so many hours at the cap."""
    journal = Journal(path, clock=harness.now)
    if journal.events:
        journal.append(Kind.RUN_RESUMED, changed=False)
    else:
        journal.append(Kind.RUN_STARTED, run_id="run-a", name="run")
    context = RunContext(
        provider=harness.provider(),
        workload=cast("Workload", ObedientWorkload(harness)),
        journal=journal,
        make_spec=make_spec,
        want=Want(gpu="T4", regions=["us-east-1"], max_price_usd_per_h=CAP),
        clock=harness.now,
        sleep=harness.advance,
        on_turn=lambda _report: None,
    )
    plan = RunPlan(goal=Goal.UP, budget=Budget(usd=hours * CAP), has_safeguards=True)
    ended = Supervisor(context).run(plan)
    assert ended.outcome is Outcome.DONE, ended.reason


def make_spec(offer: Offer, generation: int) -> VmSpec:
    """A request under the cap."""
    changes: dict[str, Any] = {"zone": offer.zone, "generation": generation}
    return spec(**changes, max_price_usd_per_h=CAP)


def test_raised_budget_moves_to_a_machine_whose_request_lasts_longer(
    harness: AwsHarness, tmp_path: Path
) -> None:
    """One machine is left, of the next generation, which can be held to the new limit."""
    path = tmp_path / "journal.jsonl"
    up(harness, path, hours=2)
    harness.advance(HOUR_S / 2)

    up(harness, path, hours=20)

    state = fold(read(path))
    (left,) = harness.cloud.machines()
    (request,) = harness.cloud.spot_requests()
    assert state.vm is not None
    assert state.vm.id.endswith(left.id)
    assert state.vm.generation == 2
    assert state.latest_limit_s is not None
    assert state.safeguards_until_s <= state.latest_limit_s
    assert request.instance_id == left.id
    names = [one.rpartition("/")[2] for one in schedules.names(harness.cloud.world)]
    assert names == ["qft-run-a.2.stop"]


def test_budget_raised_within_the_request_keeps_the_machine(
    harness: AwsHarness, tmp_path: Path
) -> None:
    """An hour more is within what the request lasts: the schedule moves, the machine stays."""
    path = tmp_path / "journal.jsonl"
    up(harness, path, hours=2)
    harness.advance(60)

    up(harness, path, hours=2.5)

    assert len(harness.cloud.world.machines_made) == 1
