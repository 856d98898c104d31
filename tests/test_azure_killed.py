"""Killed before or after any single request, the client leaves what can be finished or removed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from arm.harness import AzureHarness, azure, spec
from arm.killing import KilledError, MortalTransport

from infra.azure import AzureProvider
from infra.provider import PowerState


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[AzureHarness]:
    """A cloud with room for every machine of the test."""
    with azure(tmp_path / "here") as harness:
        yield harness


Act = Callable[[AzureProvider], object]


def requests_of(harness: AzureHarness, act: Act) -> list[str]:
    """What requests an act makes when nobody kills it."""
    transport = MortalTransport(harness.settings(), harness.advance)
    act(harness.provider(transport=transport))
    return transport.sent


def die(harness: AzureHarness, act: Act, *, at: int, answered: bool) -> None:
    """Act until the fatal request."""
    transport = MortalTransport(harness.settings(), harness.advance, at=at, answered=answered)
    with pytest.raises(KilledError):
        act(harness.provider(transport=transport))


def machines_made(harness: AzureHarness, run_id: str) -> int:
    """How many machines the cloud ever accepted for a run."""
    return sum(f"/qft-{run_id}/" in id_ for id_ in harness.cloud.world.machines_made)


def test_create_goes_on_after_a_kill_at_every_request(
    harness: AzureHarness, tmp_path: Path
) -> None:
    """Create, killed anywhere, then called again, ends with one machine and made no other.

    Half of the second creates find the first one's memory, half come from another computer.
    """
    requests = requests_of(harness, lambda p: p.create(spec(run_id="count")))
    harness.provider().delete("count")
    assert len(requests) > 20
    for at in range(1, len(requests) + 1):
        for answered in (False, True):
            run_id = f"k-{at}-{'after' if answered else 'before'}"
            wanted = spec(run_id=run_id)
            die(harness, lambda p, w=wanted: p.create(w), at=at, answered=answered)  # type: ignore[misc]  # bound now
            lost = (at % 2 == 0) == answered
            where = tmp_path / "elsewhere" if lost else None

            vm = harness.provider(state_dir=where).create(wanted)

            context = f"killed {'after' if answered else 'before'} {requests[at - 1]}"
            assert machines_made(harness, run_id) == 1, context
            assert harness.provider(state_dir=where).observe(vm).power is PowerState.RUNNING
            assert vm.host, context
            harness.provider(state_dir=tmp_path / "third").delete(run_id)
            assert [id_ for id_ in harness.cloud.leftovers() if run_id in id_] == [], context
    assert harness.cloud.ledger.billing() == []


def test_delete_clears_up_after_a_create_killed_at_every_request(
    harness: AzureHarness, tmp_path: Path
) -> None:
    """Delete from another computer, after a create killed anywhere, leaves an empty ledger."""
    requests = requests_of(harness, lambda p: p.create(spec(run_id="count")))
    harness.provider().delete("count")
    for at in range(1, len(requests) + 1):
        run_id = f"k-{at}"
        wanted = spec(run_id=run_id)
        answered = at % 2 == 0  # the other half is in the test above
        die(harness, lambda p, w=wanted: p.create(w), at=at, answered=answered)  # type: ignore[misc]  # bound now
        there = harness.provider(state_dir=tmp_path / "elsewhere")

        for vm in there.list_all():
            there.delete(vm.run_id)

        assert harness.cloud.leftovers() == [], f"killed around {requests[at - 1]}"
        assert harness.cloud.ledger.billing() == []


def test_delete_goes_on_after_a_kill_at_every_request(
    harness: AzureHarness, tmp_path: Path
) -> None:
    """Delete, killed anywhere, then called again, leaves nothing and tells what there was."""
    harness.provider().create(spec(run_id="count"))
    requests = requests_of(harness, lambda p: p.delete("count"))
    for at in range(1, len(requests) + 1):
        for answered in (False, True):
            run_id = f"d-{at}-{answered}".lower()
            harness.provider().create(spec(run_id=run_id))
            harness.advance(60)
            die(harness, lambda p, r=run_id: p.delete(r), at=at, answered=answered)  # type: ignore[misc]  # bound now

            removed = harness.provider().delete(run_id)

            context = f"killed {'after' if answered else 'before'} {requests[at - 1]}"
            assert harness.cloud.leftovers() == [], context
            assert harness.cloud.ledger.billing() == [], context
            assert "virtual machine" in {one.kind for one in removed}, context
    assert harness.provider().list_all() == []


def test_start_and_deallocate_go_on_after_a_kill_at_every_request(harness: AzureHarness) -> None:
    """Start and deallocate, killed anywhere, then called again, end where they should."""
    vm = harness.provider().create(spec())
    acts: dict[PowerState, Act] = {
        PowerState.DEALLOCATED: lambda p: p.deallocate(vm),
        PowerState.RUNNING: lambda p: p.start(vm),
    }
    counts = {goal: len(requests_of(harness, act)) for goal, act in acts.items()}
    for goal, act in acts.items():
        other = next(one for one in acts if one is not goal)
        for at in range(1, counts[goal] + 1):
            for answered in (False, True):
                acts[other](harness.provider())
                die(harness, act, at=at, answered=answered)

                act(harness.provider())
                harness.advance(60)  # a start that is under way is left to itself

                assert harness.provider().observe(vm).power is goal
