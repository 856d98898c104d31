"""Rehearsing an interruption on a simulated EC2, by its Fault Injection Service."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from ec2.fis import fis
from ec2.harness import AwsHarness, aws
from ec2.iam import add_role
from support.aws_machines import instance_of, provider_of, rent, wait_for

from infra.aws.experiments import RECIPE, ROLE
from infra.errors import NotAllowed, Transient
from infra.provider import PowerState, StopReason

TRUST, POLICY = (json.loads(one) for one in re.findall(r"-document '(.*?)'", RECIPE))
"""What the commands of the recipe would make."""


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[AwsHarness]:
    """An account with a computer."""
    with aws(tmp_path) as made:
        made.changes = {"polling_s": 20.0}
        yield made


def test_a_rehearsed_interruption_comes_with_its_notice(harness: AwsHarness) -> None:
    """The role of the recipe is enough: two minutes of notice, then down, then startable."""
    add_role(harness.cloud.world, ROLE, trust=TRUST, policy=POLICY)
    vm = rent(harness)
    harness.advance(600)
    provider = provider_of(harness)

    provider.evict(vm)

    harness.advance(20)
    assert instance_of(harness, vm).notice is not None
    assert provider.observe(vm).power is PowerState.RUNNING
    down = wait_for(harness, vm, PowerState.DEALLOCATED)
    assert (down.stop_reason, down.refusal) == (StopReason.EVICTED, None)
    assert fis(harness.cloud.world).templates == {}
    harness.advance(60)
    provider.start(vm)
    assert wait_for(harness, vm, PowerState.RUNNING).stop_reason is None


@pytest.mark.parametrize("has_role", [False, True])
def test_without_the_role_the_recipe_is_shown(harness: AwsHarness, *, has_role: bool) -> None:
    """A role that is missing, or may not interrupt, is `NotAllowed` with the two commands."""
    if has_role:
        add_role(harness.cloud.world, ROLE, trust=TRUST, policy={**POLICY, "Statement": []})
    vm = rent(harness)

    with pytest.raises(NotAllowed) as caught:
        provider_of(harness).evict(vm)

    assert f"aws iam create-role --role-name {ROLE}" in caught.value.hint
    assert f"aws iam put-role-policy --role-name {ROLE}" in caught.value.hint
    harness.advance(600)
    seen = provider_of(harness).observe(vm)
    assert seen.power is PowerState.RUNNING


def test_a_refused_rehearsal_explains_nothing(harness: AwsHarness) -> None:
    """What stops a machine after a rehearsal that was refused is not called a rehearsal."""
    vm = rent(harness)
    harness.advance(600)
    harness.cloud.deny("fis:*")
    with pytest.raises(NotAllowed):
        provider_of(harness).evict(vm)
    harness.set_capacity("us-east-1", free=False)
    harness.cloud.interrupt(instance_of(harness, vm), notice_s=0)

    down = wait_for(harness, vm, PowerState.DEALLOCATED)

    assert down.stop_reason is StopReason.EVICTED
    assert "rehears" not in down.detail


def test_only_what_runs_can_be_interrupted(harness: AwsHarness) -> None:
    """A machine that is down cannot be taken: the rehearsal waits for it."""
    vm = rent(harness)
    provider_of(harness).deallocate(vm)

    with pytest.raises(Transient):
        provider_of(harness).evict(vm)
