"""A run with several machines shows each of them, and what they cost adds up."""

from __future__ import annotations

import io
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from support.fakecloud import FakeCloud, World

from commands.runs.home import RunFolder
from commands.runs.planning.actual import Measured, actual_of
from commands.runs.receipt import DOWN_REASON, make_receipt
from commands.runs.release_run import Record, release_recorded
from commands.runs.timeline import timeline_of
from commands.ui.console import AnnouncingConsole, PlainConsole
from commands.ui.errors import UsageError
from commands.ui.nodes import chosen_node, leader, rank_text
from infra.offer import Offer
from infra.provider import Observation, OnMessage, PowerState, Removed, Vm, ignore_message
from infra.run import actions as act
from infra.run.budget import bill
from infra.run.context import TurnReport
from infra.run.decide import Seen
from infra.run.fold import fold
from infra.run.journal import Event, Journal, Kind, read
from infra.run.order import Group

OFFER = Offer(
    provider="fake", region="a", size="small", spot_usd_per_h=0.36, idle_usd_per_h=0.036
)  # fmt: skip
HOUR_S = 3600.0
NODES = 3


def vm(node: int) -> Vm:
    """The machine of a node."""
    return Vm(provider="fake", run_id="run-1", id=f"vm{node}", region="a", size="small", node=node)


def of(node: int) -> dict[str, int]:
    """What the events of a node carry."""
    return {"node": node} if node else {}


