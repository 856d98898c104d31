"""Removes what a run has in one region, step by step, until a look at it finds nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from infra.aws.context import AwsContext
from infra.aws.errors import NotYetVisibleError
from infra.aws.inventory import Inventories, Inventory
from infra.aws.leftovers import describe
from infra.aws.machine_view import PENDING, RUNNING, node_of, run_of, state_of, view_of
from infra.aws.safeguards import AwsSafeguards
from infra.errors import BadRequest, NotAllowed, ProviderError, SignedOut, Transient
from infra.renting.progress import ProgressReporter
from infra.renting.run_record import RunRecord
from infra.renting.tags import RUN
from infra.timestamps import format_utc, parse_utc_s

AGAIN = "`qft down --delete` once more goes on, and says when nothing is left"
ENDED = "ended "
"""How the names begin under which a record says when each of several machines ceased to bill."""
KINDS = {
    "requests": ("spot request", "SpotInstanceRequestId"),
    "instances": ("virtual machine", "InstanceId"),
    "volumes": ("disk", "VolumeId"),
    "groups": ("security group", "GroupId"),
}


@dataclass(frozen=True, kw_only=True)
class MachineOfRun:
    """The part of a run that a removal is about: one of its nodes, the others stay."""

    node: int
    generation: int | None = None
    """The only machine of that node; None takes whichever there are."""
    keeps_groups: bool = False
    """Whether the security group stays in any case: others may be about to need it."""


@dataclass(frozen=True, kw_only=True)
class RegionRemoval:
    """One removal in one region; safe to begin again after a crash at any point."""

    context: AwsContext
    safeguards: AwsSafeguards
    record: RunRecord
    run_id: str
    region: str
    account: str
    progress: ProgressReporter
    deadline_s: float
    part: MachineOfRun | None = None
    """What of the run is removed; None removes all of it."""

    def run(self) -> None:
        """Remove until nothing is left. Raises an unfinished `Transient` after the deadline.

        What is refused is released, so that it bills no compute, and the refusal is raised.
        """
        found = Inventory(region=self.region)
        pauses = False
        while True:
            pause_s = self.context.settings.polling_s
            try:
                found = self._look()
                self._remember(found)
                if self._step(found):
                    return
                if found.has_only_groups and not pauses:  # they go at once, unlike machines
                    pauses = True
                    continue
            except SignedOut:
                raise
            except (NotAllowed, BadRequest) as error:
                self._release(found, error)
                raise
            except Transient as error:
                pause_s = error.retry_after_s or pause_s
                if self.context.clock() >= self.deadline_s:
                    raise self._gave_up(found) from error
            if self.context.clock() >= self.deadline_s:
                raise self._gave_up(found)
            self.context.sleep(pause_s)
            self.progress.report(f"removing {describe(found) or 'the rest'}")

    def _look(self) -> Inventory:
        inventories = Inventories(context=self.context)
        found = inventories.of_run(self.region, self.run_id, self.record.ids)
        if self.part is None:
            return found
        mine = found.of_node(self.part.node, self.part.generation)
        return replace(mine, groups=[]) if self.part.keeps_groups else mine

    def _step(self, found: Inventory) -> bool:
        """Take the next step; whether nothing was left to do."""
        if found.live_requests:
            self._cancel(found.live_requests)
        if found.live_instances:
            self._terminate(found.live_instances)
            return False
        if found.live_requests or found.ending_instances:
            return False
        if found.untagged:  # it holds its disk and its group
            raise _not_ours(found)
        if found.volumes or found.groups:
            for volume in found.volumes:
                self._remove_volume(volume)
            if not found.volumes:
                for group in found.groups:
                    self._remove_group(str(group.get("GroupId")))
            return False
        if self._may_appear():
            return False
        self._remove_safeguards()
        return True

    def _remember(self, found: Inventory) -> None:
        """Record what will be removed, and since when compute is over, before anything goes."""
        there = {
            "requests": found.live_requests,
            "instances": [*found.live_instances, *found.ending_instances],
            "volumes": found.volumes,
            "groups": found.groups,
        }
        rows = [(*KINDS[name], row) for name, some in there.items() for row in some]
        listed = [[kind, self._path(str(row.get(key)))] for kind, key, row in rows]
        new = [one for one in listed if one not in self.record.removing]
        if there["instances"]:
            self.record.tokens.pop("appears_until", None)
        if new:
            self.record.removing += new
            self.record.ids.setdefault("account", self.account)
            self.record.ids["region"] = self.region
            self.record.note("delete", self.context.clock())
        self._note_compute_end(found)

    def _note_compute_end(self, found: Inventory) -> None:
        """Record when the last of the run's machines ceased to bill, once none does."""
        if any(map(node_of, found.instances)):
            self._note_each_end(found)
        up = any(state_of(one) in {PENDING, RUNNING} for one in found.instances)
        if up or self.record.compute_ended_at or not found.instances:
            return
        now_s = self.context.clock()
        ends = [view_of(one, found.request_of(one)).changed_s or now_s for one in found.instances]
        if self.record.removing:
            self.record.compute_ended_at = min(max(ends), now_s)
            self.record.save()

    def _note_each_end(self, found: Inventory) -> None:
        """Record when each of several machines ceased to bill: one may have stopped hours ago."""
        now_s = self.context.clock()
        for one in found.instances:
            name = ENDED + self._path(str(one.get("InstanceId")))
            if state_of(one) not in {PENDING, RUNNING} and name not in self.record.tokens:
                changed_s = view_of(one, found.request_of(one)).changed_s or now_s
                self.record.tokens[name] = format_utc(min(changed_s, now_s))
                self.record.save()

    def _cancel(self, requests: Iterable[Mapping[str, Any]]) -> None:
        ids = [str(one.get("SpotInstanceRequestId")) for one in requests]
        with contextlib.suppress(NotYetVisibleError):  # looked at again
            self._call(
                "cancel_spot_instance_requests",
                doing=f"cancel the spot request {_names(ids)}",
                SpotInstanceRequestIds=ids,
            )

    def _terminate(self, instances: Iterable[Mapping[str, Any]]) -> None:
        for one in instances:
            id_ = str(one.get("InstanceId"))
            self.progress.on_message(f"terminating `{id_}`")
            with contextlib.suppress(NotYetVisibleError):  # looked at again
                self._call("terminate_instances", doing=f"terminate `{id_}`", InstanceIds=[id_])

    def _remove_volume(self, volume: Mapping[str, Any]) -> None:
        """Remove a disk that no machine holds; one that is still held goes with its machine."""
        if volume.get("State") not in {"available", "error"}:
            return
        id_ = str(volume.get("VolumeId"))
        with contextlib.suppress(NotYetVisibleError):  # somebody was quicker
            self._call("delete_volume", doing=f"remove the disk `{id_}`", VolumeId=id_)

    def _remove_group(self, id_: str) -> None:
        """Remove a security group. Raises `Transient` while a network card still uses it."""
        with contextlib.suppress(NotYetVisibleError):  # somebody was quicker
            self._call(
                "delete_security_group", doing=f"remove the security group `{id_}`", GroupId=id_
            )

    def _remove_safeguards(self) -> None:
        """Remove schedules and alarms, which were to end the bill had this been killed."""
        which = (self.part.node, self.part.generation) if self.part else (None, None)
        names = self.safeguards.remove(self.run_id, self.region, *which)
        new = [["schedule or alarm", self._path(name)] for name in names]
        self.record.removing += [one for one in new if one not in self.record.removing]

    def _may_appear(self) -> bool:
        """Whether a machine whose request was never answered may still show up."""
        until_s = parse_utc_s(self.record.tokens.get("appears_until", ""))
        if until_s is None or self.context.clock() >= until_s:
            return False
        self.progress.report(f"making sure until {format_utc(until_s)} that no machine shows up")
        return True

    def _release(self, found: Inventory, refusal: ProviderError) -> None:
        """Stop what may not be removed, so that it bills no compute; a stop keeps its disk."""
        ids = [
            str(one.get("InstanceId"))
            for one in [*found.instances, *found.untagged]
            if state_of(one) in {PENDING, RUNNING}
        ]
        left = describe(found)
        try:
            if ids:
                self._call("stop_instances", doing=f"stop {_names(ids)}", InstanceIds=ids)
        except ProviderError as error:
            refusal.add_note(f"nor could it be stopped: {error}")
        else:
            words = f"{_names(ids)} is stopped instead and bills no compute; " if ids else ""
            left = f"{words}left: {left}"
        refusal.unfinished = True
        parts = [refusal.hint, _tag_command(found, self.run_id), left]
        refusal.hint = "; ".join(part for part in parts if part)

    def _gave_up(self, found: Inventory) -> Transient:
        error = Transient(
            f"given up after {self.progress.elapsed}: {describe(found) or 'something'} is left in"
            f" {self.region}",
            hint=AGAIN,
        )
        error.unfinished = True
        return error

    def _call(self, operation: str, *, doing: str, **parameters: Any) -> dict[str, Any]:
        return self.context.clients.call("ec2", self.region, operation, doing=doing, **parameters)

    def _path(self, id_: str) -> str:
        return f"{self.account}/{self.region}/{id_}"


def _tag_command(found: Inventory, run_id: str) -> str:
    """How to make ours what EC2 launched by itself without our tag; empty if there is none.

    The minimal policy ends only what carries the tag.
    """
    ids = [str(one.get("InstanceId")) for one in found.live_instances if not run_of(one)]
    if not ids:
        return ""
    return (
        f"EC2 launched {_names(ids)} by itself, without the tag that your rights ask for:"
        f" `aws ec2 create-tags --region {found.region} --resources {' '.join(ids)} --tags"
        f" Key={RUN},Value={run_id}` by an administrator, then the same command"
    )


def _not_ours(found: Inventory) -> NotAllowed:
    """The error for a machine that is on record as ours and does not carry our tag any more."""
    ids = _names(str(one.get("InstanceId")) for one in found.untagged)
    return NotAllowed(
        f"the machine {ids} does not carry our tag any more: it is not removed",
        hint="put the tag `qft-run` back on it and repeat this, or terminate it yourself (cancel"
        " its spot request first, or EC2 launches another one)",
    )


def _names(ids: Iterable[str]) -> str:
    return ", ".join(f"`{one}`" for one in ids)
