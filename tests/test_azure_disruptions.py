"""Throttling, server errors, broken and slow connections: all is done once, in bounded steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from arm import Disruption, DisruptionKind, throttled
from arm.harness import AzureHarness, azure, spec
from arm.replies import Reply

from infra.errors import Transient
from infra.provider import PowerState

REQUESTS_MAX = 120
"""A create takes 25 requests without disruptions."""


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[AzureHarness]:
    """A cloud that will disrupt requests."""
    with azure(tmp_path) as harness:
        yield harness


def error(status: int) -> Disruption:
    """A bare server error, twice."""
    reply = Reply(status=status, body={"error": {"code": "InternalServerError", "message": "Oops"}})
    return Disruption(kind=DisruptionKind.ANSWER, times=2, reply=reply)


def answer(status: int, *, code: str = "", advice: str = "") -> Disruption:
    """One answer with a bare code, or with nothing in it, and advice when to come back."""
    body = {"error": {"code": code, "message": "No."}} if code else None
    headers = {"Retry-After": advice} if advice else {}
    return Disruption(
        kind=DisruptionKind.ANSWER, reply=Reply(status=status, body=body, headers=headers)
    )


DISRUPTIONS = {
    "accepted without a word": lambda: answer(202),
    "conflict with advice": lambda: answer(409, code="Conflict", advice="3"),
    "advice of years": lambda: answer(429, code="TooManyRequests", advice="99999999"),
    "advice as a date": lambda: answer(503, advice="Thu, 01 Jan 2099 00:00:00 GMT"),
    "advice that is none": lambda: answer(429, advice="soon"),
    "throttled": lambda: throttled(times=3),
    "throttled without advice": lambda: throttled(times=2, retry_after_s=None, method="PUT"),
    "error 500": lambda: error(500),
    "error 503": lambda: error(503),
    "dropped before": lambda: Disruption(kind=DisruptionKind.DROP_BEFORE, times=1),
    "dropped after": lambda: Disruption(kind=DisruptionKind.DROP_AFTER, times=1),
    "a proxy's page": lambda: Disruption(
        kind=DisruptionKind.ANSWER, times=1, reply=Reply(status=200, body="<html>sign in</html>")
    ),
    "slow": lambda: Disruption(kind=DisruptionKind.SLOW, times=1, slow_s=0.2),
}
PLACES = {
    "provider": r"/providers/Microsoft\.Network$",
    "group": r"/resourcegroups/[^/]+$",
    "firewall": r"/networkSecurityGroups/",
    "card": r"/networkInterfaces/",
    "machine": r"/virtualMachines/[^/]+$",
    "poll": r"/operations/",
}


@pytest.mark.parametrize("kind", DISRUPTIONS)
def test_create_converges(harness: AzureHarness, kind: str) -> None:
    """Whichever disruption hits whichever request, one machine comes up in bounded requests."""
    for number, (place, path) in enumerate(PLACES.items()):
        disruption = DISRUPTIONS[kind]()
        disruption.path = path
        harness.cloud.disruptions.add(disruption)
        before = len(harness.cloud.requests)
        run_id = f"w-{number}"

        vm = again(harness, run_id)

        assert harness.provider().observe(vm).power is PowerState.RUNNING, place
        made = [id_ for id_ in harness.cloud.world.machines_made if f"/qft-{run_id}/" in id_]
        assert len(made) == 1, place
        assert len(harness.cloud.requests) - before < REQUESTS_MAX, place
        harness.cloud.disruptions.queue.clear()


def again(harness: AzureHarness, run_id: str):  # type: ignore[no-untyped-def]  # noqa: ANN201
    """Create as the supervisor does: a Transient error is followed by the same call."""
    for _ in range(4):
        try:
            return harness.provider().create(spec(run_id=run_id))
        except Transient:
            harness.advance(5)
    raise AssertionError("never came up")


@pytest.mark.parametrize("kind", DISRUPTIONS)
@pytest.mark.parametrize("verb", ["start", "deallocate"])
def test_orders_converge(harness: AzureHarness, kind: str, verb: str) -> None:
    """An order whose answer was lost is not taken for refused: the machine itself is asked."""
    vm = harness.provider().create(spec())
    harness.advance(60)
    if verb == "start":
        harness.provider().deallocate(vm)
    disruption = DISRUPTIONS[kind]()
    disruption.path = f"/{verb}$"
    harness.cloud.disruptions.add(disruption)
    before = len(harness.cloud.requests)
    goal = PowerState.RUNNING if verb == "start" else PowerState.DEALLOCATED

    for _ in range(4):
        try:
            getattr(harness.provider(), verb)(vm)
        except Transient:
            harness.advance(5)
        else:
            break

    assert harness.provider().observe(vm).power is goal
    assert len(harness.cloud.requests) - before < REQUESTS_MAX


@pytest.mark.parametrize("kind", DISRUPTIONS)
def test_delete_converges(harness: AzureHarness, kind: str) -> None:
    """Removal under disruptions still ends with nothing left."""
    harness.provider().create(spec())
    disruption = DISRUPTIONS[kind]()
    disruption.path = r"/(resourcegroups/[^/]+|operationresults/.+)$"
    harness.cloud.disruptions.add(disruption)

    try:
        removed = harness.provider().delete("run-a")
    except Transient:
        removed = harness.provider().delete("run-a")

    assert harness.cloud.leftovers() == []
    assert "virtual machine" in {one.kind for one in removed}


@pytest.mark.parametrize("verb", ["start", "deallocate"])
@pytest.mark.parametrize("status", [200, 202, 204])
def test_empty_page_of_an_operation_is_no_failure(
    harness: AzureHarness, verb: str, status: int
) -> None:
    """A page without a word says neither that the order failed nor that it was carried out."""
    vm = harness.provider().create(spec())
    harness.advance(60)
    if verb == "start":
        harness.provider().deallocate(vm)
    disruption = answer(status)
    disruption.path = "/operations/"
    harness.cloud.disruptions.add(disruption)

    getattr(harness.provider(), verb)(vm)

    goal = PowerState.RUNNING if verb == "start" else PowerState.DEALLOCATED
    assert harness.provider().observe(vm).power is goal
    assert not (harness.state_dir / "refusals.json").exists()


def test_lasting_refusal_with_advice_is_waited_for_and_no_longer_than_sensible(
    harness: AzureHarness,
) -> None:
    """Whatever Azure advises, the caller hears of it within the hour and is told a short wait."""
    for advice in ("99999999", "Thu, 01 Jan 2099 00:00:00 GMT"):
        disruption = answer(429, code="TooManyRequests", advice=advice)
        disruption.times, disruption.path = 999, "^/sub"
        harness.cloud.disruptions.add(disruption)
        began = harness.cloud.clock.now()

        with pytest.raises(Transient) as caught:
            harness.provider().list_all()

        assert harness.cloud.clock.now() - began < 3600
        assert 0 < (caught.value.retry_after_s or 0) <= 300
        harness.cloud.disruptions.queue.clear()


@pytest.mark.parametrize("advice", ["99999999", "Thu, 01 Jan 2099 00:00:00 GMT", "-5", "soon"])
def test_wild_advice_on_the_page_of_an_operation_is_not_slept_out(
    harness: AzureHarness, advice: str
) -> None:
    """A machine that was released within the minute is known to be within a few."""
    vm = harness.provider().create(spec())
    harness.advance(60)
    page = Reply(status=200, body={"status": "InProgress"}, headers={"Retry-After": advice})
    harness.cloud.disruptions.add(
        Disruption(kind=DisruptionKind.ANSWER, path="/operations/", reply=page)
    )
    began = harness.cloud.clock.now()

    harness.provider().deallocate(vm)

    assert harness.provider().observe(vm).power is PowerState.DEALLOCATED
    assert harness.cloud.clock.now() - began < 400


def test_dead_network_is_transient_and_soon_reported(harness: AzureHarness) -> None:
    """With nobody answering, the caller hears of it after a few tries, not after hours."""
    harness.cloud.disruptions.add(
        Disruption(kind=DisruptionKind.DROP_BEFORE, path="^/sub", times=999)
    )
    began = harness.cloud.clock.now()

    with pytest.raises(Transient):
        harness.provider().create(spec())

    assert len(harness.cloud.requests) < 20
    assert harness.cloud.clock.now() - began < 300