def three_machines(path: Path) -> Path:
    """The journal of three machines that train; node 1 is evicted twice, and node 2 refused once.

    They bill at the same time, from an hour on that differs.
    """
    now = {"s": 0.0}
    journal = Journal(path, clock=lambda: now["s"])

    def at(seconds: float, kind: Kind, node: int = 0, **data: Any) -> None:
        now["s"] = seconds
        journal.append(kind, **of(node), **data)

    at(0, Kind.RUN_STARTED, run_id="run-1", name="run")
    at(5, Kind.CREATE_INTENDED, 2, generation=1, offer=OFFER.to_json())
    at(6, Kind.CREATE_FAILED, 2, error="NoCapacity", message="none left")
    for node in range(NODES):
        begun_s = 10 + 100 * node
        at(begun_s, Kind.CREATE_INTENDED, node, generation=1, offer=OFFER.to_json())
        at(begun_s + 10, Kind.CREATE_ACCEPTED, node, vm=vm(node).to_json())
        at(begun_s + 20, Kind.RUNNING_SEEN, node, since_s=None)
        at(begun_s + 30, Kind.PREPARED, node, sent_s=0.0)
    group = Group(number=1, members=(0, 1, 2), master="10.0.0.4").to_json()
    for node in range(NODES):
        at(300 + 2 * node, Kind.LAUNCH_INTENDED, node, group=group)
        at(301 + 2 * node, Kind.LAUNCHED, node)
    for number, lost_s in enumerate((1000.0, 2000.0), 2):
        stop = {"power": "deallocated", "reason": "evicted", "detail": "", "step": 50, "ran": True}
        at(lost_s, Kind.STOP_SEEN, 1, **stop)
        at(lost_s + 100, Kind.START_INTENDED, 1)
        at(lost_s + 110, Kind.START_ACCEPTED, 1)
        at(lost_s + 120, Kind.RUNNING_SEEN, 1, since_s=None)
        at(lost_s + 130, Kind.PREPARED, 1, sent_s=0.0)
        group = Group(number=number, members=(2, 0, 1), master="10.0.0.6").to_json()
        for node in range(NODES):
            at(lost_s + 140 + 2 * node, Kind.LAUNCH_INTENDED, node, group=group)
            at(lost_s + 141 + 2 * node, Kind.LAUNCHED, node)
    at(3610, Kind.PROGRESS, 2, step=60, steps=90)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The journal of three machines."""
    return three_machines(tmp_path / "journal.jsonl")


def test_each_machine_has_its_lane_and_all_of_them_are_the_bill(path: Path) -> None:
    """Spans of several machines overlap; hours and dollars add up to those of the bill."""
    events = read(path)

    spans = timeline_of(events, Measured())

    used = bill(fold(events), events[-1].at_s)
    assert {one.node for one in spans} == {0, 1, 2}
    assert sum(one.hours for one in spans if one.compute) == pytest.approx(used.compute_h)
    assert sum(one.usd for one in spans) == pytest.approx(used.usd)
    assert [one.activity for one in spans if one.activity == "evicted"] == ["evicted"] * 2
    assert {one.node for one in spans if one.activity == "evicted"} == {1}
    for node in range(NODES):
        lane = [one for one in spans if one.node == node]
        assert all(a.end_s == pytest.approx(b.begin_s) for a, b in pairwise(lane))


def test_the_job_trains_while_one_machine_does(path: Path) -> None:
    """Its hours are those on the wall, not of all machines; its dollars are of all."""
    events = read(path)

    actual = actual_of(events, Measured())

    assert actual.total_h == pytest.approx(3610 / HOUR_S)
    assert actual.total_usd == pytest.approx(bill(fold(events), 3610.0).usd)


def test_a_receipt_has_a_line_for_each_machine(path: Path) -> None:
    """The lines add up to the whole, in text and in JSON."""
    receipt = make_receipt(RunFolder(root=path.parent), path.parent / "out", simulated=False)

    assert [one.evictions for one in receipt.nodes] == [0, 2, 0]
    assert sum(one.usd for one in receipt.nodes) == pytest.approx(receipt.usd)
    assert sum(one.machine_h for one in receipt.nodes) == pytest.approx(receipt.machine_h)
    assert receipt.wall_s == pytest.approx(3610.0)
    assert "2 evictions" in dict(receipt.lines())["node 1"]
    assert [one["node"] for one in receipt.to_json()["nodes"]] == [0, 1, 2]


def test_the_first_of_the_newest_group_leads(path: Path) -> None:
    """A command without `--node` goes there, and one that does not exist is refused."""
    state = fold(read(path))

    assert leader(state) == 2
    assert chosen_node(state, None, name="run") == 2
    assert [rank_text(state, node) for node in range(NODES)] == [
        "rank 1 of 3",
        "rank 2 of 3",
        "rank 0 of 3",
    ]
    with pytest.raises(UsageError, match="no node 3"):
        chosen_node(state, 3, name="run")


def test_phases_of_one_machine_do_not_repeat_those_of_another(path: Path) -> None:
    """Each phase is printed once, with its machine, however their turns alternate."""
    stream = io.StringIO()
    console = AnnouncingConsole(PlainConsole(stream, simulated=False, clock=lambda: 0.0))
    state = fold(read(path))
    for _ in range(3):
        for node in range(NODES):
            wait = act.Wait(wait_s=1.0, reason=f"look at {node}")
            turn = TurnReport(
                state=state, seen=Seen(), action=wait, bill=bill(state, 0.0), now_s=0.0, node=node
            )
            console.report(turn)

    printed = stream.getvalue()

    assert [printed.count(f"node {node}: look at {node}") for node in range(NODES)] == [1, 1, 1]


class SeveralMachines(FakeCloud):
    """A cloud in which a run has several machines, each found by its id."""

    def observe(self, vm: Vm) -> Observation:
        """Look at one of them."""
        return Observation(power=self.power.get(vm.id, PowerState.GONE))

    def deallocate(self, vm: Vm) -> None:
        """Release one of them."""
        self.power[vm.id] = PowerState.DEALLOCATED
        self.log.append(f"deallocate {vm.id}")

    def delete(
        self,
        run_id: str,
        on_message: OnMessage = ignore_message,  # noqa: ARG002  (the seam names it)
    ) -> list[Removed]:
        """Remove all of them."""
        gone = [vm for vm in self.vms.values() if vm.run_id == run_id]
        self.vms, self.power = {}, {}
        return [Removed(kind="virtual machine", id=vm.id) for vm in gone]


def cloud_with_three() -> FakeCloud:
    """A cloud in which the three machines run."""
    cloud = SeveralMachines(world=World())
    for node in range(NODES):
        cloud.vms[f"vm{node}"] = replace(vm(node), power=PowerState.RUNNING)
        cloud.power[f"vm{node}"] = PowerState.RUNNING
    return cloud


def test_down_delete_removes_each_machine_and_ends_each_bill(path: Path) -> None:
    """One removal takes all; each has its own end in the journal."""
    record = Record("run", Journal(path, clock=lambda: 3700.0), lambda _line: None)

    result = release_recorded(
        record, cloud_with_three(), fold(read(path)), delete=True, disk_days=None
    )

    state = fold(read(path))
    assert len(result.removed) == NODES
    assert result.left == []
    assert all(one.deleted for one in state.nodes)
    assert bill(state, 9000.0).usd_per_h_now == 0.0


def test_down_releases_each_machine_and_says_so(path: Path) -> None:
    """Each has its own events in the journal, and nothing computes for money any more."""
    cloud, events = cloud_with_three(), read(path)
    record = Record("run", Journal(path, clock=lambda: 3700.0), lambda _line: None)

    result = release_recorded(record, cloud, fold(events), delete=False, disk_days=None)

    assert len(result.deallocated) == NODES
    assert not result.bills_compute
    ended = [one for one in read(path) if one.kind is Kind.DEALLOCATED]
    assert [one.data.get("node", 0) for one in ended] == [0, 1, 2]
    assert all(not one.up for one in fold(read(path)).nodes)
    receipt = make_receipt(RunFolder(root=path.parent), path.parent / "out", simulated=False)
    assert receipt.downs == 1
    assert DOWN_REASON in {one.data.get("reason") for one in ended}


def test_a_down_that_was_killed_goes_on(path: Path) -> None:
    """What was released before stays so, and the others follow."""
    cloud, events = cloud_with_three(), read(path)
    journal = Journal(path, clock=lambda: 3700.0)
    journal.append(Kind.DEALLOCATE_INTENDED, reason=DOWN_REASON)
    cloud.power["vm0"] = PowerState.DEALLOCATED
    del events

    record = Record("run", journal, lambda _line: None)
    release_recorded(record, cloud, fold(read(path)), delete=False, disk_days=None)

    assert bill(fold(read(path)), 9000.0).compute_h == bill(fold(read(path)), 4000.0).compute_h


def test_events_of_one_machine_carry_no_number() -> None:
    """The events of a run with one machine are as they ever were."""
    assert of(0) == {}
    event = Event(number=1, at_s=0.0, kind=Kind.RUN_STARTED, data={"run_id": "r", "name": "n"})
    assert fold([event]).nodes == ()
    assert "node" not in asdict(event)["data"]
